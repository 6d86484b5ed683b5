"""Checks of the values in a manifest, which other tools may have written.

All shards are checked at once, so that a million of them take no time to speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypq.data.store import names
from raypq.data.store.shard_writer import FOLDER as DATA
from raypq.errors import InputError

_OPTIONAL = ("source_sha256", "ids", "stats")  # columns that a receipt may lack


def check_values(uri: str, table: pa.Table) -> None:
    """Checks the values of columns; those of removed shards are nulls.

    Raises:
        InputError: naming the column.
    """
    removed = table.column("removed")
    live = table.filter(pc.invert(removed)) if pc.any(removed).as_py() else table
    for name in table.column_names:
        values = table.column(name) if name in ("shard", "removed") else live.column(name)
        if fault := _fault(name, values):
            raise InputError(f"{uri}, column '{name}'", expected=fault[0], found=fault[1])


def _fault(name: str, values: pa.ChunkedArray) -> tuple[str, str] | None:
    """What is expected of a column's values and what was found; None where they are right."""
    if values.null_count and name not in _OPTIONAL:
        return "a value for each shard", "none"
    if name == "shard" and len(values) and not _is_ascending(values):
        return "each shard once, in order", "another order"
    if name == "path" and (path := repeated(values)):
        return "each file once", f"'{path}' more than once"
    if name in ("bytes", "rows") and len(values) and pc.min(values).as_py() < 0:
        return "numbers from 0 on", str(pc.min(values))
    if name in ("model", "work", "shard", "path", "ids"):
        return _name_fault(name, values)
    return None


def repeated(values: pa.Array | pa.ChunkedArray) -> str | None:
    """A text that a column has more than once, if there is one."""
    if pc.count_distinct(values).as_py() == len(values):
        return None
    counts = pc.value_counts(values)
    several = counts.filter(pc.greater(counts.field("counts"), 1))
    return str(several.field("values")[0])


def _is_ascending(values: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.less(values[:-1], values[1:]), min_count=0).as_py())


_SAFE = {  # texts that need no further check
    "shard": r"^[A-Za-z0-9][A-Za-z0-9_.=,+-]*$",
    "path": rf"^{DATA}/[A-Za-z0-9][A-Za-z0-9_.=,+-]*$",
}


def _name_fault(name: str, values: pa.ChunkedArray) -> tuple[str, str] | None:
    if name in _SAFE:
        safe = pc.match_substring_regex(values, _SAFE[name])
        unknown = values.filter(pc.invert(safe)).to_pylist()
    else:
        unknown = pc.unique(values).to_pylist()
    for value in unknown:
        try:
            _CHECKS[name](value)
        except ValueError as error:
            return "a name that stays inside the store", str(error)
    return None


def _check_path(value: str) -> None:
    names.check_path(value)
    folder, _, stem = value.partition("/")
    if folder != DATA or "/" in stem:
        raise ValueError(f"expected paths {DATA}/<name>, found {value!r}")


def _check_ids(value: str | None) -> None:
    if value not in (None, "int64", "string"):
        raise ValueError(f"expected int64 or string, found {value!r}")


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "shard": names.check_stem,
    "path": _check_path,
    "model": names.check_id,
    "work": names.check_id,
    "ids": _check_ids,
}
