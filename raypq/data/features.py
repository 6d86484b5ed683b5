"""Feature stores: shards of ``id``, a vector column and optionally ``label``, in any layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data import arrays, ids, images
from raypq.data.ids import IdRule
from raypq.data.layouts import ShardFile, list_features, open_shard
from raypq.data.layouts.shard_file import is_made_id
from raypq.data.storage import Shard, open_parquet
from raypq.errors import InputError, JobError, RaypqError, ShardFailure

_BATCH_BYTES = 64 << 20  # one batch of float32 features; bounds a worker's memory
_MAX_ROWS = 8192
_SAMPLED = 16  # values of a column of bytes that decide between images and vectors
WIDTH_NOTE = b"raypq.width"  # metadata of a fixed_size_binary feature field


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


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A summary of the footers of a store.

    Attributes:
        shards: the readable shards. rows: of each of them. width: dx, the same in all of them.
        failures: the other shards.
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
        footers = list(pool.map(lambda shard: _try_footer(shard, store.columns), store.shards))
    shards: list[Shard] = []
    rows: list[int] = []
    failures: list[ShardFailure] = []
    width, first = 0, ""
    for shard, footer in zip(store.shards, footers, strict=True):
        if isinstance(footer, RaypqError):
            failures.append(ShardFailure(shard=shard.uri, reason=str(footer)))
            continue
        count, shard_width = footer
        if width and shard_width and shard_width != width:
            reason = f"expected width {width} as in {first}, found width {shard_width}"
            failures.append(ShardFailure(shard=shard.uri, reason=reason))
            continue
        if not width and shard_width:
            width, first = shard_width, shard.uri
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
    """Total rows of shards, by their footers; an unreadable shard counts as 0."""

    def rows(shard: Shard) -> int:
        try:
            with open_shard(shard, Columns()) as file:
                return file.rows
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
    with open_shard(shard, columns) as file:
        rows = file.rows
        where = f"{shard.uri}, column '{columns.feature}'"
        layout = _layout(file, columns, None, shard.uri)
        if layout.side is not None:
            return rows, images.row_width(layout.side)
        if layout.width is not None or not rows or layout.sized:
            return rows, layout.width or 0
        first = next(file.batches(1, [columns.feature]))
        return rows, arrays.matrix(first.column(0), width=columns.width, where=where).shape[1]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The layout of a feature column.

    Attributes:
        width: values of a vector, if known before a row is read.
        side: pixels on a side, if it holds encoded images.
        sized: whether it is fixed_size_binary, whose size does not determine the width.
    """

    width: int | None
    side: int | None = None
    sized: bool = False


def _layout(file: ShardFile, columns: Columns, width: int | None, uri: str) -> _Layout:
    """The layout of a feature column; ``width`` is the model's dx, if there is a model.

    Raises:
        InputError: bytes that may be images or vectors.
    """
    field = file.field(columns.feature)
    where = f"{uri}, column '{columns.feature}'"
    arrays.check_extension(field, where)
    if arrays.is_bfloat16(field.type):
        nothing = pa.ExtensionArray.from_storage(field.type, pa.array([], field.type.storage_type))
        return _Layout(width=arrays.matrix(nothing, width=width, where=where).shape[1])
    kind = field.type.storage_type if isinstance(field.type, pa.ExtensionType) else field.type
    known = width or columns.width or stored_width(field)
    if pa.types.is_fixed_size_binary(kind):
        return _Layout(width=known, sized=True)
    if arrays.is_bytes(kind):
        if columns.width is not None or _are_vectors(file, columns, width, where):
            return _Layout(width=known)
        return _Layout(width=None, side=_side(columns, width, where))
    if pa.types.is_fixed_size_list(kind):
        empty = pa.array([], kind)
        return _Layout(width=arrays.matrix(empty, width=width, where=where).shape[1])
    return _Layout(width=known)


