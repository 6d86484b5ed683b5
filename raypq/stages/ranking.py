"""Mean average precision over a full ranking, some queries at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq.config import Metric
from raypq.methods.gradient import Network

_BLOCK = 64  # queries scored at once
_QUERY_SHARE = 0.25  # of held-out rows
_EMBED_ROWS = 1024


def average_precision(
    score: NDArray[np.floating], relevant: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """AP of each query [Q] over all rows: score and relevant [Q, N]; ties go to the lower row.

    A query without a relevant row has AP 0.
    """
    order = np.argsort(-score, axis=1, kind="stable")
    hit = np.take_along_axis(relevant, order, axis=1)
    precision = np.cumsum(hit, axis=1) / np.arange(1, hit.shape[1] + 1)
    found = hit.sum(axis=1)
    total: NDArray[np.float64] = (precision * hit).sum(axis=1)
    return np.divide(total, found, out=np.zeros(len(score)), where=found > 0)


def mean_average_precision(
    score: Callable[[slice], NDArray[np.floating]],
    query_label: NDArray[np.integer],
    row_label: NDArray[np.integer],
) -> float:
    """mAP over all queries; ``score(part)`` gives the scores [q, N] of some of them."""
    total = 0.0
    for start in range(0, len(query_label), _BLOCK):
        part = slice(start, start + _BLOCK)
        relevant = query_label[part, None] == row_label[None, :]
        total += float(average_precision(score(part), relevant).sum())
    return total / max(1, len(query_label))


def retrieval_score(network: Network, x: Tensor, y: NDArray[np.integer], metric: Metric) -> float:
    """mAP among rows x [n, dx] held out: the first quarter of them asks for codes of the rest.

    Asymmetric: queries as the network puts them, the others decoded; where the network has no
    codebooks yet, those are embedded too.
    """
    queries = max(1, int(_QUERY_SHARE * len(x)))
    C = network.codebooks()
    U, q = [], []
    for part in torch.split(x[:queries], _EMBED_ROWS):
        U.append(network.queries(part).float())
    for part in torch.split(x[queries:], _EMBED_ROWS):
        B = None if C is None else network.codes(part)
        if C is None or B is None:
            q.append(network.embed(part).float())
        else:
            q.append(torch.stack([C[m, B[:, m]] for m in range(len(C))], dim=1).flatten(1))
    asked, stored = torch.cat(U), torch.cat(q)

    def score(part: slice) -> NDArray[np.floating]:
        found = asked[part] @ stored.T
        if metric == "l2":
            found = found - 0.5 * stored.square().sum(dim=1)
        elif metric == "cosine":
            found = found / stored.norm(dim=1).clamp(min=1e-12)
        return found.cpu().numpy()

    return mean_average_precision(score, y[:queries], y[queries:])
