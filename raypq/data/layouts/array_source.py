"""Arrays of NumPy as a shard, with further columns from a Parquet file beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.layouts.source import Source, blocks, take_from_groups
from raypq.errors import InputError

Read = Callable[[int], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array of a file.

    Attributes:
        where: names the file and array in errors.
        shape: (n,) or (n, d). dtype: of the file, in any byte order.
        open_at: called with a row; returns a function that reads the next so many rows.
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open_at: Callable[[int], Read]

    @property
    def kind(self) -> pa.DataType:
        """The Arrow type of a row."""
        if self.dtype.kind in "US":
            return pa.string()
        value = pa.from_numpy_dtype(self.dtype.newbyteorder("="))
        return pa.list_(value, self.shape[1]) if len(self.shape) == 2 else value

    @property
    def row_bytes(self) -> float:
        """Bytes of a row, uncompressed."""
        return float(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


class ArraySource:
    """A shard of arrays with one row count, and of a Parquet file with as many rows.

    Args:
        columns: the arrays by the names of their columns.

    Raises:
        InputError: another number of rows in ``metadata``, or a column of an array's name.
    """

    def __init__(
        self, uri: str, columns: Mapping[str, StoredArray], metadata: Source | None
    ) -> None:
        self.uri, self._columns, self._metadata = uri, columns, metadata
        (self._rows,) = {array.shape[0] for array in columns.values()}
        if metadata is None:
            return
        if both := [name for name in columns if name in metadata.schema.names]:
            raise InputError(
                metadata.uri,
                expected=f"no column '{both[0]}', since the array in {uri} is that column",
                found=f"one; name the Parquet files by a glob (*.parquet) to encode them, or move "
                f"{uri} elsewhere",
            )
        if sum(metadata.group_rows) != self._rows:
            raise InputError(
                metadata.uri,
                expected=f"{self._rows} rows, as {uri} has",
                found=f"{sum(metadata.group_rows)} rows",
            )

    @property
    def schema(self) -> pa.Schema:
        """Columns of the Parquet file, then the arrays."""
        fields = [] if self._metadata is None else list(self._metadata.schema)
        return pa.schema(
            [*fields, *(pa.field(name, array.kind) for name, array in self._columns.items())]
        )

    @property
    def group_rows(self) -> Sequence[int]:
        """Row groups of the Parquet file; without one, blocks of rows."""
        if self._metadata is not None:
            return self._metadata.group_rows
        return blocks(self._rows)

    def batches(
        self, columns: Sequence[str] | None, size: int, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        """See ``Source``."""
        names, others = self._divided(columns)
        start = 0 if group is None else sum(self.group_rows[:group])
        rows = self._rows if group is None else self.group_rows[group]
        arrays = [self._columns[name] for name in names]
        readers = [array.open_at(start) for array in arrays]
        row = start
        for batch in self._others(others, size, group, rows):
            values = [
                _array(read(len(batch)), array, row)
                for read, array in zip(readers, arrays, strict=True)
            ]
            fields = [pa.field(name, array.type) for name, array in zip(names, values, strict=True)]
            yield pa.RecordBatch.from_arrays(
                [*batch.columns, *values], schema=pa.schema([*batch.schema, *fields])
            )
            row += len(batch)

    def _divided(self, columns: Sequence[str] | None) -> tuple[Sequence[str], Sequence[str] | None]:
        """Columns that are arrays, and those of the Parquet file (None: all of them)."""
        if columns is None:
            return list(self._columns), None
        names = [name for name in columns if name in self._columns]
        return names, [name for name in columns if name not in self._columns]

    def _others(
        self, columns: Sequence[str] | None, size: int, group: int | None, rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the Parquet file's columns; without any, batches of rows alone."""
        if self._metadata is not None and columns != []:
            yield from self._metadata.batches(columns, size, group)
            return
        for start in range(0, rows, size):
            nothing = pa.array([None] * min(size, rows - start), pa.struct([]))
            yield pa.RecordBatch.from_struct_array(nothing)

    def take(self, columns: Sequence[str] | None, rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """See ``Source``."""
        return take_from_groups(self, columns, rows)

    def row_bytes(self, columns: Sequence[str] | None) -> float:
        """See ``Source``."""
        names, others = self._divided(columns)
        own = sum(self._columns[name].row_bytes for name in names)
        return own + (self._metadata.row_bytes(others) if self._metadata and others != [] else 0.0)


def _array(values: NDArray[Any], stored: StoredArray, row: int) -> pa.Array:
    """Rows of an array in Arrow.

    Raises:
        InputError: bytes or characters that are not UTF-8, naming the row.
    """
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if values.dtype.kind not in "US":
        return pa.array(values, stored.kind)
    texts = values.tolist()
    try:
        if values.dtype.kind == "S":
            texts = [text.decode() for text in texts]
        return pa.array(texts, stored.kind)
    except UnicodeError:
        at = next(at for at, text in enumerate(values.tolist()) if not _is_text(text))
        raise InputError(
            f"{stored.where}, row {row + at}",
            expected="text, or bytes of UTF-8",
            found=f"{values.tolist()[at]!a}; write the array as text",
        ) from None


def _is_text(value: str | bytes) -> bool:
    try:
        value.decode() if isinstance(value, bytes) else value.encode()
    except UnicodeError:
        return False
    return True
