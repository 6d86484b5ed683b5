"""Groups of near-duplicates: the images of each, and the one that is kept.

Columns: ``group_id`` (the smallest id of the group), ``id``, ``size`` (images of the group),
``kept``, and ``score``: squared distance to the kept image, or similarity with it. ``shard`` and
``row`` are the code file, by its name in the version, and the row in it. ``link`` is the position
in the group, from 0, of the image by which this one is connected with the kept one, and
``link_score`` the score of this pair; the kept one has 0 and null. The links of all groups are a
minimum spanning forest: those within a narrower threshold connect what that would connect.

Rows are ordered by group; the kept one is first, the others follow by id. Format 1 ends with
``score``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd"}
_FORMAT = "2"
_EXACT = 8  # sizes below this are counted one by one


def schema(id_type: pa.DataType, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The schema of a groups file."""
    fields = {
        "group_id": id_type,
        "id": id_type,
        "size": pa.int64(),
        "kept": pa.bool_(),
        "score": pa.float32(),
        "shard": pa.string(),
        "row": pa.int64(),
        "link": pa.int64(),
        "link_score": pa.float32(),
    }
    return pa.schema(
        [pa.field(name, kind, nullable=name == "link_score") for name, kind in fields.items()],
        metadata={"raypq.format": _FORMAT, **(metadata or {})},
    )


def count_sizes(sizes: NDArray[np.int64]) -> dict[int, int]:
    """How many groups [g] have each size; from 8 on, by the power of two from which it counts."""
    power = 1 << np.floor(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    kind, count = np.unique(np.where(sizes < _EXACT, sizes, power), return_counts=True)
    return dict(zip(kind.tolist(), count.tolist(), strict=True))


def add_sizes(counts: Iterable[dict[int, int]]) -> list[list[int]]:
    """The sums of several counts: pairs of a size and its number of groups, by size."""
    total: dict[int, int] = {}
    for count in counts:
        for size, groups in count.items():
            total[size] = total.get(size, 0) + groups
    return [[size, total[size]] for size in sorted(total)]
