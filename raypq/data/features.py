"""Feature stores: sharded Parquet files of ``id``, a vector column and perhaps a ``label``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data import arrays, images
from raypq.data.storage import Shard, list_shards, open_parquet, stream
from raypq.errors import InputError, JobError, RaypqError, ShardFailure

_BATCH_BYTES = 64 << 20  # one batch of float32 features; bounds a worker's memory
_MAX_ROWS = 8192
WIDTH_NOTE = b"raypq.width"  # metadata of a fixed_size_binary feature field


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """Some consecutive rows of one shard, without images that could not be decoded.

    Attributes:
        X: features [n, dx], float32, finite (unless the reader was told to pass on what is not).
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
            InputError: no Parquet file is there.
        """
        return cls(shards=list_shards(uris), columns=columns or Columns())


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the footers of a store say.

    Attributes:
        rows: rows of each good shard, in order. width: dx, the same in all of them.
        shards: the good shards. failures: the others, and why.
    """

    shards: Sequence[Shard]
    rows: Sequence[int]
    width: int
    failures: Sequence[ShardFailure]


def survey(store: FeatureStore) -> Survey:
    """Reads every footer: rows of each shard, and one width across all.

    Raises:
        InputError: no shard has a row.
        JobError: every shard is bad.
    """
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda shard: _try_footer(shard, store.columns), store.shards))
    shards: list[Shard] = []
    rows: list[int] = []
    failures: list[ShardFailure] = []
    width, first = 0, ""
    for shard, answer in zip(store.shards, found, strict=True):
        if isinstance(answer, RaypqError):
            failures.append(ShardFailure(shard=shard.uri, reason=str(answer)))
            continue
        count, its_width = answer
        if width and its_width and its_width != width:
            reason = f"expected width {width} as in {first}, found width {its_width}"
            failures.append(ShardFailure(shard=shard.uri, reason=reason))
            continue
        if not width and its_width:
            width, first = its_width, shard.uri
        shards.append(shard)
        rows.append(count)
    if not shards:
        raise JobError(failures, 0)
    if not failures and not sum(rows):
        raise InputError(
            store.shards[0].uri, expected="at least one row of features", found="empty shards only"
        )
    return Survey(shards=shards, rows=rows, width=width, failures=failures)


def count_rows(shards: Sequence[Shard]) -> int:
    """Rows of shards by their footers; those that cannot be read count none."""

    def rows(shard: Shard) -> int:
        try:
            with open_parquet(shard.uri) as file:
                return int(file.metadata.num_rows)
        except InputError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(rows, shards))


def _try_footer(shard: Shard, columns: Columns) -> tuple[int, int] | RaypqError:
    try:
        return _footer(shard, columns)
    except RaypqError as error:
        return error


def _footer(shard: Shard, columns: Columns) -> tuple[int, int]:
    with open_parquet(shard.uri) as file:
        field = feature_field(file, columns.feature, shard.uri)
        rows = file.metadata.num_rows
        kind = field.type.storage_type if isinstance(field.type, pa.ExtensionType) else field.type
        if images.is_images(kind):
            side = _side(columns, None, f"{shard.uri}, column '{columns.feature}'")
            return rows, images.row_width(side)
        if pa.types.is_fixed_size_list(kind):
            return rows, kind.list_size
        if pa.types.is_fixed_size_binary(kind):
            return rows, columns.width or stored_width(field) or 0
        if not rows:
            return 0, 0
        first = next(file.iter_batches(batch_size=1, columns=[columns.feature]))
        where = f"{shard.uri}, column '{columns.feature}'"
        return rows, arrays.matrix(first.column(0), width=columns.width, where=where).shape[1]


def _side(columns: Columns, width: int | None, where: str) -> int:
    """Pixels on a side of the images in a column: as a model wants them, or as the job says."""
    if width is not None:
        return images.side_of(width, where=where)
    if columns.image_size is None:
        raise InputError(
            where, expected="a size in pixels to read images (--image-size)", found="none"
        )
    return columns.image_size


def feature_field(file: pq.ParquetFile, name: str, uri: str) -> pa.Field:
    """The field of a column.

    Raises:
        InputError: no such column, or several of the name.
    """
    schema = file.schema_arrow
    if schema.names.count(name) > 1:
        raise InputError(
            uri, expected=f"one column '{name}'", found=f"{schema.names.count(name)} of that name"
        )
    if name not in schema.names:
        raise InputError(
            uri, expected=f"a column '{name}'", found=f"columns {', '.join(schema.names)}"
        )
    return schema.field(name)


