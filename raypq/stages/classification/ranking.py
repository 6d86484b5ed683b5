"""The best classes of codes and vectors, in groups of candidates and together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.stages.classification.class_groups import ClassGroup, Rows, TopK
from raypq.stages.classification.scorers import Group

_MORE = 4  # times as many are found for rows that need more


def rank(
    rows: Rows,
    groups: Mapping[str, Group],
    k: int,
    device: str,
) -> dict[str, TopK]:
    """The top k of each group for codes [n, M], or for uncompressed vectors [n, D].

    Of codes, for the smaller group only classes that may be among the top k of both are found, and
    always its best one.
    """
    whole = [group for group in groups.values() if isinstance(group, ClassGroup)]
    one_each = len(whole) == len(groups) and all(group.owner is None for group in whole)
    if rows.dtype != np.uint8 or not one_each:
        return {name: topk(rows, group, k, device) for name, group in groups.items()}
    tables = {name: group.tables for name, group in zip(groups, whole, strict=True)}
    names = sorted(groups, key=lambda name: -groups[name].T)
    largest = topk(rows, groups[names[0]], k, device)
    best = {names[0]: largest}
    for name in names[1:]:
        threshold = largest[0][:, -1] if largest[0].shape[1] == k else None
        best[name] = best_above(rows, tables[name], k, threshold, device)
    return {name: best[name] for name in groups}


def topk(rows: Rows, group: Group, k: int, device: str) -> TopK:
    """The top k classes of a group, ties to the lower class; a class with several prototypes has
    the score of its best one."""
    return group.topk(rows, k, device)


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
