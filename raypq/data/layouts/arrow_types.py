"""Arrow types of columns: what a type holds, and which are refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.errors import InputError

VECTORS = "a vector column (fixed_size_list, list, large_list, fixed_size_binary or tensor)"
# Extension types of vectors: Arrow's tensor, those of Hugging Face datasets and of Ray Data.
_TENSORS = ("arrow.fixed_shape_tensor", "datasets.", "ray.data.arrow_tensor", "raypq.")


def extension_name(field: pa.Field) -> str:
    """The name of a column's extension type; empty for other types.

    Where no library registered the type, Arrow reads what it stores and leaves the name in the
    column's metadata.
    """
    if isinstance(field.type, pa.BaseExtensionType):
        opaque = getattr(field.type, "type_name", "")
        return f"{field.type.extension_name}{f' of {opaque}' if opaque else ''}"
    name = (field.metadata or {}).get(b"ARROW:extension:name", b"")
    return str(name.decode(errors="replace"))


def check_extension(field: pa.Field, where: str) -> None:
    """Refuses vectors of an extension type that is not known: its bytes may mean anything.

    Raises:
        InputError: naming the type.
    """
    name = extension_name(field)
    if not name or name.startswith(_TENSORS) or "bfloat16" in name.lower():
        return
    raise InputError(
        where,
        expected=VECTORS,
        found=f"the extension type {name}, of which raypq does not know what its bytes mean; "
        "cast the values to float32",
    )


def storage_type(kind: pa.DataType) -> pa.DataType:
    """What an extension type stores; any other type itself."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's list types: of fixed or variable length, views included."""
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def fixed_bytes(column: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """The bytes [n, width] of a fixed_size_binary column; those of nulls may be any."""
    width = column.type.byte_width
    raw = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return raw[column.offset * width : (column.offset + len(column)) * width].reshape(
        len(column), width
    )


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type holds byte strings of variable length."""
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether a plain type holds text, or bytes that may be UTF-8."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or is_bytes(kind)
    )


def width_of(kind: pa.DataType) -> int:
    """Values of a vector, if its type gives them; else 0."""
    kind = storage_type(kind)
    size = 0
    while is_list(kind):
        size = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
        kind = kind.value_type
    return size


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The value type of a dictionary; text for a UUID or bytes of fixed size; any other type
    itself."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if is_uuid(kind) or pa.types.is_fixed_size_binary(kind) else kind


def is_uuid(kind: pa.DataType) -> bool:
    """Whether a type is Arrow's extension type of UUIDs."""
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def without_views(schema: pa.Schema) -> pa.Schema:
    """A schema with string and binary views replaced by strings and binaries, at any depth.

    pyarrow's ``take`` does not support views. Extension types stay: a cast to their storage type
    changes the bytes.
    """
    fields = [field.with_type(_without_text_views(field.type)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def _without_text_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain_field(kind.value_field))
    return kind


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(_without_text_views(field.type))


def refuse_nulls(column: pa.Array, where: str, row0: int, *, expected: str) -> None:
    """Refuses a column with nulls.

    Raises:
        InputError: naming the first such row.
    """
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(
            f"{where}, row {row0 + row}",
            expected=expected,
            found=f"a null ({column.null_count} in this batch)",
        )
