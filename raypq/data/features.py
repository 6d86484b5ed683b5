"""Feature stores: shards of ``id``, a vector column and optionally ``label``, in any layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data import arrays, ids, texts
from raypq.data.feature_columns import (
    WIDTH_NOTE,
    check_images,
    has_labels,
    kind_of_ids,
    layout_of,
)
from raypq.data.ids import IdRule
from raypq.data.image_decoder import Decoder
from raypq.data.images import ImageFormat, SquareImages
from raypq.data.known_images import KnownImages
from raypq.data.layouts import ShardFile, open_shard
from raypq.data.layouts.image_files import VERSION_BYTES, ImageFile, read, versions_of
from raypq.data.network_info import BackboneInfo, check_equal
from raypq.data.storage import Shard

# One batch of float32 features. Bounds a worker's memory; and decoders of Parquet and Lance are
# about twice as fast where a batch does not leave the caches (docs/benchmarks.md, "layouts").
_BATCH_BYTES = 16 << 20
_DEVICE_BATCH_BYTES = 64 << 20  # for a GPU, which a small batch does not fill
_MAX_ROWS = 8192
NETWORK_ROWS = 64  # images that are decoded while a network computes on those before


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """Some consecutive rows of one shard, without images that could not be decoded.

    Attributes:
        X: features [m, dx], float32, finite unless ``ReadOptions.finite`` is False; float32 or
            float16, unchecked, with ``ReadOptions.for_device``; or rows of
            ``ReadOptions.image_format``.
        ids: string or int64, n values.
        labels: class_ids as strings (null where a row has none), or None without the column.
        row: row of the file at which the batch starts.
        versions: of the images, n values (``image_files.versions_of``); None for vectors.
        known: position of each row in ``KnownImages``, -1 for the m rows of X; None if all n rows
            are in X.
    """

    X: NDArray[np.float32]
    ids: pa.Array
    labels: pa.StringArray | None
    row: int
    where: str
    versions: pa.FixedSizeBinaryArray | None = None
    known: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """The shards of a feature store and the names of their columns."""

    shards: Sequence[Shard]
    columns: Columns


def batch_rows(width: int, *, for_device: bool = False) -> int:
    """Rows of a batch; depends on the width only, so that results do not depend on the machine."""
    size = _DEVICE_BATCH_BYTES if for_device else _BATCH_BYTES
    return int(np.clip(size // (4 * width), 64, _MAX_ROWS))


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a shard is read.

    Attributes:
        labels: read the label column if there is one.
        by_content: versions of image files are digests of their content, which is read for them.
        finite: refuse NaN and Inf; otherwise the caller must handle them.
        for_device: features go to a GPU: batches are larger, and float16 is not widened. The
            caller must handle NaN and Inf.
        rule: the type that ids must have; None takes the shard's own.
        threads: that decode images at the same time.
        image_format: of the rows, which must be encoded images; None for features, or for images
            of the model's width.
        backbone: that features must come from, if they name one.
    """

    labels: bool = True
    by_content: bool = False
    finite: bool = True
    for_device: bool = False
    rule: IdRule | None = None
    threads: int = 1
    image_format: ImageFormat | None = None
    backbone: BackboneInfo | None = None


