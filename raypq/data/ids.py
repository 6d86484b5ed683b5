"""Ids of rows: int64 or text, one of the two throughout a store.

Every integer type is read as int64, every text type as text, a UUID as its canonical text, bytes
of fixed size as hexadecimal digits. Other types are refused: a float or a decimal may have lost
digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypq.data import texts
from raypq.data.layouts import arrow_types
from raypq.errors import InputError

IdKind = Literal["int64", "string"]  # as receipts name the types

INT64, TEXT = pa.int64(), pa.string()
_TYPES: dict[IdKind, pa.DataType] = {"int64": INT64, "string": TEXT}
_REMEDY = "write the column as integers or as text, such as CAST(id AS VARCHAR)"


@dataclass(frozen=True, kw_only=True)
class IdRule:
    """The type of all ids of a store.

    Attributes:
        kind: the type. origin: a file whose ids have it, for errors.
        old: whether the store is of an early raypq, which wrote integers other than int64 as text;
            new shards of the store are written in the same way.
        made: whether ids are made of file and row; None where that is not known, as for a store
            that is continued.
    """

    kind: IdKind
    origin: str = ""
    old: bool = False
    made: bool | None = None

    @property
    def type(self) -> pa.DataType:
        """The Arrow type."""
        return _TYPES[self.kind]


def kind_of(column: pa.DataType, *, where: str, old: bool = False) -> IdKind | None:
    """The type of the ids in a column of an Arrow type; None for the type null.

    Args:
        where: names the file and column in errors. old: see ``IdRule``.

    Raises:
        InputError: a type that ids cannot have.
    """
    plain = arrow_types.plain_type(column)
    if pa.types.is_null(plain):
        return None
    if pa.types.is_integer(plain):
        return "string" if old and plain != INT64 else "int64"
    if arrow_types.is_text(plain):
        return "string"
    raise InputError(where, expected="strings or integers", found=f"{column}; {_REMEDY}")


def receipt_kind(column: pa.DataType, rule: IdRule) -> IdKind | None:
    """The ``ids`` entry of a shard's receipt.

    None for integers that an old store keeps as text, so that the store remains marked as old.
    """
    if rule.old and pa.types.is_integer(arrow_types.plain_type(column)) and rule.kind == "string":
        return None
    return rule.kind


def read(column: pa.Array, kind: IdKind, *, where: str, row0: int = 0) -> pa.Array:
    """A column of ids as int64 or as strings.

    Args:
        kind: int64 accepts integers only; string accepts integers, too, as their decimal digits.
        row0: row of the file at which the column starts, for errors.

    Raises:
        InputError: a null, a value beyond int64, or bytes that are not UTF-8, naming the row.
    """
    if kind == "string":
        return texts.strings(column, where=where, nulls=False, row0=row0)
    if isinstance(column.type, pa.DictionaryType):  # first, as a null may be among its values
        column = column.dictionary_decode()
    arrow_types.refuse_nulls(column, where, row0, expected="no nulls")
    if column.type == INT64:
        return column
    if not pa.types.is_integer(column.type):
        raise InputError(where, expected="int64 ids", found=str(column.type))
    if pa.types.is_uint64(column.type):
        large = pc.greater(column, pa.scalar((1 << 63) - 1, pa.uint64()))
        bad = np.flatnonzero(large.to_numpy(zero_copy_only=False))
        if len(bad):
            row = int(bad[0])
            raise InputError(
                f"{where}, row {row0 + row}",
                expected="integers that int64 holds (at most 9223372036854775807)",
                found=f"{column[row].as_py()} ({len(bad)} such row(s) in this batch); "
                "write the ids of all shards as text: CAST(id AS VARCHAR)",
            )
    return column.cast(INT64)


def check(kind: IdKind, rule: IdRule, *, where: str, found: object) -> None:
    """Refuses a shard whose ids are not of the store's type.

    Args:
        found: the shard's type, as the error names it.

    Raises:
        InputError: naming both types, and a file of each.
    """
    if kind != rule.kind:
        raise InputError(
            where,
            expected=f"ids of one type in a store: {rule.kind}, as in {rule.origin}",
            found=f"{found}; write all shards alike, such as CAST(id AS VARCHAR)",
        )
