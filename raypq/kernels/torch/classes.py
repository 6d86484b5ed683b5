"""Classes that have several rows of the tables, of which the best one gives their score."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq.kernels import memory
from raypq.kernels.tables import Tables
from raypq.kernels.torch import pairs
from raypq.kernels.torch.best import TopK, by_width
from raypq.kernels.torch.bounds import FLOAT32, error_of, floor_of, product
from raypq.kernels.torch.sides import CodeSide, ResidentTables, TableSide


def topk_of_classes(
    q: NDArray[np.float32],
    squared: NDArray[np.float64],
    tables: Tables,
    owner: NDArray[np.int64],
    k: int,
    *,
    device: str = "cpu",
) -> TopK:
    """The k best classes of rows q [n, D] where a class has several rows W of the tables, of which
    the best one gives its score: scores and classes [n, min(k, T)], ties to the lower class.

    Args:
        squared: ‖q‖² of each row [n]. owner: class of each row of W [m], ascending from 0 to T − 1.
    """
    n, T = len(q), int(owner[-1]) + 1 if len(owner) else 0
    k = min(k, T)
    best, classes = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
    if not n or not k:
        return best, classes
    resident = ResidentTables.of(tables, device)

    def classify(rows: slice) -> None:
        codes = resident.vectors(q[rows], squared[rows])
        found = [
            _best_of_block(codes, block, owner[block.start : block.start + len(block)], k)
            for block in resident.blocks(tables)
        ]
        score = np.concatenate([part[0] for part in found], axis=1)
        of_class = np.concatenate([part[1] for part in found], axis=1)
        # A class may have rows in two blocks.
        best[rows], classes[rows] = _first_classes(score, of_class, k)

    row_bytes = 16 * resident.block_rows + 12 * q.shape[1]
    memory.in_parts(n, memory.rows_of(row_bytes, device), device, classify)
    return best, classes


def _best_of_class(score: Tensor, owner: Tensor, T: int) -> Tensor:
    """The largest score of each of T classes [n, T] from scores [n, m] whose classes are owner
    [m]."""
    best = score.new_full((len(score), T), -torch.inf)
    return best.scatter_reduce(1, owner.expand_as(score), score, "amax")


def _best_of_block(codes: CodeSide, block: TableSide, owner: NDArray[np.int64], k: int) -> TopK:
    """The k best of the classes of a block; fewer where it has fewer."""
    device = codes.vectors.device
    first, T = int(owner[0]), int(owner[-1] - owner[0]) + 1
    k = min(k, T)
    local = torch.from_numpy(owner - first).to(device)
    a, b = codes.operand(FLOAT32), block.operand(FLOAT32)
    rough, error = product(a, b), error_of(a, b, codes.vectors.shape[1], FLOAT32)
    top = _best_of_class(rough, local, T)
    # A row of W counts if it may be the best of its class, and the class among the k best.
    least = torch.maximum(top.topk(k).values[:, -1:], top[:, local])
    floor = floor_of(least, error[:, None], FLOAT32)
    # Negated, so that NaN (from overflow) stays a candidate.
    candidate = ~(rough < floor)
    rough = torch.where(candidate, rough.nan_to_num(nan=torch.inf), -torch.inf)
    best = np.empty((len(codes), k), np.float32), np.empty((len(codes), k), np.int64)
    for rows, columns in by_width(candidate, rough):
        row, place = candidate[rows[:, None], columns].nonzero().unbind(1)
        value = torch.full(columns.shape, -torch.inf, device=device)
        value[row, place] = pairs.scores(codes, block, rows[row], columns[row, place])
        out = rows.cpu().numpy()
        of_class = owner[columns.cpu().numpy()]
        best[0][out], best[1][out] = _first_classes(value.cpu().numpy(), of_class, k)
    return best


def _first_classes(score: NDArray[np.float32], of_class: NDArray[np.int64], k: int) -> TopK:
    """The k best classes of candidates with these scores [n, c]; k or more classes are among
    them."""
    order = np.lexsort((of_class, -score), axis=1)
    score, of_class = np.take_along_axis(score, order, 1), np.take_along_axis(of_class, order, 1)
    by_class = np.argsort(of_class, axis=1, kind="stable")
    ordered = np.take_along_axis(of_class, by_class, 1)
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty(new.shape, bool)
    np.put_along_axis(first, by_class, new, 1)
    kept = np.argsort(~first, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score, kept, 1), np.take_along_axis(of_class, kept, 1)
