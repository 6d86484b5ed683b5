"""Encode and scan, on the fastest path there is; every path gives the same answer, bit for bit.

``reference`` is the oracle, ``native`` the compiled CPU kernels, ``torch`` runs on any device.
Shapes: U [N, D], C [M, K, d], B [N, M] uint8, V [T, D]; D = M·d.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import machine
from raypq.errors import ConfigError
from raypq.kernels import native, reference
from raypq.kernels.tables import Tables, build_tables, check_scores, decode, merge_topk

__all__ = [
    "Tables",
    "accumulate",
    "active",
    "build_tables",
    "check_device",
    "check_scores",
    "decode",
    "encode",
    "heed_threads",
    "merge_topk",
    "native_threads",
    "scores",
    "set_threads",
    "spread",
    "threads",
    "topk_per_code",
    "topk_per_query",
    "topk_per_vector",
    "within",
]

_threads: int | None = None
_here = threading.local()  # threads of native kernels, where a thread has its own number


def encode(
    U: NDArray[np.floating], C: NDArray[np.floating], *, device: str = "cpu"
) -> NDArray[np.uint8]:
    """Codes [N, M] of U [N, M·d]: the nearest codeword of each part, ties to the lower index."""
    if _use_native(device):
        return native.encode(U, C, threads=threads())
    from raypq.kernels import torch as fast

    return fast.encode(U, C, device=device)


def topk_per_code(
    B: NDArray[np.uint8], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each code: scores and classes [N, min(k, T)], ties to the lower.

    Raises:
        InputError: scores beyond float32's range, here and in all that gives scores.
    """
    if _use_native(device):
        score, index = native.topk_per_code(B, tables, k, threads=threads())
    else:
        from raypq.kernels import torch as fast

        score, index = fast.topk_per_code(B, tables, k, device=device)
    return check_scores(score), index


def topk_per_query(
    B: NDArray[np.uint8], tables: Tables, k: int, *, row0: int = 0, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best codes of each query: scores and rows [T, min(k, N)], ties to the lower row.

    Rows count from ``row0``, so a store can be searched block by block and its answers joined
    with ``merge_topk``.
    """
    if _use_native(device):
        score, row = native.topk_per_query(B, tables, k, threads=threads())
    else:
        from raypq.kernels import torch as fast

        score, row = fast.topk_per_query(B, tables, k, device=device)
    return check_scores(score), row + row0


def scores(B: NDArray[np.uint8], tables: Tables) -> NDArray[np.float32]:
    """Every score [T, N] of codes B [N, M]: for what needs whole rankings."""
    if _use_native("cpu"):
        return check_scores(native.scores(B, tables, threads=threads()))
    with np.errstate(over="ignore"):  # is told below
        all_of_them = reference.scores(decode(B, tables.C), tables.squared_norms(B), tables)
    return check_scores(np.ascontiguousarray(all_of_them.T))


def within(
    B: NDArray[np.uint8],
    tables: Tables,
    least: float,
    *,
    after: bool = False,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Every (query, row, score) whose score is at least ``least`` (compared as float32).

    In the order of queries and then of rows; three arrays of one length. ``after``: only rows
    whose number is above the query's, for pairs among the codes themselves.
    """
    if _use_native(device):
        query, row, score = native.within(B, tables, least, after=after, threads=threads())
    else:
        from raypq.kernels import torch as fast

        query, row, score = fast.within(B, tables, least, after=after, device=device)
    return query, row, check_scores(score)


def topk_per_vector(
    U: NDArray[np.float32], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As ``topk_per_code`` for vectors that were not compressed: the exact peer of the codes."""
    check_device(device)
    from raypq.kernels import torch as fast

    score, index = fast.topk_per_vector(U, tables, k, device=device)
    return check_scores(score), index


def accumulate(
    U: NDArray[np.floating], B: NDArray[np.uint8], C: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Per codeword: count [M, K], Σu [M, K, d] and Σ‖u − c‖² [M, K], all float64.

    Rows are added in order, so the bits do not depend on the path or the threads.
    """
    if _use_native("cpu"):
        return native.accumulate(U, B, C, threads=threads())
    return reference.accumulate(U, B, C)


def spread(
    U: NDArray[np.floating], first: NDArray[np.int64], aims: NDArray[np.float64]
) -> NDArray[np.float32]:
    """k-means++ in every sub-space of U [n, M·d]: codewords C [M, K, d], which are rows of U.

    Args:
        first: the row that each sub-codebook begins with [M].
        aims: where each further draw falls in the running sum of squared distances [M, K − 1],
            from 0 to 1.
    """
    if _use_native("cpu"):
        return native.spread(U, first, aims, threads=threads())
    return reference.spread(U, first, aims)


def set_threads(threads: int) -> None:
    """Sets the CPU threads of this process: the native kernels', NumPy's and torch's."""
    global _threads
    import torch
    from threadpoolctl import threadpool_limits

    _threads = threads
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def apply_thread_limit() -> None:
    """Makes the calling thread heed what ``set_threads`` said before it began.

    OpenMP keeps the number for each thread, and a new one would take all cores for a product.
    """
    if _threads is not None:
        import torch

        torch.set_num_threads(_threads)


@contextmanager
def native_threads(threads: int) -> Iterator[None]:
    """As many threads for native kernels in the calling thread, whose answers do not depend on it.

    NumPy and torch keep theirs: the last bits of a product may follow the number of threads.
    """
    before = getattr(_here, "threads", None)
    _here.threads = threads
    try:
        yield
    finally:
        _here.threads = before


def threads() -> int:
    """The CPU threads that kernels use: as set, or as many as this process has CPUs."""
    here: int | None = getattr(_here, "threads", None)
    if here is not None:
        return here
    if _threads is not None:
        return _threads
    return machine.usable().cpus


def active() -> dict[str, Any]:
    """Which kernels serve here, for people: kernels, isa, isas, threads, torch, cuda.

    Raises:
        ValueError: RAYPQ_ISA names an instruction set that this CPU lacks.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "kernels": "native" if native.available() else "torch",
        "isa": native.isa() if native.available() else None,
        "isas": native.isas(),
        "threads": threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if cuda else None,
    }


def check_device(device: str) -> None:
    """Says at once that a device cannot be used here.

    Raises:
        ConfigError: torch finds no CUDA; why, and what to do.
    """
    if not device.startswith("cuda") or _cuda():
        return
    import torch

    if torch.version.cuda is None:
        why = f"torch {torch.__version__} was built without CUDA: install a build with it"
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        limited = "" if visible is None else f", which CUDA_VISIBLE_DEVICES={visible!r} may hide"
        why = f"torch {torch.__version__} finds no GPU{limited}: nvidia-smi must list one"
    raise ConfigError(
        f"device: {device} cannot be used here; {why}, or use --device cpu (device: cpu)"
    )


@cache
def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _use_native(device: str) -> bool:
    check_device(device)
    return device == "cpu" and (native.available() or _warn())


@cache
def _warn() -> bool:
    warnings.warn(
        "raypq was installed without a C++ compiler: the torch kernels serve, equal in answers "
        "but several times slower; install a compiler and reinstall raypq",
        RuntimeWarning,
        stacklevel=4,
    )
    return False