def batch_rows(width: int) -> int:
    """Rows in a batch: fixed by the width alone, so that results never depend on the machine."""
    return int(np.clip(_BATCH_BYTES // (4 * width), 64, _MAX_ROWS))


class FeatureReader:
    """One open shard: what its footer says, and its rows as a stream.

    Attributes:
        rows: rows of the shard. id_type: string or int64. label: whether labels are read.
    """

    def __init__(
        self,
        file: pq.ParquetFile,
        shard: Shard,
        columns: Columns,
        width: int | None,
        labels: bool,
        finite: bool,
    ) -> None:
        self._finite = finite
        self._file, self._columns, self._uri = file, columns, shard.uri
        self.rows: int = file.metadata.num_rows
        feature_field(file, columns.id, shard.uri)
        field = feature_field(file, columns.feature, shard.uri)
        self._where = f"{shard.uri}, column '{columns.feature}'"
        self._width = width or columns.width or stored_width(field)
        if pa.types.is_fixed_size_list(field.type):
            self._width = arrays.matrix(
                pa.array([], field.type), width=width, where=self._where
            ).shape[1]
        self._decoder: images.Decoder | None = None
        if images.is_images(field.type):
            side = _side(columns, width, self._where)
            self._decoder = images.Decoder(side, columns.bad_images, self._where)
            self._width = images.row_width(side)
        id_type = file.schema_arrow.field(columns.id).type
        self.id_type = id_type if pa.types.is_int64(id_type) else pa.string()
        self.label = labels and columns.label in file.schema_arrow.names
        if self.label:
            feature_field(file, columns.label, shard.uri)

    def batches(self) -> Iterator[FeatureBatch]:
        """The rows, a batch at a time; memory is bounded by the batch, not by the shard.

        Raises:
            InputError: wrong type or width, nulls, NaN or Inf, naming the row.
        """
        columns = self._columns
        wanted = [columns.id, columns.feature] + ([columns.label] if self.label else [])
        row = 0
        for batch in stream(self._file, batch_rows(self._width or 1024), wanted):
            if len(batch):
                converted = self._convert(batch, row)
                row += len(batch)
                if len(converted):
                    yield converted

    @property
    def left_out(self) -> int:
        """Images so far that could not be decoded."""
        return self._decoder.left_out if self._decoder else 0

    def _convert(self, batch: pa.RecordBatch, row: int) -> FeatureBatch:
        columns = self._columns
        ids = self._names(batch, columns.id, row, nulls=False)
        labels = self._names(batch, columns.label, row, nulls=True) if self.label else None
        if self._decoder:
            X, good = self._decoder.rows(batch.column(columns.feature), ids, row)
            if not good.all():
                keep = pa.array(good)
                ids, labels = ids.filter(keep), None if labels is None else labels.filter(keep)
        else:
            raw = arrays.matrix(
                batch.column(columns.feature), width=self._width, where=self._where, row0=row
            )
            self._width = raw.shape[1]
            X = (
                arrays.finite_float32(raw, where=self._where, ids=ids, row0=row)
                if self._finite
                else arrays.any_float32(raw)
            )
        return FeatureBatch(X=X, ids=ids, labels=labels, row=row, where=self._uri)

    def _names(self, batch: pa.RecordBatch, name: str, row: int, *, nulls: bool) -> pa.Array:
        column = batch.column(name)
        if name == self._columns.id and pa.types.is_int64(column.type) and not column.null_count:
            return column
        where = f"{self._uri}, column '{name}'"
        return arrays.strings(column, where=where, nulls=nulls, row0=row)


@contextmanager
def open_features(
    shard: Shard,
    columns: Columns,
    *,
    width: int | None,
    labels: bool = True,
    finite: bool = True,
) -> Iterator[FeatureReader]:
    """Opens a shard for reading.

    Args:
        width: dx that every row must have; None takes the shard's own.
        labels: read the label column where there is one.
        finite: refuse a shard with NaN or Inf in it; otherwise the caller looks at the rows.

    Raises:
        InputError: missing column, wrong type or width, a file that cannot be read.
    """
    with open_parquet(shard.uri) as file:
        yield FeatureReader(file, shard, columns, width, labels, finite)


def read_batches(
    shard: Shard, columns: Columns, *, width: int | None, labels: bool = True
) -> Iterator[FeatureBatch]:
    """Streams a shard; as ``open_features`` where nothing but the rows is wanted."""
    with open_features(shard, columns, width=width, labels=labels) as reader:
        yield from reader.batches()


def stored_width(field: pa.Field) -> int | None:
    """The width that `raypq repack` notes beside a fixed_size_binary column."""
    noted = (field.metadata or {}).get(WIDTH_NOTE, b"")
    return int(noted) if noted.isdigit() else None  # else: as if nothing were noted


def feature_schema(*, id_type: pa.DataType, label: bool, width: int) -> pa.Schema:
    """Of feature files in the layout that reads fastest: fixed_size_binary, the width noted."""
    note = {WIDTH_NOTE: str(width)}
    fields = [
        pa.field("id", id_type, nullable=False),
        pa.field("feature", pa.binary(4 * width), nullable=False, metadata=note),
    ]
    return pa.schema([*fields, pa.field("label", pa.string())] if label else fields)
