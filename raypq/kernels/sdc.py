"""Symmetric distance computation (SDC): scores of pairs of codes by table look-ups.

    d(i, j) = Σ_m T[m, B_i[m], B_j[m]]      (symmetric distance, Jégou et al.; DPQ section 3.1.4)

Entries are float64 and symmetric, so d(i, j) = d(j, i) bit for bit. Equal codes have the l2
distance 0, exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq.config import Metric


class SymmetricTables:
    """Tables T [M, K, K] of codebooks C [M, K, d]: 8·M·K² bytes.

    Attributes:
        tolerance: bound on the difference between this score of a pair and that of ``Tables``,
            which rounds differently, in addition to ``2⁻²⁰`` of the score itself.
    """

    def __init__(self, C: NDArray[np.float32], metric: Metric) -> None:
        self.metric = metric
        self._norms = np.zeros(C.shape[:2])
        self.entries = np.zeros((*C.shape[:2], C.shape[1]))
        for j in range(C.shape[2]):
            x = C[:, :, j].astype(np.float64)
            a, b = x[:, :, None], x[:, None, :]
            self.entries += (a - b) ** 2 if metric == "l2" else a * b
            self._norms += x * x
        largest = float(self._norms.max(axis=1).sum())
        self.tolerance = 1e-6 if metric == "cosine" else 1e-9 * largest

    def __call__(self, A: NDArray[np.uint8], B: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scores [n] of pairs of codes A, B [n, M]: squared distances for l2, else similarities."""
        total, square_a, square_b = (np.zeros(len(A)) for _ in range(3))
        for m in range(A.shape[1]):
            total += self.entries[m, A[:, m], B[:, m]]
            if self.metric == "cosine":
                square_a += self._norms[m, A[:, m]]
                square_b += self._norms[m, B[:, m]]
        if self.metric == "cosine":
            length = np.sqrt(square_a * square_b)
            total = np.divide(total, length, out=np.zeros_like(total), where=length > 0)
        return total.astype(np.float32)
