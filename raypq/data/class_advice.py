"""What to expect of a class table: classes that nothing can tell apart, groups that are empty."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from raypq.data.classes import ClassTable

_SHOWN = 3
_ROWS = 8192  # embeddings that are read at once


def alike(table: ClassTable, chosen: NDArray[np.int64]) -> list[list[int]]:
    """Groups of classes with equal embeddings, each of two or more indices of ``chosen``, in table
    order."""
    if table.E is None or table.prototypes is not None:
        return []
    # Numbers, for a list of each of a million classes would take more memory than their vectors.
    digests = np.empty((len(chosen), 2), np.uint64)
    for start in range(0, len(chosen), _ROWS):
        E = np.ascontiguousarray(table.E[chosen[start : start + _ROWS]] + 0.0)  # -0 equals 0
        every = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in E)
        digests[start : start + len(E)] = np.frombuffer(every, np.uint64).reshape(-1, 2)
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones in table order
    ends = np.flatnonzero((np.diff(digests[order], axis=0) != 0).any(axis=1)) + 1
    groups = [group for group in np.split(chosen[order], ends) if len(group) > 1]
    return sorted(group.tolist() for group in groups)


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
    zero = _zero(table, chosen)
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


def _zero(table: ClassTable, chosen: NDArray[np.int64]) -> list[int]:
    """The classes whose embedding is zero."""
    if table.E is None:
        return []
    parts = np.split(chosen, range(_ROWS, len(chosen), _ROWS))
    return [int(t) for part in parts for t in part[~table.E[part].any(axis=1)]]
