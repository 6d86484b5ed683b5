"""What to expect of a class table: classes that nothing can tell apart, groups that are empty."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from raypq.data.classes import ClassTable

_SHOWN = 3


def alike(table: ClassTable, chosen: NDArray[np.int64]) -> list[list[int]]:
    """Groups of classes with equal embeddings, each of two or more indices of ``chosen``, in table
    order."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    if table.E is None or table.prototypes is not None:
        return []
    for t in chosen.tolist():
        row = np.ascontiguousarray(table.E[t] + 0.0)  # -0 equals 0
        groups[hashlib.blake2b(row.tobytes(), digest_size=16).digest()].append(t)
    return [group for group in groups.values() if len(group) > 1]


def advice(table: ClassTable, chosen: NDArray[np.int64]) -> list[str]:
    """Warnings on classes that are distinguished by their embeddings.

    Args:
        chosen: indices of these classes.
    """
    found = []
    if groups := alike(table, chosen):
        shown = "; ".join(
            " and ".join(f"{table.names[t]!r} ({table.ids[t].as_py()})" for t in group[:2])
            for group in groups[:_SHOWN]
        )
        found.append(
            f"{table.uri}: {sum(map(len, groups)):,} of {len(chosen):,} classes share their "
            f"embedding with another class, such as {shown}: of such classes only the first one "
            "can be predicted. Describe them by more than a name that they share (embed-classes "
            "--template, template, or several names a class)"
        )
    zero = [] if table.E is None else [t for t in chosen.tolist() if not table.E[t].any()]
    if zero:
        shown = ", ".join(repr(table.ids[t].as_py()) for t in zero[:_SHOWN])
        found.append(
            f"{table.uri}: the embedding of {len(zero):,} of {len(chosen):,} classes is zero, such "
            f"as of {shown}: they have the same score for every image. Write their embedding, or "
            "null where there is none"
        )
    if table.seen is not None and table.seen.all() and table.excluded:
        found.append(
            f"{table.uri}: all {len(table):,} classes with an embedding are seen "
            f"({len(table.excluded):,} have none), so no unseen class can be predicted"
        )
    return found
