"""Validation of a network: retrieval mAP among held-out rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq.config import Metric
from raypq.methods.gradient import Network
from raypq.metrics.ranking import mean_average_precision

_QUERY_SHARE = 0.25  # of held-out rows
_EMBED_ROWS = 1024


def retrieval_score(network: Network, x: Tensor, y: NDArray[np.integer], metric: Metric) -> float:
    """mAP among held-out rows x [n, dx]: the first quarter are queries, the others are stored.

    Asymmetric: queries are uncompressed, stored rows are decoded from their codes, or embedded
    where the network has no codebooks yet.
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
    query_vectors, stored = torch.cat(U), torch.cat(q)

    def similarity(u: Tensor, q: Tensor) -> Tensor:
        dot = u @ q.T
        if metric == "l2":
            return dot - 0.5 * q.square().sum(dim=1)
        return dot / q.norm(dim=1).clamp(min=1e-12) if metric == "cosine" else dot

    def score(part: slice) -> NDArray[np.floating]:
        scores = similarity(query_vectors[part], stored)
        if not torch.isfinite(scores).all():
            scores = similarity(query_vectors[part].double(), stored.double())
        return scores.cpu().numpy()

    return mean_average_precision(score, y[:queries], y[queries:])
