"""Pairs of stored images: ``id_a``, ``id_b`` and ``score``, ordered by ids.

Within a store, ``id_a`` ≤ ``id_b``; of two stores, ``id_a`` is of the first. Where there are
several files, all pairs of an ``id_a`` are in one."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd"}
_FORMAT = "1"
_ORDER = [("id_a", "ascending"), ("id_b", "ascending"), ("score", "ascending")]


def schema(
    id_type: pa.DataType, other: pa.DataType, metadata: dict[str, str] | None = None
) -> pa.Schema:
    """The schema of a pairs file, by the types of both ids."""
    fields = {"id_a": id_type, "id_b": other, "score": pa.float32()}
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in fields.items()],
        metadata={"raypq.format": _FORMAT, **(metadata or {})},
    )


def table(a: pa.Array, b: pa.Array, score: pa.Array, *, within: bool) -> pa.Table:
    """Pairs of ids [n] with their scores [n]; within a store, the smaller id of each first."""
    columns = [a, b, score]
    if within:
        swap = pc.greater(a, b)
        columns = [pc.if_else(swap, b, a), pc.if_else(swap, a, b), score]
    return pa.Table.from_arrays(columns, schema=schema(a.type, b.type))


def ordered(found: pa.Table) -> pa.Table:
    """Pairs in order; independent of how they are divided into parts."""
    return found.sort_by(_ORDER)