class FeatureReader:
    """An open shard: properties of its footer, and its rows as a stream.

    Attributes:
        rows: rows of the shard.
        id_type: string or int64; for a shard without rows, that of the store.
        id_column: the type of the column in the file.
        label: whether labels are read; False for a column of the type null.
        backbone: the network that the features come from, if the file names one.
        images: whether rows are encoded images, which are decoded.
        known: images so far that were known, and so not decoded. undecodable: ids so far of images
            that were left out.
    """

    def __init__(
        self, file: ShardFile, shard: Shard, columns: Columns, width: int | None, how: ReadOptions
    ) -> None:
        self._file, self._columns, self._uri = file, columns, shard.uri
        self._finite, self._by_content = how.finite, how.by_content
        self._for_device = how.for_device
        self.rows: int = file.rows
        self.backbone = BackboneInfo.of(file.field(columns.feature), where=shard.uri)
        check_equal(how.backbone, self.backbone, where=shard.uri)
        self.id_column: pa.DataType = file.field(columns.id).type
        self._where = f"{shard.uri}, column '{columns.feature}'"
        image_format = how.image_format
        self._for_network = image_format is not None
        if image_format is not None:
            check_images(file, columns)
        else:
            layout = layout_of(file, columns, width, shard.uri)
            self._width = layout.width
            if layout.side is not None:
                image_format = SquareImages(side=layout.side)
        self._decoder: Decoder | None = None
        if image_format is not None:
            self._decoder = Decoder(
                image_format, columns.bad_images, self._where, threads=how.threads
            )
            self._width = image_format.width
        self.images = self._decoder is not None
        self.known = 0
        self.undecodable: list[pa.Array] = []
        self._id_kind = kind_of_ids(file, columns, how.rule)
        self.id_type = IdRule(kind=self._id_kind).type
        self.label = how.labels and has_labels(file, columns)

    def batches(self, known: KnownImages | None = None) -> Iterator[FeatureBatch]:
        """The rows in batches; memory is bounded by a batch, not by the shard.

        Args:
            known: images that are not decoded.

        Raises:
            InputError: wrong type or width, nulls, NaN or Inf, naming the row.
        """
        columns = self._columns
        wanted = [columns.id, columns.feature] + ([columns.label] if self.label else [])
        row = 0
        width = self._width or 1024
        rows = NETWORK_ROWS if self._for_network else batch_rows(width, for_device=self._for_device)
        for batch in self._file.stream(rows, wanted, read_images=False):
            if len(batch):
                converted = self._convert(batch, row, known)
                row += len(batch)
                if len(converted):
                    yield converted

    @property
    def left_out(self) -> int:
        """Images so far that could not be decoded and were left out."""
        return self._decoder.left_out if self._decoder else 0

    def _convert(self, batch: pa.RecordBatch, row: int, known: KnownImages | None) -> FeatureBatch:
        columns = self._columns
        names = ids.read(
            batch.column(columns.id),
            self._id_kind,
            where=f"{self._uri}, column '{columns.id}'",
            row0=row,
        )
        labels = None
        if self.label:
            where = f"{self._uri}, column '{columns.label}'"
            labels = texts.strings(batch.column(columns.label), where=where, nulls=True, row0=row)
        column = batch.column(columns.feature)
        if self._decoder:
            return self._decoded(self._decoder, column, names, labels, row, known)
        raw = arrays.matrix(column, width=self._width, where=self._where, row0=row)
        self._width = raw.shape[1]
        X = self._values(raw, names, row)
        return FeatureBatch(X=X, ids=names, labels=labels, row=row, where=self._uri)

    def _values(
        self, raw: NDArray[np.floating[Any]], names: pa.Array, row: int
    ) -> NDArray[np.float32]:
        if self._for_device and raw.dtype == np.float16:
            return cast(NDArray[np.float32], raw)  # widened on the device
        if self._finite and not self._for_device:
            return arrays.finite_float32(raw, where=self._where, ids=names, row0=row)
        return arrays.any_float32(raw)

    def _decoded(
        self,
        decoder: Decoder,
        column: pa.Array,
        names: pa.Array,
        labels: pa.StringArray | None,
        row: int,
        known: KnownImages | None,
    ) -> FeatureBatch:
        """A batch of images, without those that cannot be decoded."""
        if self._by_content and isinstance(column.type, ImageFile):
            column = read(column)
        versions = versions_of(column)
        positions = None if known is None else known.positions(names, versions)
        wanted = None
        if positions is not None:
            wanted = positions < 0
            self.known += int(len(wanted) - wanted.sum())
        X, undecodable = decoder.rows(column, names, row, wanted)
        if undecodable.any():
            keep = pa.array(~undecodable)
            self.undecodable.append(names.filter(pa.array(undecodable)))
            names, versions = names.filter(keep), versions.filter(keep)
            labels = None if labels is None else labels.filter(keep)
            positions = None if positions is None else positions[~undecodable]
        return FeatureBatch(
            X=X, ids=names, labels=labels, row=row, where=self._uri, versions=versions,
            known=positions,
        )  # fmt: skip


@contextmanager
def open_features(
    shard: Shard, columns: Columns, *, width: int | None, how: ReadOptions = ReadOptions()
) -> Iterator[FeatureReader]:
    """Opens a shard for reading.

    Args:
        width: dx that every row must have; None takes the shard's own.

    Raises:
        InputError: missing column, wrong type or width, a file that cannot be read.
    """
    with open_shard(shard, columns) as file:
        yield FeatureReader(file, shard, columns, width, how)


def read_batches(
    shard: Shard,
    columns: Columns,
    *,
    width: int | None,
    labels: bool = True,
    for_device: bool = False,
) -> Iterator[FeatureBatch]:
    """Streams the rows of a shard; see ``open_features`` and ``ReadOptions``."""
    how = ReadOptions(labels=labels, for_device=for_device)
    with open_features(shard, columns, width=width, how=how) as reader:
        yield from reader.batches()


def feature_schema(
    *,
    id_type: pa.DataType,
    label: bool,
    width: int,
    itemsize: int = 4,
    backbone: BackboneInfo | None = None,
    version: bool = False,
) -> pa.Schema:
    """The schema of feature files in the fastest layout: fixed_size_binary, with the width.

    Args:
        itemsize: bytes of a value. backbone: that the features come from.
        version: whether there are versions of the images.
    """
    note = {WIDTH_NOTE: str(width).encode(), **(backbone.note if backbone else {})}
    fields = [
        pa.field("id", id_type, nullable=False),
        pa.field("feature", pa.binary(itemsize * width), nullable=False, metadata=note),
    ]
    if label:
        fields.append(pa.field("label", pa.string()))
    if version:
        fields.append(pa.field("version", pa.binary(VERSION_BYTES), nullable=False))
    return pa.schema(fields)
