"""Arrays of NumPy as a shard, with further columns from a Parquet file beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.layouts.source import Source
from raypq.errors import InputError

_GROUP_ROWS = 1 << 16  # of arrays without a Parquet file

Read = Callable[[int], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array of a file.

    Attributes:
        shape: (n,) or (n, d). dtype: of the file, in any byte order.
        open_at: called with a row; returns a function that reads the next so many rows.
    """

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
        columns: the arrays by the names of their columns; they come before columns of the same
            name in ``metadata``.

    Raises:
        InputError: another number of rows in ``metadata``.
    """

    def __init__(
        self, uri: str, columns: Mapping[str, StoredArray], metadata: Source | None
    ) -> None:
        self.uri, self._columns, self._metadata = uri, columns, metadata
        (self._rows,) = {array.shape[0] for array in columns.values()}
        if metadata is not None and sum(metadata.group_rows) != self._rows:
            raise InputError(
                metadata.uri,
                expected=f"{self._rows} rows, as {uri} has",
                found=f"{sum(metadata.group_rows)} rows",
            )

    @property
    def schema(self) -> pa.Schema:
        """Columns of the Parquet file, then the arrays."""
        fields = [] if self._metadata is None else list(self._metadata.schema)
        fields = [field for field in fields if field.name not in self._columns]
        return pa.schema(
            [*fields, *(pa.field(name, array.kind) for name, array in self._columns.items())]
        )

    @property
    def group_rows(self) -> Sequence[int]:
        """Row groups of the Parquet file; without one, blocks of rows."""
        if self._metadata is not None:
            return self._metadata.group_rows
        full, rest = divmod(self._rows, _GROUP_ROWS)
        return [_GROUP_ROWS] * full + [rest] * bool(rest)

    def batches(
        self, columns: Sequence[str], size: int, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        """See ``Source``."""
        names = [name for name in columns if name in self._columns]
        others = [name for name in columns if name not in self._columns]
        start = 0 if group is None else sum(self.group_rows[:group])
        rows = self._rows if group is None else self.group_rows[group]
        readers = [self._columns[name].open_at(start) for name in names]
        kinds = [self._columns[name].kind for name in names]
        for batch in self._others(others, size, group, rows):
            columns_read = [
                _array(read(len(batch)), kind) for read, kind in zip(readers, kinds, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(
                [*batch.columns, *columns_read], names=[*batch.schema.names, *names]
            )

    def _others(
        self, columns: Sequence[str], size: int, group: int | None, rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the Parquet file's columns; without any, batches of rows alone."""
        if columns and self._metadata is not None:
            yield from self._metadata.batches(columns, size, group)
            return
        for start in range(0, rows, size):
            nothing = pa.array([None] * min(size, rows - start), pa.struct([]))
            yield pa.RecordBatch.from_struct_array(nothing)

    def row_bytes(self, columns: Sequence[str]) -> float:
        """See ``Source``."""
        own = sum(self._columns[name].row_bytes for name in columns if name in self._columns)
        others = [name for name in columns if name not in self._columns]
        return own + (self._metadata.row_bytes(others) if self._metadata and others else 0.0)


def _array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if values.dtype.kind == "S":
        return pa.array([value.decode() for value in values.tolist()], kind)
    return pa.array(values, kind)
