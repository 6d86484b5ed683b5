"""Arrow columns to NumPy arrays and back, through buffers, never row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.errors import InputError

FLOATS = "a vector column (fixed_size_list, list, large_list, fixed_size_binary or tensor)"


def matrix(
    column: pa.Array, *, width: int | None, where: str, row0: int = 0
) -> NDArray[np.floating[Any]]:
    """A vector column as an array [n, width], without a copy where Arrow's layout allows.

    Args:
        column: fixed_size_list, list or large_list of float16/32/64, fixed-shape tensor, or
            fixed_size_binary of float16/float32 (then ``width`` must be known).
        width: the width that every row must have; None takes what the first row has.
        where: names the file and column in errors.
        row0: row of the file at which this batch starts, for errors.

    Raises:
        InputError: another type, nulls, or a row of another width, naming the row.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        return _from_binary(column, width, where, row0)
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise InputError(where, expected=FLOATS, found=str(kind))
    if not pa.types.is_floating(kind.value_type):
        raise InputError(where, expected="float16, float32 or float64 values", found=str(kind))
    _refuse_nulls(column, where, row0)
    if not pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        width = int(lengths[0]) if width is None and len(lengths) else width
        wrong = np.flatnonzero(lengths != width)
        if len(wrong):
            raise InputError(
                f"{where}, row {row0 + wrong[0]}",
                expected=f"{width} values",
                found=f"{lengths[wrong[0]]} ({len(wrong)} such row(s) in this batch)",
            )
        width = width or 0
    elif width is not None and kind.list_size != width:
        raise InputError(where, expected=f"vectors of width {width}", found=str(kind.list_size))
    else:
        width = kind.list_size
    if len(column) and not width:
        raise InputError(where, expected="at least one value in a vector", found="none")
    values = column.flatten()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // width
        raise InputError(f"{where}, row {row0 + row}", expected="no nulls", found="a null value")
    return values.to_numpy(zero_copy_only=True).reshape(len(column), width)


def _from_binary(
    column: pa.Array, width: int | None, where: str, row0: int
) -> NDArray[np.floating[Any]]:
    size = column.type.byte_width
    if width is None:
        raise InputError(
            where,
            expected="a width in the settings (columns.width) to read fixed_size_binary",
            found=f"fixed_size_binary[{size}] and no width",
        )
    dtypes = {2 * width: np.float16, 4 * width: np.float32}
    if size not in dtypes:
        raise InputError(
            where,
            expected=f"{2 * width} or {4 * width} bytes for {width} float16 or float32 values",
            found=f"fixed_size_binary[{size}]",
        )
    _refuse_nulls(column, where, row0)
    data = np.frombuffer(column.buffers()[1], np.uint8)
    data = data[column.offset * size : (column.offset + len(column)) * size]
    return data.view(dtypes[size]).reshape(len(column), width)


def _refuse_nulls(column: pa.Array, where: str, row0: int) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(
            f"{where}, row {row0 + row}",
            expected="a vector",
            found=f"a null ({column.null_count} in this batch)",
        )


def finite_float32(
    X: NDArray[np.floating[Any]], *, where: str, ids: pa.Array | None = None, row0: int = 0
) -> NDArray[np.float32]:
    """``X`` as float32 with every value finite.

    Raises:
        InputError: NaN or Inf (also a float64 too large for float32), naming the row and its id.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        X = np.ascontiguousarray(X, dtype=np.float32)
        # One sum finds every NaN and Inf; only a doubtful batch is looked at value by value.
        if np.isfinite(X.sum(dtype=np.float32)):
            return X
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        row = int(bad[0])
        name = f" (id {ids[row].as_py()!r})" if ids is not None else ""
        raise InputError(
            f"{where}, row {row0 + row}{name}",
            expected="finite values",
            found=f"NaN or Inf ({len(bad)} such row(s) in this batch)",
        )
    return X


def any_float32(X: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """``X`` as float32, whatever its values; a float64 too large for it becomes Inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(X, dtype=np.float32)


def strings(column: pa.Array, *, where: str, nulls: bool, row0: int = 0) -> pa.StringArray:
    """A column of names or integers as strings.

    Raises:
        InputError: another type, or a null where none may be.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    ):
        raise InputError(where, expected="strings or integers", found=str(column.type))
    if column.null_count and not nulls:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{where}, row {row0 + row}", expected="no nulls", found="a null")
    return column.cast(pa.string())


def fixed_list(X: NDArray[Any], kind: pa.DataType | None = None) -> pa.FixedSizeListArray:
    """An array [n, width] as a fixed_size_list column."""
    values = pa.array(np.ascontiguousarray(X).reshape(-1), type=kind)
    return pa.FixedSizeListArray.from_arrays(values, X.shape[1])


def fixed_binary(B: NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Bytes [n, width] as a fixed_size_binary column."""
    B = np.ascontiguousarray(B, dtype=np.uint8)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(B.shape[1]), len(B), [None, pa.py_buffer(B)]
    )


def ragged(flat: pa.Array, n: int, k: int) -> pa.ListArray:
    """``n`` lists of ``k`` values each from ``n·k`` flat values."""
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * k), flat)
