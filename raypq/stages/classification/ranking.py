"""The best classes of codes and vectors, in groups of candidates and together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.stages.classification.scorers import ClassGroup

Rows = NDArray[Any]  # codes [n, M], uint8, or uncompressed vectors [n, D], float32
TopK = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and classes, both [n, k]
_MORE = 4  # times as many are found for rows that need more


def rank(
    rows: Rows,
    groups: Mapping[str, ClassGroup],
    k: int,
    device: str,
) -> dict[str, TopK]:
    """The top k of each group for codes [n, M], or for uncompressed vectors [n, D].

    Of codes, for the smaller group only classes that may be among the top k of both are found, and
    always its best one.
    """
    names = sorted(groups, key=lambda name: -groups[name].T)
    if rows.dtype != np.uint8 or any(group.owner is not None for group in groups.values()):
        return {name: topk(rows, group, k, device) for name, group in groups.items()}
    largest = topk(rows, groups[names[0]], k, device)
    best = {names[0]: largest}
    for name in names[1:]:
        threshold = largest[0][:, -1] if largest[0].shape[1] == k else None
        best[name] = best_above(rows, groups[name].tables, k, threshold, device)
    return {name: best[name] for name in groups}


def topk(rows: Rows, group: ClassGroup, k: int, device: str) -> TopK:
    """The top k classes of a group, ties to the lower class; a class with several prototypes has
    the score of its best one."""
    if group.owner is None:
        find = kernels.topk_per_code if rows.dtype == np.uint8 else kernels.topk_per_vector
        return find(rows, group.tables, k, device=device)
    return kernels.topk_of_classes(rows, group.tables, group.owner, k, device=device)


def best_above(
    B: NDArray[np.uint8],
    tables: kernels.Tables,
    k: int,
    threshold: NDArray[np.float32] | None,
    device: str = "cpu",
) -> TopK:
    """The top k classes of codes [n, M] with scores of at least ``threshold`` [n].

    The best class is always included; others below the threshold have the score −∞. Without a
    threshold, all top k classes.
    """
    if threshold is None:
        return kernels.topk_per_code(B, tables, k, device=device)
    k = min(k, tables.T)
    score = np.full((len(B), k), -np.inf, np.float32)
    classes = np.zeros((len(B), k), np.int64)
    rows, depth = np.arange(len(B)), 1
    while len(rows):
        part = kernels.topk_per_code(B[rows], tables, depth, device=device)
        score[rows, :depth], classes[rows, :depth] = part
        if depth == k:
            break
        # Few codes have many classes above: only where all were, four times as many are found.
        rows, depth = rows[part[0][:, -1] >= threshold[rows]], min(_MORE * depth, k)
    return score, classes
