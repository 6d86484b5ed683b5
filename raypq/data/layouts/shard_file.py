"""An open shard: the columns that a job names, wherever the layout keeps them.

A name is a column; or a path ``a.b`` into structs; or the bytes of an image struct {bytes, path},
as Hugging Face datasets write it. A label may be in the path of the file, as in
``label=n01440764/part-0.parquet``. Where a shard has no column ``id``, ids are made of its name and
the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypq import io_counters
from raypq.config import Columns
from raypq.data.layouts import bfloat16, image_files, tensors
from raypq.data.layouts.source import Source
from raypq.data.storage import Shard
from raypq.data.storage.parquet import check_column

_DEFAULT_ID = Columns().id
_NULL_KEY = "__HIVE_DEFAULT_PARTITION__"  # as Hive, Spark and Arrow write a null key
_IMAGE_BYTES = "bytes"  # the field of an image struct with the encoded image


class Convert(Protocol):
    """Reads an array in another type."""

    def __call__(self, column: pa.Array, *, where: str, row0: int) -> pa.Array: ...


@dataclass(frozen=True, kw_only=True)
class _Column:
    """Where a column comes from.

    Attributes:
        field: its name and type. path: names of fields, from a column downwards; empty for a
            column that is made.
        make: of a column that is made: called with the first row and their number.
        position: of a column that is read as it is stored, if all are read.
        convert: called with an array, to be read in another type.
        reads_files: whether the files that its values name are read.
    """

    field: pa.Field
    path: tuple[str, ...] = ()
    make: Callable[[int, int], pa.Array] | None = None
    position: int | None = None
    convert: Convert | None = None
    reads_files: bool = False


class ShardFile:
    """An open shard of any layout.

    Attributes:
        uri: of the shard. rows: their number. group_rows: see ``Source``.
        ids_are_made: whether ids are made of the shard's name and the row.
    """

    def __init__(self, source: Source, shard: Shard, columns: Columns) -> None:
        self._source, self._stem, self._columns = source, shard.stem, columns
        self._schema = source.schema
        self.uri = shard.uri
        self.group_rows = list(source.group_rows)
        self.rows = sum(self.group_rows)
        names = self._schema.names
        self.ids_are_made = columns.id == _DEFAULT_ID and _DEFAULT_ID not in names
        self._made: dict[str, _Column] = {}
        if self.ids_are_made:
            field = pa.field(columns.id, pa.string(), nullable=False)
            self._made[columns.id] = _Column(field=field, make=self._ids)
        key = _path_key(shard.uri, columns.label)
        if key is not None and not self.has(columns.label):
            value = pa.scalar(None if key == _NULL_KEY else key, pa.string())
            self._made[columns.label] = _Column(
                field=pa.field(columns.label, pa.string()),
                make=lambda _, rows: pa.repeat(value, rows),
            )

    @property
    def schema(self) -> pa.Schema:
        """All columns: those of the shard, then columns that are made or named by a path."""
        return pa.schema([column.field for column in self._all()])

    def has(self, name: str) -> bool:
        """Whether there is a column of this name (or several)."""
        names = self._schema.names
        return name in names or name in self._made or self._nested(name) is not None

    def field(self, name: str) -> pa.Field:
        """The field of a column.

        Raises:
            InputError: no such column, or several of the name.
        """
        return self._column(name).field

    def names_images(self, name: str) -> bool:
        """Whether a column is stored as the names of image files."""
        return self._column(name).reads_files

    def batches(
        self,
        size: int,
        columns: Sequence[str] | None = None,
        *,
        group: int | None = None,
        read_images: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of up to ``size`` rows of some columns (all by default), in order.

        Args:
            group: read this group only.
            read_images: read the files that a column of image files names; otherwise it names them.

        Raises:
            InputError: a column is missing or there are several of its name, or the shard is
                damaged.
        """
        wanted = self._wanted(columns)
        if not read_images:
            wanted = [_unread(column) for column in wanted]
        schema = pa.schema([column.field for column in wanted])
        row = 0 if group is None else sum(self.group_rows[:group])
        for batch in self._source.batches(self._paths(columns, wanted), size, group):
            values = [self._array(column, batch, row) for column in wanted]
            yield pa.RecordBatch.from_arrays(values, schema=schema)
            row += len(batch)

    def stream(
        self, size: int, columns: Sequence[str] | None = None, *, read_images: bool = True
    ) -> Iterator[pa.RecordBatch]:
        """As ``batches``; adds to ``io_counters``."""
        stored = self._source.row_bytes(self._paths(columns, self._wanted(columns)))
        for batch in self.batches(size, columns, read_images=read_images):
            io_counters.add(len(batch), stored * len(batch))
            yield batch

    def take(
        self, rows: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Some rows, in ascending order, as a batch each; adds to ``io_counters``.

        Raises:
            InputError: as ``batches``.
        """
        wanted = self._wanted(columns)
        paths = self._paths(columns, wanted)
        schema = pa.schema([column.field for column in wanted])
        stored = self._source.row_bytes(paths)
        for row, batch in zip(rows, self._source.take(paths, rows), strict=True):
            io_counters.add(1, stored)
            values = [self._array(column, batch, row) for column in wanted]
            yield pa.RecordBatch.from_arrays(values, schema=schema)

    def _wanted(self, columns: Sequence[str] | None) -> list[_Column]:
        if columns is None:
            return self._all()
        return [self._column(name) for name in dict.fromkeys(columns)]

    def _paths(self, columns: Sequence[str] | None, wanted: Sequence[_Column]) -> list[str] | None:
        """What to read of the source; None for all columns."""
        if columns is None:
            return None
        return list(dict.fromkeys(".".join(column.path) for column in wanted if column.path))

    def _all(self) -> list[_Column]:
        """Every column; those that the job does not name are read as they are stored."""
        of_job = [self._columns.id, self._columns.feature, self._columns.label]
        named = {name: self._column(name) for name in of_job if self.has(name)}
        stored = [
            named.get(field.name) or _Column(field=field, position=position)
            for position, field in enumerate(self._schema)
        ]
        names = self._schema.names
        return [*stored, *(column for name, column in named.items() if name not in names)]

    def _column(self, name: str) -> _Column:
        column = self._made.get(name) or self._nested(name)
        if column is None:
            check_column(self.uri, self._schema.names, name)
        assert column is not None, "a name that one column has"
        return column

    def _nested(self, name: str) -> _Column | None:
        """A column of the shard by its name or path; None if there is none."""
        schema = self._schema
        whole = schema.names.count(name) == 1
        first, *rest = [name] if whole else name.split(".")
        if schema.names.count(first) != 1:
            return None
        field = schema.field(first)
        path = [first]
        for part in rest:
            if not pa.types.is_struct(field.type) or field.type.get_field_index(part) < 0:
                return None
            field = field.type.field(part)
            path.append(part)
        if pa.types.is_struct(field.type) and field.type.get_field_index(_IMAGE_BYTES) >= 0:
            field = field.type.field(_IMAGE_BYTES)
            path.append(_IMAGE_BYTES)
        if len(path) > 1:
            field = field.with_name(name).with_nullable(True)
        convert: Convert | None = None
        reads_files = isinstance(field.type, image_files.ImageFile)
        if tensors.is_tensor(field):
            field, convert = pa.field(name, tensors.tensor_values(field)), tensors.flat_rows
        elif bfloat16.is_bfloat16(field):
            field, convert = pa.field(name, bfloat16.float32_type(field)), bfloat16.as_float32
        elif reads_files:
            field = field.with_type(pa.large_binary())
        return _Column(field=field, path=tuple(path), convert=convert, reads_files=reads_files)

    def _array(self, column: _Column, batch: pa.RecordBatch, row: int) -> pa.Array:
        if column.position is not None:
            return batch.column(column.position)
        if column.path:
            first, *rest = column.path
            array = batch.column(first)
            array = pc.struct_field(array, rest) if rest else array
            if column.convert is not None:
                where = f"{self.uri}, column '{column.field.name}'"
                array = column.convert(array, where=where, row0=row)
            return image_files.read(array) if column.reads_files else array
        assert column.make is not None, "a column is stored or made"
        return column.make(row, len(batch))

    def _ids(self, row: int, rows: int) -> pa.StringArray:
        """Ids of rows, made of the shard's name and the row."""
        numbers = pa.array(np.arange(row, row + rows)).cast(pa.string())
        return pc.binary_join_element_wise(self._stem, numbers, ":")


def _unread(column: _Column) -> _Column:
    """A column of image files as it is stored."""
    if not column.reads_files:
        return column
    stored = column.field.with_type(image_files.ImageFile())
    return replace(column, field=stored, reads_files=False)


def _path_key(uri: str, name: str) -> str | None:
    """The value of a key ``name=value`` among the folders of a URI; None if there is none."""
    *folders, _ = uri.split("/")
    values = [part[len(name) + 1 :] for part in folders if part.startswith(f"{name}=")]
    if not values:
        return None
    try:
        return unquote(values[-1], errors="strict")
    except UnicodeDecodeError:  # as it is: replacing bytes would make other values equal
        return values[-1]
