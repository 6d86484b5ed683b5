"""Feature stores: shards of ``id``, a vector column and optionally ``label``, in any layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data import arrays, ids, images, texts
from raypq.data.feature_columns import WIDTH_NOTE, has_labels, kind_of_ids, layout_of
from raypq.data.ids import IdRule
from raypq.data.layouts import ShardFile, list_features, open_shard
from raypq.data.storage import Shard

_BATCH_BYTES = 64 << 20  # one batch of float32 features; bounds a worker's memory
_MAX_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """Some consecutive rows of one shard, without images that could not be decoded.

    Attributes:
        X: features [n, dx], float32; finite, unless the reader was opened with ``finite=False``.
        ids: string or int64, n values.
        labels: class_ids as strings (null where a row has none), or None without the column.
        row: row of the file at which the batch starts.
    """

    X: NDArray[np.float32]
    ids: pa.Array
    labels: pa.StringArray | None
    row: int
    where: str

    def __len__(self) -> int:
        return len(self.X)


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """The shards of a feature store and the names of their columns."""

    shards: Sequence[Shard]
    columns: Columns

    @classmethod
    def open(cls, uris: Sequence[str], columns: Columns | None = None) -> FeatureStore:
        """Lists the shards; opens none of them.

        Raises:
            InputError: no feature file; see ``list_features``.
        """
        return cls(shards=list_features(uris), columns=columns or Columns())


def batch_rows(width: int) -> int:
    """Rows of a batch; depends on the width only, so that results do not depend on the machine."""
    return int(np.clip(_BATCH_BYTES // (4 * width), 64, _MAX_ROWS))


class FeatureReader:
    """An open shard: properties of its footer, and its rows as a stream.

    Attributes:
        rows: rows of the shard.
        id_type: string or int64; for a shard without rows, that of the store.
        id_column: the type of the column in the file.
        label: whether labels are read; False for a column of the type null.
    """

    def __init__(
        self,
        file: ShardFile,
        shard: Shard,
        columns: Columns,
        width: int | None,
        labels: bool,
        finite: bool,
        rule: IdRule | None,
    ) -> None:
        self._finite = finite
        self._file, self._columns, self._uri = file, columns, shard.uri
        self.rows: int = file.rows
        self.id_column: pa.DataType = file.field(columns.id).type
        self._where = f"{shard.uri}, column '{columns.feature}'"
        layout = layout_of(file, columns, width, shard.uri)
        self._width = layout.width
        self._decoder: images.Decoder | None = None
        if layout.side is not None:
            self._decoder = images.Decoder(layout.side, columns.bad_images, self._where)
            self._width = images.row_width(layout.side)
        self._id_kind = kind_of_ids(file, columns, rule)
        self.id_type = IdRule(kind=self._id_kind).type
        self.label = labels and has_labels(file, columns)

    def batches(self) -> Iterator[FeatureBatch]:
        """The rows in batches; memory is bounded by a batch, not by the shard.

        Raises:
            InputError: wrong type or width, nulls, NaN or Inf, naming the row.
        """
        columns = self._columns
        wanted = [columns.id, columns.feature] + ([columns.label] if self.label else [])
        row = 0
        for batch in self._file.stream(batch_rows(self._width or 1024), wanted):
            if len(batch):
                converted = self._convert(batch, row)
                row += len(batch)
                if len(converted):
                    yield converted

    @property
    def left_out(self) -> int:
        """Images so far that could not be decoded and were left out."""
        return self._decoder.left_out if self._decoder else 0

    def _convert(self, batch: pa.RecordBatch, row: int) -> FeatureBatch:
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
        if self._decoder:
            X, good = self._decoder.rows(batch.column(columns.feature), names, row)
            if not good.all():
                keep = pa.array(good)
                names, labels = names.filter(keep), None if labels is None else labels.filter(keep)
        else:
            raw = arrays.matrix(
                batch.column(columns.feature), width=self._width, where=self._where, row0=row
            )
            self._width = raw.shape[1]
            X = (
                arrays.finite_float32(raw, where=self._where, ids=names, row0=row)
                if self._finite
                else arrays.any_float32(raw)
            )
        return FeatureBatch(X=X, ids=names, labels=labels, row=row, where=self._uri)


@contextmanager
def open_features(
    shard: Shard,
    columns: Columns,
    *,
    width: int | None,
    labels: bool = True,
    finite: bool = True,
    rule: IdRule | None = None,
) -> Iterator[FeatureReader]:
    """Opens a shard for reading.

    Args:
        width: dx that every row must have; None takes the shard's own.
        labels: read the label column if there is one.
        finite: refuse NaN and Inf; otherwise the caller must handle them.
        rule: the type that its ids must have; None takes the shard's own.

    Raises:
        InputError: missing column, wrong type or width, a file that cannot be read.
    """
    with open_shard(shard, columns) as file:
        yield FeatureReader(file, shard, columns, width, labels, finite, rule)


def read_batches(
    shard: Shard, columns: Columns, *, width: int | None, labels: bool = True
) -> Iterator[FeatureBatch]:
    """Streams the rows of a shard; see ``open_features``."""
    with open_features(shard, columns, width=width, labels=labels) as reader:
        yield from reader.batches()


def feature_schema(*, id_type: pa.DataType, label: bool, width: int) -> pa.Schema:
    """The schema of feature files in the fastest layout: fixed_size_binary, with the width."""
    note = {WIDTH_NOTE: str(width)}
    fields = [
        pa.field("id", id_type, nullable=False),
        pa.field("feature", pa.binary(4 * width), nullable=False, metadata=note),
    ]
    return pa.schema([*fields, pa.field("label", pa.string())] if label else fields)
