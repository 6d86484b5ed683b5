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

    def compared(u: Tensor, q: Tensor) -> Tensor:
        found = u @ q.T
        if metric == "l2":
            return found - 0.5 * q.square().sum(dim=1)
        return found / q.norm(dim=1).clamp(min=1e-12) if metric == "cosine" else found

    def score(part: slice) -> NDArray[np.floating]:
        found = compared(asked[part], stored)
        if not torch.isfinite(found).all():
            found = compared(asked[part].double(), stored.double())
        return found.cpu().numpy()

    return mean_average_precision(score, y[:queries], y[queries:])
