"""Codebook updates of the reduction methods: seeding, means, empty codewords."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.data.codes import usage_bits

Floats = NDArray[np.float32]

_SEED_ROWS = 16  # rows that k-means++ draws from, for each codeword


def seed(U: Floats, M: int, K: int, rng: np.random.Generator, *, rounds: int = 10) -> Floats:
    """Codebooks [M, K, d] of a sample U [n, M·d]: k-means++, then ``rounds`` of Lloyd's algorithm.

    k-means++ costs K passes over its rows, so it gets only ``_SEED_ROWS``·K of them; Lloyd's
    algorithm, which is cheaper, gets all.
    """
    n = min(len(U), _SEED_ROWS * K)
    subset = U if n == len(U) else U[np.sort(rng.choice(len(U), n, replace=False))]
    first, draws = rng.integers(n), rng.random((K - 1, M)).T
    C = kernels.kmeans_pp_init(subset, np.full(M, first), draws)
    for _ in range(rounds):
        B = kernels.encode(U, C)
        C = means(C, *kernels.codeword_sums(U, B, C), rng)
    return C


def means(
    C: Floats,
    count: NDArray[np.float64],
    total: NDArray[np.float64],
    error: NDArray[np.float64],
    rng: np.random.Generator,
) -> Floats:
    """Codewords moved to the means of their rows (PQZSL eq. 19), empty ones re-seeded.

    Count [M, K], total [M, K, d] and error [M, K] as of ``kernels.codeword_sums``; error is
    overwritten. An empty codeword, which would make B·Bᵀ singular, splits the one with the largest
    error: the two are placed one standard deviation apart, in a random direction.
    """
    d = C.shape[2]
    moved = np.divide(
        total, count[:, :, None], out=C.astype(np.float64), where=count[:, :, None] > 0
    )
    for m, k in np.argwhere(count == 0):
        source = int(np.argmax(error[m]))
        if error[m, source] <= 0:  # fewer distinct rows than codewords: nothing left to split
            continue
        deviation = np.sqrt(error[m, source] / max(count[m, source], 1.0))
        direction = rng.standard_normal(d)
        step = 0.5 * deviation * direction / np.linalg.norm(direction)
        moved[m, k] = moved[m, source] + step
        moved[m, source] -= step
        error[m, source] /= 4
        error[m, k] = error[m, source]
    return moved.astype(np.float32)


def usage_entropy(count: NDArray[np.float64]) -> float:
    """Mean entropy of codeword usage over sub-codebooks, in bits."""
    return float(usage_bits(count).mean())