def _are_vectors(file: ShardFile, columns: Columns, width: int | None, where: str) -> bool:
    """Whether byte strings are vectors rather than encoded images.

    Raises:
        InputError: they are no images, and the width of the vectors is not known.
    """
    if columns.image_size is not None or not file.rows:
        return False
    first = next(file.batches(_SAMPLED, [columns.feature])).column(0)
    values = [value for value in first.to_pylist() if value]
    sizes = {len(value) for value in values}
    if not values or len(sizes) > 1:
        return False
    size = sizes.pop()
    if width is not None and size in (2 * width, 4 * width):
        return not any(images.is_image(value, signed=True) for value in values)
    if size % 4 or columns.bad_images or any(images.is_image(value) for value in values):
        return False
    raise InputError(
        where,
        expected="encoded images"
        if width is None
        else f"encoded images, or vectors of width {width} ({4 * width} or {2 * width} bytes)",
        found=f"{size} bytes a row that are no image; if they are {size // 4} float32 values, "
        f"say so with --feature-width {size // 4} (columns.width)",
    )


def _side(columns: Columns, width: int | None, where: str) -> int:
    """Pixels on a side of the images in a column: from the model's width, or the job's settings."""
    if width is not None:
        return images.side_of(width, where=where)
    if columns.image_size is None:
        raise InputError(
            where,
            expected="a size in pixels to read images (--image-size, columns.image_size)",
            found="none",
        )
    return columns.image_size


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
        layout = _layout(file, columns, width, shard.uri)
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
            labels = arrays.strings(batch.column(columns.label), where=where, nulls=True, row0=row)
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


def kind_of_ids(file: ShardFile, columns: Columns, rule: IdRule | None) -> ids.IdKind:
    """The type of a shard's ids; for a shard without rows, that of the store.

    Raises:
        InputError: no such column, several, a type that ids cannot have, or another type than that
            of the store.
    """
    kind = file.field(columns.id).type
    where = f"{file.uri}, column '{columns.id}'"
    if not file.rows:  # the type of an empty column means nothing
        is_integer = pa.types.is_integer(arrays.plain_type(kind))
        return rule.kind if rule else "int64" if is_integer else "string"
    if rule is not None:
        _check_made(file, columns, rule)
    id_kind = ids.kind_of(kind, where=where, old=rule is not None and rule.old)
    if id_kind is None:  # only nulls; reading the first row raises
        return "string" if rule is None else rule.kind
    if rule is not None:
        ids.check(id_kind, rule, where=where, found=kind)
    return id_kind


def _check_made(file: ShardFile, columns: Columns, rule: IdRule) -> None:
    """Refuses ids made of file and row beside ids from a column, and the reverse.

    Raises:
        InputError: naming the column.
    """
    made = rule.made
    if made is None:  # the store is continued: only its ids can tell
        made = file.ids_are_made and rule.kind == "string" and _holds_made_ids(rule.origin)
        if not file.ids_are_made:
            return
    if made == file.ids_are_made:
        return
    names = ", ".join(name for name in file.schema.names if made or name != columns.id)
    raise InputError(
        file.uri,
        expected=f"no column '{columns.id}', as in {rule.origin}, whose ids are made of file and "
        "row"
        if made
        else f"a column '{columns.id}', as in {rule.origin}",
        found=f"columns {names}",
    )


def _holds_made_ids(uri: str) -> bool:
    """Whether the first id of a code file is made of file and row."""
    with open_parquet(uri) as file:
        first = next(file.iter_batches(batch_size=1, columns=["id"]), None)
    return first is not None and is_made_id(str(first.column(0)[0].as_py()))


def has_labels(file: ShardFile, columns: Columns) -> bool:
    """Whether a shard has labels.

    A column of the type null, which some writers use for a column of nulls, counts as none.

    Raises:
        InputError: several columns of that name.
    """
    if not file.has(columns.label):
        return False
    kind = file.field(columns.label).type
    return not pa.types.is_null(arrays.plain_type(kind))


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


def stored_width(field: pa.Field) -> int | None:
    """The width in the metadata of a fixed_size_binary field, where ``raypq repack`` writes it."""
    width = (field.metadata or {}).get(WIDTH_NOTE, b"")
    return int(width) if width.isdigit() else None


def feature_schema(*, id_type: pa.DataType, label: bool, width: int) -> pa.Schema:
    """The schema of feature files in the fastest layout: fixed_size_binary, with the width."""
    note = {WIDTH_NOTE: str(width)}
    fields = [
        pa.field("id", id_type, nullable=False),
        pa.field("feature", pa.binary(4 * width), nullable=False, metadata=note),
    ]
    return pa.schema([*fields, pa.field("label", pa.string())] if label else fields)
