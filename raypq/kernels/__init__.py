"""Encoding and scanning of codes, dispatched to the fastest implementation available.

All implementations give the same results, bit for bit: ``reference`` (NumPy, the oracle of the
tests), ``native`` (compiled, CPU) and ``torch`` (any device).
Shapes: U [N, D], C [M, K, d], B [N, M] uint8, V [T, D]; D = M·d.
"""

from __future__ import annotations

import os
import sys
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
from raypq.kernels.tables import (
    Tables,
    build_tables,
    check_scores,
    decode,
    merge_topk,
    vectors_of,
)

__all__ = [
    "Tables",
    "add_rows",
    "apply_thread_limit",
    "build_tables",
    "check_device",
    "check_scores",
    "codeword_sums",
    "cuda_available",
    "decode",
    "encode",
    "kmeans_pp_init",
    "merge_topk",
    "native_threads",
    "range_search",
    "runtime_info",
    "scores",
    "set_threads",
    "share_gpu",
    "thread_limit",
    "threads",
    "topk_of_classes",
    "topk_per_code",
    "topk_per_query",
    "topk_per_vector",
    "vectors_of",
    "widen",
]


class _PerThread(threading.local):
    """Limits of one thread: ``threads`` of native kernels that it calls, those of torch where they
    are other than the process's, and the limit that torch was given in it."""

    threads: int | None = None
    torch_threads: int | None = None
    of_torch: int | None = None


_threads: int | None = None  # of the process; None: one for each usable CPU
_per_thread = _PerThread()


def encode(
    U: NDArray[np.floating], C: NDArray[np.floating], *, device: str = "cpu"
) -> NDArray[np.uint8]:
    """Codes [N, M] of U [N, M·d]: the nearest codeword of each part, ties to the lower index."""
    if _use_native(device):
        return native.encode(U, C, threads=threads())
    from raypq.kernels import torch as torch_kernels

    return torch_kernels.encode(U, C, device=device)


def widen(X: NDArray[np.float16]) -> tuple[NDArray[np.float32], bool]:
    """Float16 values of any shape as float32, and whether all are finite."""
    return native.widen(X) if native.available() else reference.widen(X)


