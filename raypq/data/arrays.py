"""Conversion of Arrow columns to NumPy arrays and back, by buffers rather than row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq import kernels
from raypq.data.layouts import arrow_types, bfloat16, tensors
from raypq.errors import InputError

_MAX_EXACT = 1 << 24  # float32 holds all integers up to this


def matrix(
    column: pa.Array, *, width: int | None, where: str, row0: int = 0
) -> NDArray[np.floating[Any]]:
    """A vector column as an array [n, width], without a copy where Arrow's layout allows.

    Args:
        column: any list type of float16/32/64, or of integers that float32 holds exactly; lists
            of one such list (1 × D); fixed-shape tensor; or bytes of float16/float32, of fixed or
            variable size (then ``width`` is required).
        width: the width that every row must have; None takes what the first row has.
        where: names the file and column in errors.
        row0: row of the file at which this batch starts, for errors.

    Raises:
        InputError: another type, nulls, or a row of another width, naming the row.
    """
    if bfloat16.is_bfloat16(pa.field("", column.type)):
        column = bfloat16.as_float32(column, where=where, row0=row0)
    if isinstance(column, pa.ExtensionArray):
        arrow_types.check_extension(pa.field("", column.type), where)
        column = column.storage
    kind = column.type
    if pa.types.is_fixed_size_binary(kind) or arrow_types.is_bytes(kind):
        return _from_binary(column, width, where, row0)
    if not arrow_types.is_list(kind):
        raise InputError(where, expected=arrow_types.VECTORS, found=str(kind))
    arrow_types.refuse_nulls(column, where, row0, expected="a vector")
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        column = _without_views(column)
    if arrow_types.is_list(kind.value_type):
        return matrix(_only_list(column, where, row0), width=width, where=where, row0=row0)
    _check_values(kind, where)
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
    X = values.to_numpy(zero_copy_only=True).reshape(len(column), width)
    return _from_integers(X, where, row0) if pa.types.is_integer(kind.value_type) else X


def _without_views(column: pa.Array) -> pa.LargeListArray:
    """A column of list views without nulls as lists; the cast of pyarrow 26 loses an offset."""
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(pc.list_value_length(column).to_numpy(zero_copy_only=False), out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), column.flatten())


def _only_list(column: pa.Array, where: str, row0: int) -> pa.Array:
    """The one list that each row of a nested column holds (vectors stored as 1 × D)."""
    lengths = tensors.list_lengths(column)
    wrong = np.flatnonzero(lengths != 1)
    if len(wrong):
        raise InputError(
            f"{where}, row {row0 + wrong[0]}",
            expected="a vector, or a list of one vector (1 × D)",
            found=f"a list of {lengths[wrong[0]]} lists; write one flat list a row",
        )
    return column.flatten()


def _check_values(kind: pa.DataType, where: str) -> None:
    value = kind.value_type
    if pa.types.is_floating(value) or pa.types.is_integer(value):
        return
    raise InputError(
        where,
        expected="float16, float32 or float64 values, or integers",
        found=f"{kind}; cast the values to float32",
    )


def _from_integers(X: NDArray[Any], where: str, row0: int) -> NDArray[np.float32]:
    """Integers [n, width] as float32, exactly."""
    if X.dtype.itemsize > 2:
        bad = np.flatnonzero(((X > _MAX_EXACT) | (X < -_MAX_EXACT)).any(axis=1))
        if len(bad):
            raise InputError(
                f"{where}, row {row0 + bad[0]}",
                expected="integers of at most 2²⁴, which float32 holds exactly",
                found=f"larger ones ({len(bad)} such row(s) in this batch); "
                "cast the values to float32",
            )
    return X.astype(np.float32)


def _from_binary(
    column: pa.Array, width: int | None, where: str, row0: int
) -> NDArray[np.floating[Any]]:
    if width is None:
        raise InputError(
            where,
            expected="a width in the settings (columns.width, --feature-width) to read "
            f"{column.type}",
            found=f"{column.type} and no width",
        )
    arrow_types.refuse_nulls(column, where, row0, expected="a vector")
    dtypes = {2 * width: np.float16, 4 * width: np.float32}
    if pa.types.is_fixed_size_binary(column.type):
        size = column.type.byte_width
        wrong = np.array([] if size in dtypes else [0])
        sizes = np.array([size])
        data = np.frombuffer(column.buffers()[1] or b"", np.uint8)
        start = column.offset * size
    else:
        column = column.cast(pa.large_binary())
        sizes = pc.binary_length(column).to_numpy(zero_copy_only=False)
        size = int(sizes[0]) if len(sizes) and sizes[0] in dtypes else 4 * width
        wrong = np.flatnonzero(sizes != size)
        data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
        start = np.frombuffer(column.buffers()[1], np.int64)[column.offset] if len(column) else 0
    if len(wrong):
        raise InputError(
            f"{where}, row {row0 + wrong[0]}",
            expected=f"{2 * width} or {4 * width} bytes for {width} float16 or float32 values",
            found=f"{sizes[wrong[0]]} bytes ({column.type})",
        )
    data = data[start : start + len(column) * size]
    X = data.view(dtypes[size]).reshape(len(column), width)
    return X if X.flags.aligned else X.copy()  # bytes may start anywhere in a buffer


def finite_float32(
    X: NDArray[np.floating[Any]], *, where: str, ids: pa.Array | None = None, row0: int = 0
) -> NDArray[np.float32]:
    """``X`` as float32 with every value finite.

    Raises:
        InputError: NaN or Inf (also a float64 too large for float32), naming the row and its id.
    """
    if X.dtype == np.float16:
        X, finite = kernels.widen(X)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            X = np.ascontiguousarray(X, dtype=np.float32)
            # One sum finds every NaN and Inf; values are checked only if it is not finite.
            finite = bool(np.isfinite(X.sum(dtype=np.float32)))
    if finite:
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
    if X.dtype == np.float16:
        return kernels.widen(X)[0]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(X, dtype=np.float32)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array.

    For an extension type, ``combine_chunks`` returns a chunked array of one chunk.
    """
    combined = column.combine_chunks()
    return combined.combine_chunks() if isinstance(combined, pa.ChunkedArray) else combined


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
