"""bfloat16, which Arrow has no type for: bytes whose extension type, or metadata, names it.

Lance stores vectors as lists of such values, other writers as bytes. Both are read as float32,
exactly: a bfloat16 is the upper half of a float32.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raypq.data.layouts import arrow_types
from raypq.data.layouts.tensors import list_lengths, refuse_null_values

_NAME = "bfloat16"


def is_bfloat16(field: pa.Field) -> bool:
    """Whether a column holds vectors of bfloat16: lists of 2 bytes each, or bytes."""
    kind = arrow_types.storage_type(field.type)
    if arrow_types.is_list(kind):
        return _is_named(kind.value_field) and _width(kind.value_type) == 2
    return _is_named(field) and _width(kind) > 0 and _width(kind) % 2 == 0


def float32_type(field: pa.Field) -> pa.DataType:
    """The type of a column of bfloat16 as ``as_float32`` gives it."""
    kind = arrow_types.storage_type(field.type)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.float32(), kind.list_size)
    if arrow_types.is_list(kind):
        return pa.large_list(pa.float32())
    return pa.list_(pa.float32(), _width(kind) // 2)


def as_float32(column: pa.Array, *, where: str, row0: int = 0) -> pa.Array:
    """A column of bfloat16 as lists of float32.

    Raises:
        InputError: a null, naming the row.
    """
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    arrow_types.refuse_nulls(column, where, row0, expected="a vector")
    kind = column.type
    if not arrow_types.is_list(kind):
        return pa.FixedSizeListArray.from_arrays(_values(column), kind.byte_width // 2)
    lengths = list_lengths(column)
    values = column.flatten()
    values = values.storage if isinstance(values, pa.ExtensionArray) else values
    refuse_null_values(values, np.repeat(np.arange(len(lengths)), lengths), where, row0)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_values(values), kind.list_size)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), _values(values))


def _values(stored: pa.FixedSizeBinaryArray) -> pa.FloatArray:
    """All bfloat16 of a column of bytes, as float32."""
    data = arrow_types.fixed_bytes(stored).reshape(-1)
    return pa.array((data.copy().view("<u2").astype(np.uint32) << 16).view(np.float32))


def _width(kind: pa.DataType) -> int:
    kind = arrow_types.storage_type(kind)
    return int(kind.byte_width) if pa.types.is_fixed_size_binary(kind) else 0


def _is_named(field: pa.Field) -> bool:
    return _NAME in arrow_types.extension_name(field).lower()
