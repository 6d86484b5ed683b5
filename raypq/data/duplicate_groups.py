"""Groups of near-duplicates: the images of each, and the one that is kept.

Columns: ``group_id`` (the smallest id of the group), ``id``, ``size`` (images of the group),
``kept``, and ``score``: squared distance to the kept image, or similarity with it. Rows are ordered
by group; the kept one is first, the others follow by id.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd"}
_FORMAT = "1"


def schema(id_type: pa.DataType, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The schema of a groups file."""
    fields = {
        "group_id": id_type,
        "id": id_type,
        "size": pa.int64(),
        "kept": pa.bool_(),
        "score": pa.float32(),
    }
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in fields.items()],
        metadata={"raypq.format": _FORMAT, **(metadata or {})},
    )
