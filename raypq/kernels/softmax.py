"""The normaliser of a softmax over classes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.kernels import memory
from raypq.kernels.tables import Tables
from raypq.kernels.torch.sides import ResidentTables


def log_sum_exp(
    Q: NDArray[np.float32],
    squared: NDArray[np.float64],
    tables: Tables,
    scale: float,
    *,
    owner: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best score [n] of rows Q [n, D] over all classes, and log Σ_t exp(scale·(score_t − best))
    [n].

    Scores are float32 products here, not the exact ones of the other kernels: the error of a logit
    is about 1e-7 of scale·‖q‖·‖w‖.

    Args:
        squared: ‖q‖² of each row [n].
        owner: class of each row of the tables [p], ascending, where a class has several, of which
            the best one gives its score.
    """
    resident = ResidentTables.of(tables, device)
    classes = None if owner is None else torch.from_numpy(owner).to(device)
    T = tables.T if owner is None else int(owner[-1]) + 1
    best, total = np.empty(len(Q)), np.empty(len(Q))

    def sum_up(rows: slice) -> None:
        codes = resident.vectors(Q[rows], squared[rows])
        score = torch.full((len(codes), T), -torch.inf, dtype=torch.float64, device=device)
        for block in resident.blocks(tables):
            columns = slice(block.start, block.start + len(block))
            part = (codes.vectors @ block.W.T).double() * codes.scale[:, None]
            part += codes.offset[:, None] + block.bias
            if classes is None:
                score[:, columns] = part
            else:  # a class may have rows in two blocks
                score.scatter_reduce_(1, classes[columns].expand_as(part), part, "amax")
        top = score.amax(dim=1)
        best[rows] = top.cpu().numpy()
        total[rows] = torch.logsumexp(scale * (score - top[:, None]), dim=1).cpu().numpy()

    row_bytes = 8 * (T + resident.block_rows)
    memory.in_parts(len(Q), memory.rows_of(row_bytes, device), device, sum_up)
    return best, total
