"""Conversion of Arrow columns to NumPy arrays and back, by buffers rather than row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.errors import InputError

_VECTORS = "a vector column (fixed_size_list, list, large_list, fixed_size_binary or tensor)"
# Extension types of vectors: Arrow's tensor, those of Hugging Face datasets and of Ray Data.
_TENSORS = ("arrow.fixed_shape_tensor", "datasets.", "ray.data.arrow_tensor", "raypq.")
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
    if isinstance(column, pa.ExtensionArray):
        check_extension(pa.field("", column.type), where)
        stored, column = column.type, column.storage
        if is_bfloat16(stored):
            return _from_bfloat16(column, width, where, row0)
    kind = column.type
    if pa.types.is_fixed_size_binary(kind) or is_bytes(kind):
        return _from_binary(column, width, where, row0)
    if not is_list(kind):
        raise InputError(where, expected=_VECTORS, found=str(kind))
    refuse_nulls(column, where, row0, expected="a vector")
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        column = _without_views(column)
    if is_list(kind.value_type):
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
    if not name or name.startswith(_TENSORS) or is_bfloat16(field.type):
        return
    raise InputError(
        where,
        expected=_VECTORS,
        found=f"the extension type {name}, of which raypq does not know what its bytes mean; "
        "cast the values to float32",
    )


def is_tensor(field: pa.Field) -> bool:
    """Whether a column is a tensor of Hugging Face datasets (``Array2D`` and so on): nested lists
    of one shape."""
    if not extension_name(field).startswith("datasets."):
        return False
    kind = field.type
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return is_list(kind) and is_list(kind.value_type)


def tensor_values(field: pa.Field) -> pa.DataType:
    """The type of a tensor's rows as ``flat_rows`` gives them."""
    kind = field.type
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    while is_list(kind):
        kind = kind.value_type
    return pa.large_list(kind)


def flat_rows(column: pa.Array, *, where: str, row0: int = 0) -> pa.LargeListArray:
    """Tensors as flat lists, in C order.

    Raises:
        InputError: a null, or a tensor whose lists differ in length, naming the row.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    refuse_nulls(column, where, row0, expected="a vector")
    lengths = _list_lengths(column)
    column = column.flatten()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    while is_list(column.type):
        if column.null_count:
            refuse_nulls(column, where, row0, expected="a list of values")
        inner = _list_lengths(column)
        wrong = np.flatnonzero(inner != inner[:1])
        if len(wrong):
            raise InputError(
                f"{where}, row {row0 + rows[wrong[0]]}",
                expected=f"lists of {inner[0]} values",
                found=f"one of {inner[wrong[0]]}",
            )
        each = int(inner[0]) if len(inner) else 0
        lengths, rows, column = lengths * each, np.repeat(rows, each), column.flatten()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), column)


def _list_lengths(column: pa.Array) -> NDArray[np.int64]:
    if pa.types.is_fixed_size_list(column.type):
        return np.full(len(column), column.type.list_size, np.int64)
    return pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)


def is_bfloat16(kind: pa.DataType) -> bool:
    """Whether an extension type's name says that it stores a vector of bfloat16 in its bytes."""
    return (
        isinstance(kind, pa.BaseExtensionType)
        and "bfloat16" in extension_name(pa.field("", kind)).lower()
        and pa.types.is_fixed_size_binary(kind.storage_type)
        and kind.storage_type.byte_width % 2 == 0
        and kind.storage_type.byte_width > 0
    )


def _from_bfloat16(
    column: pa.Array, width: int | None, where: str, row0: int
) -> NDArray[np.float32]:
    """Bytes of bfloat16 as float32, exactly: its bits are the upper half of a float32."""
    refuse_nulls(column, where, row0, expected="a vector")
    size = column.type.byte_width
    if width is not None and size != 2 * width:
        raise InputError(where, expected=f"vectors of width {width}", found=str(size // 2))
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    data = data[column.offset * size : (column.offset + len(column)) * size]
    upper = data.copy().view("<u2").astype(np.uint32)
    return (upper << 16).view(np.float32).reshape(len(column), size // 2)


def _without_views(column: pa.Array) -> pa.LargeListArray:
    """A column of list views without nulls as lists; the cast of pyarrow 26 loses an offset."""
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(pc.list_value_length(column).to_numpy(zero_copy_only=False), out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), column.flatten())


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's list types: of fixed or variable length, views included."""
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def width_of(kind: pa.DataType) -> int:
    """Values of a vector, if its type gives them; else 0."""
    if is_bfloat16(kind):
        return int(kind.storage_type.byte_width) // 2
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    size = 0
    while is_list(kind):
        size = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
        kind = kind.value_type
    return size


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type holds byte strings of variable length."""
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _only_list(column: pa.Array, where: str, row0: int) -> pa.Array:
    """The one list that each row of a nested column holds (vectors stored as 1 × D)."""
    lengths = _list_lengths(column)
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
    refuse_nulls(column, where, row0, expected="a vector")
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


def finite_float32(
    X: NDArray[np.floating[Any]], *, where: str, ids: pa.Array | None = None, row0: int = 0
) -> NDArray[np.float32]:
    """``X`` as float32 with every value finite.

    Raises:
        InputError: NaN or Inf (also a float64 too large for float32), naming the row and its id.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        X = np.ascontiguousarray(X, dtype=np.float32)
        # One sum finds every NaN and Inf; values are checked only if it is not finite.
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


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array.

    For an extension type, ``combine_chunks`` returns a chunked array of one chunk.
    """
    combined = column.combine_chunks()
    return combined.combine_chunks() if isinstance(combined, pa.ChunkedArray) else combined


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The value type of a dictionary; text for a UUID or bytes of fixed size; any other type
    itself."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if _is_uuid(kind) or pa.types.is_fixed_size_binary(kind) else kind


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


def is_text(kind: pa.DataType) -> bool:
    """Whether a plain type holds text, or bytes that may be UTF-8."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or is_bytes(kind)
    )


def strings(column: pa.Array, *, where: str, nulls: bool, row0: int = 0) -> pa.StringArray:
    """A column of names or integers as strings.

    Integers become their decimal digits, UUIDs their canonical text (lower case, hyphens); bytes
    are decoded as UTF-8, which is how some writers store text.

    Args:
        nulls: whether nulls are allowed.

    Raises:
        InputError: another type, bytes that are not UTF-8, or a null that is not allowed.
    """
    plain = plain_type(column.type)
    if not (is_text(plain) or pa.types.is_integer(plain) or pa.types.is_null(plain)):
        raise InputError(
            where,
            expected="strings or integers",
            found=f"{column.type}; cast the column to text (VARCHAR) or to integers (BIGINT)",
        )
    if pa.types.is_dictionary(column.type):  # first, as a null may be among its values
        column = column.dictionary_decode()
    if not nulls:
        refuse_nulls(column, where, row0, expected="no nulls")
    if _is_uuid(column.type):
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


def _is_uuid(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def _uuid_text(stored: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """16 bytes a row as text: 8-4-4-4-12 hexadecimal digits."""
    return _hexadecimal(stored, hyphens=(8, 13, 18, 23))


def _hexadecimal(
    stored: pa.FixedSizeBinaryArray, *, hyphens: tuple[int, ...] = ()
) -> pa.StringArray:
    """Bytes of fixed size as lower-case hexadecimal digits, with hyphens at these positions."""
    size = stored.type.byte_width
    data = np.frombuffer(stored.buffers()[1] or b"", np.uint8)
    data = data[size * stored.offset : size * (stored.offset + len(stored))]
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
