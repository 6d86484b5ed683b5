"""Codebook updates of the reduction methods: seeding, sums, means, empty codewords."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import kernels

Floats = NDArray[np.float32]


_SEED_ROWS = 16  # rows for each codeword that k-means++ chooses among


def seed(U: Floats, M: int, K: int, rng: np.random.Generator, *, rounds: int = 10) -> Floats:
    """k-means++ per sub-space on a sample U [n, M·d], then ``rounds`` of Lloyd on it; [M, K, d].

    Seeds are chosen among ``_SEED_ROWS``·K of the rows: the choice costs K passes over them, and
    what more rows would add is added by Lloyd's algorithm at a fraction of that.
    """
    n = min(len(U), _SEED_ROWS * K)
    some = U if n == len(U) else U[np.sort(rng.choice(len(U), n, replace=False))]
    first, aims = rng.integers(n), rng.random((K - 1, M)).T
    C = kernels.spread(some, np.full(M, first), aims)
    for _ in range(rounds):
        B = kernels.encode(U, C)
        C = means(C, *sums(U, B, C), rng)
    return C


def sums(
    U: Floats, B: NDArray[np.uint8], C: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Per codeword: count [M, K], Σu [M, K, d] and Σ‖u − c‖² [M, K], all float64."""
    return kernels.accumulate(U, B, C)


def means(
    C: Floats,
    count: NDArray[np.float64],
    total: NDArray[np.float64],
    error: NDArray[np.float64],
    rng: np.random.Generator,
) -> Floats:
    """Codewords moved to the means of their rows (PQZSL eq. 19), empty ones re-seeded.

    An empty codeword makes B·Bᵀ singular. It takes half of the codeword with the largest error:
    the two stand one standard deviation apart, in a random direction.
    """
    d = C.shape[2]
    moved = np.divide(
        total, count[:, :, None], out=C.astype(np.float64), where=count[:, :, None] > 0
    )
    for m, k in np.argwhere(count == 0):
        source = int(np.argmax(error[m]))
        if error[m, source] <= 0:  # fewer distinct rows than codewords: nothing left to split
            continue
        spread = np.sqrt(error[m, source] / max(count[m, source], 1.0))
        direction = rng.standard_normal(d)
        step = 0.5 * spread * direction / np.linalg.norm(direction)
        moved[m, k] = moved[m, source] + step
        moved[m, source] -= step
        error[m, source] /= 4
        error[m, k] = error[m, source]
    return moved.astype(np.float32)


def usage_entropy(count: NDArray[np.float64]) -> float:
    """Mean entropy of codeword usage over sub-codebooks, in bits; log2(K) when all are equal."""
    share: NDArray[Any] = count / np.maximum(count.sum(axis=1, keepdims=True), 1.0)
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return float(-(share * logs).sum(axis=1).mean())
