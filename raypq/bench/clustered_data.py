"""Clustered vectors for the benches.

Data without structure would flatter a filter or starve it; these vectors lie around class centres
as embedded images do, and prototypes are the centres themselves with some error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.methods.support import codebooks

_SAMPLE = 8192


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Images U [N, D] around prototypes V [T, D], both float32."""

    U: NDArray[np.float32]
    V: NDArray[np.float32]


def embedded(*, N: int, T: int, D: int, seed: int = 0) -> Embedded:
    """T classes of rank min(D, 256), as semantic vectors are, and N images of them."""
    rng = np.random.default_rng(seed)
    rank = min(D, 256)
    basis = rng.standard_normal((rank, D)).astype(np.float32) / np.float32(np.sqrt(rank))
    V = rng.standard_normal((T, rank), dtype=np.float32) @ basis
    U = V[rng.integers(T, size=N)]
    U += 0.7 * rng.standard_normal((N, D), dtype=np.float32)
    return Embedded(U=U, V=V)


def quantizer(U: NDArray[np.float32], M: int, K: int, *, rounds: int = 4) -> NDArray[np.float32]:
    """Codebooks [M, K, d] of the rows U; a few rounds do where only speed is at stake."""
    return codebooks.seed(U, M, K, np.random.default_rng(0), rounds=rounds)


def quantized(
    U: NDArray[np.float32], M: int, K: int = 256
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Codebooks of a sample, and the codes [N, M] of all rows."""
    C = quantizer(U[:_SAMPLE], M, K)
    return C, kernels.encode(U, C)
