"""The normaliser of a softmax over classes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.kernels.tables import Tables
from raypq.kernels.torch import best_of_class

_BUDGET = 128 << 20  # bytes of a block of scores


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
    W = torch.from_numpy(tables.W).to(device)
    bias = torch.from_numpy(tables.bias).to(device)
    classes = None if owner is None else torch.from_numpy(owner).to(device)
    T = 0 if owner is None or not len(owner) else int(owner[-1]) + 1
    best, total = np.empty(len(Q)), np.empty(len(Q))
    step = max(1, _BUDGET // (8 * max(1, tables.T)))
    for start in range(0, len(Q), step):
        rows = slice(start, start + step)
        by_row, offset = (
            torch.from_numpy(term).to(device)[:, None] for term in tables.row_terms(squared[rows])
        )
        q = torch.from_numpy(np.ascontiguousarray(Q[rows])).to(device)
        score = (q @ W.T).double() * by_row + offset + bias
        if classes is not None:
            score = best_of_class(score, classes, T)
        top = score.amax(dim=1)
        best[rows] = top.cpu().numpy()
        total[rows] = torch.logsumexp(scale * (score - top[:, None]), dim=1).cpu().numpy()
    return best, total
