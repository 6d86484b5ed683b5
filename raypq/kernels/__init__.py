"""Encode and scan, on the fastest path there is; every path gives the same answer.

``reference`` is the oracle, ``torch`` runs on any device. Shapes: U [N, D], C [M, K, d],
B [N, M] uint8, V [T, D]; D = M·d.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq.kernels.tables import Tables, build_tables, decode

__all__ = [
    "Tables",
    "build_tables",
    "decode",
    "encode",
    "set_threads",
    "topk_per_code",
    "topk_per_vector",
]


def encode(
    U: NDArray[np.floating], C: NDArray[np.floating], *, device: str = "cpu"
) -> NDArray[np.uint8]:
    """Codes [N, M] of U [N, M·d]: the nearest codeword of each part, ties to the lower index."""
    from raypq.kernels import torch as fast

    return fast.encode(U, C, device=device)


def topk_per_code(
    B: NDArray[np.uint8], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each code: scores and classes [N, min(k, T)], ties to the lower."""
    from raypq.kernels import torch as fast

    return fast.topk_per_code(B, tables, k, device=device)


def topk_per_vector(
    U: NDArray[np.float32], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As ``topk_per_code`` for vectors that were not compressed: the exact peer of the codes."""
    from raypq.kernels import torch as fast

    return fast.topk_per_vector(U, tables, k, device=device)


def set_threads(threads: int) -> None:
    """Sets the CPU threads of this process for NumPy's and torch's products."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)
