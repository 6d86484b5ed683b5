"""Tensors of Hugging Face datasets: nested lists of one shape, read as flat lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.data.layouts import arrow_types
from raypq.errors import InputError


def is_tensor(field: pa.Field) -> bool:
    """Whether a column is a tensor of Hugging Face datasets (``Array2D`` and so on): nested lists
    of one shape."""
    if not arrow_types.extension_name(field).startswith("datasets."):
        return False
    kind = arrow_types.storage_type(field.type)
    return arrow_types.is_list(kind) and arrow_types.is_list(kind.value_type)


def tensor_values(field: pa.Field) -> pa.DataType:
    """The type of a tensor's rows as ``flat_rows`` gives them."""
    kind = arrow_types.storage_type(field.type)
    while arrow_types.is_list(kind):
        kind = kind.value_type
    return pa.large_list(kind)


def flat_rows(column: pa.Array, *, where: str, row0: int = 0) -> pa.LargeListArray:
    """Tensors as flat lists, in C order.

    Raises:
        InputError: a null, or a tensor whose lists differ in length, naming the row.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    arrow_types.refuse_nulls(column, where, row0, expected="a vector")
    lengths = list_lengths(column)
    column = column.flatten()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    while arrow_types.is_list(column.type):
        refuse_null_values(column, rows, where, row0)
        inner = list_lengths(column)
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


def refuse_null_values(values: pa.Array, rows: NDArray[np.int64], where: str, row0: int) -> None:
    """Refuses nulls inside of lists.

    Args:
        rows: the row of each value, in its batch.

    Raises:
        InputError: naming the first such row.
    """
    if values.null_count:
        first = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]
        raise InputError(
            f"{where}, row {row0 + int(rows[first])}", expected="no nulls", found="a null value"
        )


def list_lengths(column: pa.Array) -> NDArray[np.int64]:
    """Values in each list of a column without nulls."""
    if pa.types.is_fixed_size_list(column.type):
        return np.full(len(column), column.type.list_size, np.int64)
    return pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