def topk_per_code(
    B: NDArray[np.uint8], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each code: scores and classes [N, min(k, T)], ties to the lower class.

    Raises:
        InputError: scores beyond float32's range (as in every function here that gives scores).
    """
    if _use_native(device):
        score, index = native.topk_per_code(B, tables, k, threads=threads())
    else:
        from raypq.kernels import torch as torch_kernels

        score, index = torch_kernels.topk_per_code(B, tables, k, device=device)
    return check_scores(score), index


def topk_per_query(
    B: NDArray[np.uint8], tables: Tables, k: int, *, row0: int = 0, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best codes of each query: scores and rows [T, min(k, N)], ties to the lower row.

    ``row0`` is the number of the first row, so a store can be searched block by block and the
    results joined with ``merge_topk``.
    """
    if _use_native(device):
        score, row = native.topk_per_query(B, tables, k, threads=threads())
    else:
        from raypq.kernels import torch as torch_kernels

        score, row = torch_kernels.topk_per_query(B, tables, k, device=device)
    return check_scores(score), row + row0


def scores(B: NDArray[np.uint8], tables: Tables, *, device: str = "cpu") -> NDArray[np.float32]:
    """All scores [T, N] of codes B [N, M], for metrics over whole rankings."""
    if _use_native(device):
        return check_scores(native.scores(B, tables, threads=threads()))
    from raypq.kernels import torch as torch_kernels

    return check_scores(torch_kernels.scores(B, tables, device=device))


def range_search(
    B: NDArray[np.uint8],
    tables: Tables,
    threshold: float,
    *,
    upper_triangle: bool = False,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Every (query, row, score) with a score of at least ``threshold`` (compared as float32).

    Three arrays of equal length, sorted by query, then by row. ``upper_triangle``: only pairs with
    row > query, for a search of codes among themselves.
    """
    if _use_native(device):
        query, row, score = native.range_search(
            B, tables, threshold, upper_triangle=upper_triangle, threads=threads()
        )
    else:
        from raypq.kernels import torch as torch_kernels

        query, row, score = torch_kernels.range_search(
            B, tables, threshold, upper_triangle=upper_triangle, device=device
        )
    return query, row, check_scores(score)


def topk_per_vector(
    U: NDArray[np.float32], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As ``topk_per_code`` for uncompressed vectors U [N, D], the baseline without quantization."""
    check_device(device)
    from raypq.kernels import torch as torch_kernels

    score, index = torch_kernels.topk_per_vector(U, tables, k, device=device)
    return check_scores(score), index


def topk_of_classes(
    rows: NDArray[np.uint8] | NDArray[np.float32],
    tables: Tables,
    owner: NDArray[np.int64],
    k: int,
    *,
    device: str = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As ``topk_per_code`` for codes [N, M], or ``topk_per_vector`` for vectors [N, D], where a
    class has several rows of the tables, of which the best one gives its score.

    Args:
        owner: class of each row of the tables, ascending from 0.
    """
    check_device(device)
    from raypq.kernels import torch as torch_kernels

    q, squared = vectors_of(rows, tables)
    score, index = torch_kernels.topk_of_classes(q, squared, tables, owner, k, device=device)
    return check_scores(score), index


def codeword_sums(
    U: NDArray[np.floating], B: NDArray[np.uint8], C: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Sums of each codeword's rows: count [M, K], Σu [M, K, d] and Σ‖u − c‖² [M, K], float64.

    Rows are added in order, so the bits depend neither on the implementation nor on the threads.
    """
    if _use_native("cpu"):
        return native.codeword_sums(U, B, C, threads=threads())
    return reference.codeword_sums(U, B, C)


def add_rows(total: NDArray[np.float64], group: NDArray[np.int64], X: NDArray[np.float64]) -> None:
    """Adds rows X [n, D] to the sums of their groups [n], in order; ``total`` [k, D], in place."""
    if _use_native("cpu"):
        native.add_rows(total, group, X, threads=threads())
    else:
        reference.add_rows(total, group, X)


def kmeans_pp_init(
    U: NDArray[np.floating], first: NDArray[np.int64], draws: NDArray[np.float64]
) -> NDArray[np.float32]:
    """k-means++ seeds in every sub-space of U [n, M·d]: codewords C [M, K, d], all rows of U.

    Args:
        first: the row of the first codeword of each sub-codebook [M].
        draws: uniform random numbers in [0, 1), one for each further codeword [M, K − 1]: its row
            is where the running sum of squared distances reaches this share of the total.
    """
    if _use_native("cpu"):
        return native.kmeans_pp_init(U, first, draws, threads=threads())
    return reference.kmeans_pp_init(U, first, draws)


def set_threads(threads: int) -> None:
    """Limits the CPU threads of this process: of native kernels, NumPy and torch.

    Torch is not imported for it: code that imports it late calls ``apply_thread_limit``.
    """
    global _threads
    from threadpoolctl import threadpool_limits

    _threads = threads
    _per_thread.of_torch = None
    apply_thread_limit()
    threadpool_limits(threads)


def apply_thread_limit() -> None:
    """Applies the limit of ``set_threads`` to torch in the calling thread, if torch is imported and
    the thread does not have that limit yet; a thread pool's initialiser.

    OpenMP keeps its limit per thread, so a matrix product in a new thread would take all cores, and
    so would one in a thread that is older than the import of torch.
    """
    limit = _per_thread.torch_threads or _threads
    if limit is None or "torch" not in sys.modules or _per_thread.of_torch == limit:
        return
    import torch

    # The first call in a thread takes the limit that any thread set last, which may be a later one.
    torch.get_num_threads()
    torch.set_num_threads(limit)
    _per_thread.of_torch = limit


@contextmanager
def native_threads(threads: int) -> Iterator[None]:
    """Context with another thread limit for native kernels called from this thread.

    The limits of NumPy and torch stay: the last bits of their products may depend on the number of
    threads, those of native kernels do not.
    """
    before = _per_thread.threads
    _per_thread.threads = threads
    try:
        yield
    finally:
        _per_thread.threads = before


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Context with another limit for native kernels and torch where this thread calls them.

    The last bits of torch's products of a few rows may depend on the number of threads.
    """
    before = _per_thread.torch_threads
    with native_threads(threads):
        _per_thread.torch_threads = threads
        apply_thread_limit()
        try:
            yield
        finally:
            _per_thread.torch_threads = before
            apply_thread_limit()


def threads() -> int:
    """The number of CPU threads that kernels use: the limit that was set, or the usable CPUs."""
    if _per_thread.threads is not None:
        return _per_thread.threads
    if _threads is not None:
        return _threads
    return machine.usable().cpus


def share_gpu(share: float) -> None:
    """Limits this process to a share, in (0, 1], of the memory of its GPU."""
    from raypq.kernels import memory

    memory.limit_share(share)


def runtime_info() -> dict[str, Any]:
    """What kernels run with here: kernels, native_missing (why there are no native kernels), isa,
    isas, threads, torch, cuda.

    Raises:
        ValueError: RAYPQ_ISA names an instruction set that this CPU lacks.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "kernels": "native" if native.available() else "torch",
        "native_missing": native.missing_reason(),
        "isa": native.isa() if native.available() else None,
        "isas": native.isas(),
        "threads": threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if cuda else None,
    }


def check_device(device: str) -> None:
    """Refuses a CUDA device where torch cannot use one.

    Raises:
        ConfigError: why, and what to do.
    """
    if not device.startswith("cuda") or cuda_available():
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
def cuda_available() -> bool:
    """Whether torch can use a GPU here."""
    import torch

    return torch.cuda.is_available()


def _use_native(device: str) -> bool:
    check_device(device)
    if device != "cpu":
        return False
    if not native.available():
        _warn_once()
    return native.available()


@cache
def _warn_once() -> None:
    warnings.warn(
        f"{native.missing_reason()}; until then the torch kernels are used, with equal results but "
        "several times slower",
        RuntimeWarning,
        stacklevel=4,
    )
