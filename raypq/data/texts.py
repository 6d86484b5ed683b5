"""Columns of text: names, UUIDs, bytes, and integers as their digits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypq.data.layouts import arrow_types
from raypq.errors import InputError


def strings(column: pa.Array, *, where: str, nulls: bool, row0: int = 0) -> pa.StringArray:
    """A column of names or integers as strings.

    Integers become their decimal digits, UUIDs their canonical text (lower case, hyphens); bytes
    are decoded as UTF-8, which is how some writers store text.

    Args:
        nulls: whether nulls are allowed.

    Raises:
        InputError: another type, bytes that are not UTF-8, or a null that is not allowed.
    """
    plain = arrow_types.plain_type(column.type)
    if not (arrow_types.is_text(plain) or pa.types.is_integer(plain) or pa.types.is_null(plain)):
        raise InputError(
            where,
            expected="strings or integers",
            found=f"{column.type}; cast the column to text (VARCHAR) or to integers (BIGINT)",
        )
    if pa.types.is_dictionary(column.type):  # first, as a null may be among its values
        column = column.dictionary_decode()
    if not nulls:
        arrow_types.refuse_nulls(column, where, row0, expected="no nulls")
    if arrow_types.is_uuid(column.type):
        return _uuid_text(column.storage)
    if pa.types.is_fixed_size_binary(column.type):
        return _hexadecimal(column)
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        row, value = next(
            (row, scalar.as_py()) for row, scalar in enumerate(column) if not _is_utf8(scalar)
        )
        raise InputError(
            f"{where}, row {row0 + row}",
            expected="text, or bytes of UTF-8",
            found=f"the bytes {value[:16].hex()}; write them as text, in hexadecimal",
        ) from None


def _uuid_text(stored: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """16 bytes a row as text: 8-4-4-4-12 hexadecimal digits."""
    return _hexadecimal(stored, hyphens=(8, 13, 18, 23))


def _hexadecimal(
    stored: pa.FixedSizeBinaryArray, *, hyphens: tuple[int, ...] = ()
) -> pa.StringArray:
    """Bytes of fixed size as lower-case hexadecimal digits, with hyphens at these positions."""
    size = stored.type.byte_width
    data = arrow_types.fixed_bytes(stored).reshape(-1)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    width = 2 * size + len(hyphens)
    text = np.full((len(stored), width), ord("-"), np.uint8)
    positions = np.delete(np.arange(width), hyphens)
    text[:, positions[0::2]] = digits[data >> 4].reshape(-1, size)
    text[:, positions[1::2]] = digits[data & 15].reshape(-1, size)
    offsets = np.arange(len(stored) + 1, dtype=np.int32) * width
    strings = pa.StringArray.from_buffers(len(stored), pa.py_buffer(offsets), pa.py_buffer(text))
    return pc.if_else(stored.is_valid(), strings, None) if stored.null_count else strings


def _is_utf8(value: pa.Scalar) -> bool:
    try:
        value.cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True
