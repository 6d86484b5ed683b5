"""The compiled CPU kernels: uint8 tables as a filter, exact scores for what it keeps.

Same functions as ``torch`` with ``threads``; answers equal ``reference`` bit for bit. The
instruction set is the best the CPU has; the environment variable ``RAYPQ_ISA`` (avx512, avx2 or
baseline) or the argument ``isa`` names another.
"""

from __future__ import annotations

import os
import threading
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from raypq.kernels.tables import Tables, check_codebooks, squared_norms

try:
    from raypq.kernels import _native
except ImportError:  # the package was installed without a compiler
    _native = None  # type: ignore[assignment]

_prepared: WeakKeyDictionary[Tables, dict[tuple[bool, str], _native.Tables]] = WeakKeyDictionary()
_preparing = threading.Lock()


def available() -> bool:
    """Whether this installation has the compiled kernels."""
    return _native is not None


def isas() -> list[str]:
    """The instruction sets that this build and CPU have, best first."""
    return list(_native.isas()) if available() else []


def isa(name: str | None = None) -> str:
    """The instruction set in use where ``name`` is asked for; None: RAYPQ_ISA, or the best.

    Raises:
        ValueError: the CPU or this build lacks it.
    """
    return str(_native.choose(os.environ.get("RAYPQ_ISA", "") if name is None else name))


def encode(
    U: NDArray[np.floating],
    C: NDArray[np.floating],
    *,
    threads: int = 1,
    isa: str | None = None,
) -> NDArray[np.uint8]:
    """Codes [n, M] of vectors U [n, M·d]; equal to ``reference.encode``."""
    C = np.ascontiguousarray(C, dtype=np.float32)
    U = np.ascontiguousarray(U, dtype=np.float32)
    check_codebooks(C)
    M, K, d = C.shape
    norms = squared_norms(C.reshape(-1, d)).reshape(M, K)
    B = np.empty((len(U), M), np.uint8)
    _native.encode(U, C, norms, _named(isa), threads, B)
    return B


def topk_per_code(
    B: NDArray[np.uint8], tables: Tables, k: int, *, threads: int = 1, isa: str | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each code; equal to ``reference.topk_per_code``.

    Large blocks are best: the tables (M·K·T bytes) stream through the cache once for every 65,536
    codes of a thread. Calls with the same tables learn from each other how high the k-th best
    scores of such codes are; only their speed depends on it.
    """
    return _scan(B, tables, (len(B), min(k, tables.T)), False, threads, isa)


def topk_per_query(
    B: NDArray[np.uint8], tables: Tables, k: int, *, threads: int = 1, isa: str | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best codes of each query; equal to ``reference.topk_per_query``."""
    return _scan(B, tables, (tables.T, min(k, len(B))), True, threads, isa)


def scores(
    B: NDArray[np.uint8], tables: Tables, *, threads: int = 1, isa: str | None = None
) -> NDArray[np.float32]:
    """All scores [T, n]; equal to ``reference.scores`` transposed."""
    out = np.empty((tables.T, len(B)), np.float32)
    if out.size:
        made = prepare(tables, across_rows=True, threads=threads, isa=isa)
        made.scores(np.ascontiguousarray(B), threads, out)
    return out


def within(
    B: NDArray[np.uint8],
    tables: Tables,
    least: float,
    *,
    after: bool = False,
    threads: int = 1,
    isa: str | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Every pair that scores at least ``least``; equal to ``reference.within``."""
    if not len(B) or not tables.T:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    made = prepare(tables, across_rows=True, threads=threads, isa=isa)
    return made.within(np.ascontiguousarray(B), float(np.float32(least)), after, threads)


def prepare(
    tables: Tables, *, across_rows: bool, threads: int = 1, isa: str | None = None
) -> _native.Tables:
    """The uint8 tables of ``topk_per_query`` (across rows) or ``topk_per_code``, M·K·T bytes.

    Made once and kept as long as ``tables`` lives.
    """
    key = across_rows, _named(isa)
    with _preparing:
        made = _prepared.setdefault(tables, {})
        if key not in made:
            made[key] = _native.Tables(
                np.ascontiguousarray(tables.C),
                np.ascontiguousarray(tables.W),
                np.ascontiguousarray(tables.bias),
                np.ascontiguousarray(tables.norms),
                tables.metric,
                across_rows,
                key[1],
                threads,
            )
        return made[key]


def accumulate(
    U: NDArray[np.floating], B: NDArray[np.uint8], C: NDArray[np.floating], *, threads: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Per codeword count, Σu and Σ‖u − c‖²; equal to ``reference.accumulate``."""
    C = np.ascontiguousarray(C, dtype=np.float32)
    U = np.ascontiguousarray(U, dtype=np.float32)
    count, total, error = np.zeros(C.shape[:2]), np.zeros(C.shape), np.zeros(C.shape[:2])
    _native.accumulate(U, np.ascontiguousarray(B), C, threads, count, total, error)
    return count, total, error


def spread(
    U: NDArray[np.floating],
    first: NDArray[np.int64],
    aims: NDArray[np.float64],
    *,
    threads: int = 1,
) -> NDArray[np.float32]:
    """k-means++ in every sub-space; equal to ``reference.spread``."""
    U = np.ascontiguousarray(U, dtype=np.float32)
    M = len(first)
    C = np.empty((M, aims.shape[1] + 1, U.shape[1] // M), np.float32)
    first, aims = np.ascontiguousarray(first, np.int64), np.ascontiguousarray(aims, np.float64)
    _native.spread(U, first, aims, threads, C)
    return C


def _scan(
    B: NDArray[np.uint8],
    tables: Tables,
    shape: tuple[int, int],
    across_rows: bool,
    threads: int,
    isa: str | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scores, names = np.empty(shape, np.float32), np.empty(shape, np.int64)
    if scores.size:
        made = prepare(tables, across_rows=across_rows, threads=threads, isa=isa)
        made.scan(np.ascontiguousarray(B), threads, scores, names)
    return scores, names


_named = isa  # within the functions above, ``isa`` is the argument
