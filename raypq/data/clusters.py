"""Clusters of stored images: the cluster of each.

Columns: ``id``, ``cluster`` (from 0) and ``score``: squared distance to the centre, or similarity
with it. Rows are in the order of the code file.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd"}
_FORMAT = "1"


def schema(id_type: pa.DataType, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The schema of a clusters file."""
    fields = {"id": id_type, "cluster": pa.int32(), "score": pa.float32()}
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in fields.items()],
        metadata={"raypq.format": _FORMAT, **(metadata or {})},
    )
