"""The compiled CPU kernels: a scan of uint8 tables filters, and survivors get exact scores.

The functions of ``torch``, with ``threads`` instead of ``device``; results equal ``reference`` bit
for bit. The instruction set is the best that the CPU has, unless the environment variable
``RAYPQ_ISA`` or the argument ``isa`` names one: avx512, avx2 or baseline.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from raypq.kernels.tables import Tables, check_codebooks, squared_norms

try:
    from raypq.kernels import _native
except ImportError as error:  # see missing_reason
    _native = None  # type: ignore[assignment]
    _import_error = str(error)
else:
    _import_error = ""

_cache: WeakKeyDictionary[Tables, dict[tuple[bool, str], _native.Tables]] = WeakKeyDictionary()
_cache_lock = threading.Lock()


def available() -> bool:
    """Whether this installation has the compiled kernels."""
    return _native is not None


def missing_reason() -> str | None:
    """Why there are no compiled kernels, and what to do; None where there are."""
    if available():
        return None
    from raypq import kernels

    package = Path(__file__).resolve().parent
    return explain_missing(package, [Path(folder) for folder in kernels.__path__], _import_error)


def explain_missing(package: Path, search_path: Sequence[Path], import_error: str) -> str:
    """Why ``package`` (raypq/kernels) has no extension; ``search_path``: where it may be."""
    for folder in search_path:
        for suffix in EXTENSION_SUFFIXES:
            if (path := folder / f"_native{suffix}").exists():
                return (
                    f"the compiled kernels ({path}) cannot be loaded: {import_error}; reinstall "
                    "raypq with this Python"
                )
    if (package / "cpp").is_dir():  # no wheel contains it
        root = package.parents[1]
        return (
            f"raypq is imported from a source tree ({root}) whose C++ extension is not built; with "
            f"a C++ compiler, run: pip install -e {root}"
        )
    return "raypq was installed without a C++ compiler; install one and reinstall raypq"


def isas() -> list[str]:
    """The instruction sets that this build and CPU have, best first."""
    return list(_native.isas()) if available() else []


def isa(name: str | None = None) -> str:
    """The instruction set called ``name``; None: that of RAYPQ_ISA, or the best.

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
    _native.encode(U, C, norms, _isa_name(isa), threads, B)
    return B


def widen(X: NDArray[np.float16], *, isa: str | None = None) -> tuple[NDArray[np.float32], bool]:
    """Float16 values as float32, and whether all are finite; equal to ``reference.widen``."""
    half = np.ascontiguousarray(X).view(np.uint16).reshape(-1)
    out = np.empty(X.shape, np.float32)
    return out, _native.widen(half, _isa_name(isa), out.reshape(-1))


def topk_per_code(
    B: NDArray[np.uint8], tables: Tables, k: int, *, threads: int = 1, isa: str | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each code; equal to ``reference.topk_per_code``.

    Pass many codes at once: the tables (M·K·T bytes) stream through the cache once for every
    65,536 codes of a thread. Each call with the same tables improves the next one's forecast of
    k-th best scores, which affects speed only.
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
        prepared = prepare(tables, across_rows=True, threads=threads, isa=isa)
        prepared.scores(np.ascontiguousarray(B), threads, out)
    return out


def range_search(
    B: NDArray[np.uint8],
    tables: Tables,
    threshold: float,
    *,
    upper_triangle: bool = False,
    threads: int = 1,
    isa: str | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Every (query, row, score) from ``threshold`` on; equal to ``reference.range_search``."""
    if not len(B) or not tables.T:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    prepared = prepare(tables, across_rows=True, threads=threads, isa=isa)
    limit = float(np.float32(threshold))
    return prepared.within(np.ascontiguousarray(B), limit, upper_triangle, threads)


def count_pairs(
    A: NDArray[np.uint8],
    T: NDArray[np.float32],
    first: NDArray[np.int64],
    group_limit: NDArray[np.float32],
    limit: float,
    group: int,
    *,
    once: bool,
    most_steps: int,
    threads: int,
) -> tuple[int, int, int, bool]:
    """The number of pairs of rows of codes A [n, M] that ``pairs`` gives, prefixes and codes
    compared, and whether all of the work was done."""
    return _native.count_pairs(
        np.ascontiguousarray(A), None, np.ascontiguousarray(T), first, group_limit, limit, group,
        once, most_steps, threads,
    )  # fmt: skip


def pairs(
    A: NDArray[np.uint8],
    B: NDArray[np.uint8] | None,
    T: NDArray[np.float32],
    first: NDArray[np.int64],
    group_limit: NDArray[np.float32],
    limit: float,
    group: int,
    *,
    once: bool,
    threads: int,
) -> Iterator[NDArray[np.uint32]]:
    """Pairs of rows of codes A [n, M], or of A and B [m, M], as ``raypq.kernels.join`` says, in
    parts [p, 2]. Threads find them ahead, and wait while many are not taken yet."""
    other = None if B is None else np.ascontiguousarray(B)
    stream = _native.Pairs(
        np.ascontiguousarray(A), other, np.ascontiguousarray(T), first, group_limit, limit, group,
        once, threads,
    )  # fmt: skip
    while len(rows := stream.next()):
        yield rows


def spanning_forest(
    n: int, edges: NDArray[np.uint32], weight: NDArray[np.float32]
) -> NDArray[np.uint32]:
    """Equal to ``reference.spanning_forest``."""
    return _native.forest(n, np.ascontiguousarray(edges), np.ascontiguousarray(weight))


def edges_from(n: int, edges: NDArray[np.uint32], roots: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Equal to ``reference.edges_from``."""
    return _native.reach(n, np.ascontiguousarray(edges), np.ascontiguousarray(roots))


def neighbor_index(
    B: NDArray[np.uint8],
    C: NDArray[np.float32],
    T: NDArray[np.float32],
    *,
    threads: int = 1,
    isa: str | None = None,
) -> _native.NeighborIndex:
    """The index of ``raypq.kernels.neighbors`` over codes B [n, M] of codebooks C [M, K, d], with
    the squared distances T [M, K, K] of codewords."""
    C = np.ascontiguousarray(C, dtype=np.float32)
    check_codebooks(C)
    norms = squared_norms(C.reshape(-1, C.shape[2])).reshape(C.shape[:2])
    B, T = np.ascontiguousarray(B), np.ascontiguousarray(T)
    return _native.NeighborIndex(B, C, norms, T, _isa_name(isa), threads)


def leaf_pairs(
    B: NDArray[np.uint8],
    squared: NDArray[np.float64],
    floor: NDArray[np.float32],
    centres: Tables,
    radius: NDArray[np.float64],
    magnitudes: tuple[float, float],
    *,
    threads: int = 1,
    isa: str | None = None,
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The rows that may have a class of at least ``floor`` [n] in each leaf, by leaf, and where the
    rows of each leaf begin [L + 1] (``cpp/leaves.hpp``).

    Args:
        squared: ‖q‖² of codes B [n, M]. magnitudes: max ‖w‖ and max |bias| of the classes.
    """
    begin, rows = _native.leaf_pairs(
        centres.C, centres.W, centres.bias, radius, centres.norms, centres.metric,
        np.ascontiguousarray(B), squared, floor, *magnitudes, _isa_name(isa), threads,
    )  # fmt: skip
    return begin, rows


def scan_leaves(
    B: NDArray[np.uint8],
    squared: NDArray[np.float64],
    floor: NDArray[np.float32],
    tables: Tables,
    leaves: tuple[NDArray[np.uint32], NDArray[np.int64]],
    pairs: tuple[NDArray[np.uint32], NDArray[np.uint32]],
    best: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    threads: int = 1,
    isa: str | None = None,
) -> int:
    """Adds the classes of leaves to the k best of their rows, and returns how many were scored
    exactly. Classes below ``floor`` [n] are left out.

    Args:
        leaves: where each leaf begins in ``tables`` [L + 1], and the number of each class [T].
        pairs: as of ``leaf_pairs``. best: scores and classes [n, k], −∞ and −1 where there are
            fewer; changed.
    """
    return _native.scan_leaves(
        tables.C, np.ascontiguousarray(tables.W), tables.bias, tables.norms, tables.metric, *leaves,
        *pairs, np.ascontiguousarray(B), squared, floor, _isa_name(isa), threads, *best,
    )  # fmt: skip


def prepare(
    tables: Tables, *, across_rows: bool, threads: int = 1, isa: str | None = None
) -> _native.Tables:
    """The uint8 tables for scans with ``tables``, M·K·T bytes; cached as long as ``tables`` lives.

    ``across_rows``: for ``topk_per_query``, ``scores`` and ``range_search``; else for
    ``topk_per_code``.
    """
    key = across_rows, _isa_name(isa)
    with _cache_lock:
        by_kind = _cache.setdefault(tables, {})
        if key not in by_kind:
            by_kind[key] = _native.Tables(
                np.ascontiguousarray(tables.C),
                np.ascontiguousarray(tables.W),
                np.ascontiguousarray(tables.bias),
                np.ascontiguousarray(tables.norms),
                tables.metric,
                across_rows,
                key[1],
                threads,
            )
        return by_kind[key]


def codeword_sums(
    U: NDArray[np.floating], B: NDArray[np.uint8], C: NDArray[np.floating], *, threads: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Count, Σu and Σ‖u − c‖² of each codeword; equal to ``reference.codeword_sums``."""
    C = np.ascontiguousarray(C, dtype=np.float32)
    U = np.ascontiguousarray(U, dtype=np.float32)
    count, total, error = np.zeros(C.shape[:2]), np.zeros(C.shape), np.zeros(C.shape[:2])
    _native.accumulate(U, np.ascontiguousarray(B), C, threads, count, total, error)
    return count, total, error


def add_rows(
    total: NDArray[np.float64],
    group: NDArray[np.int64],
    X: NDArray[np.float64],
    *,
    threads: int = 1,
) -> None:
    """Adds rows to the sums of their groups; equal to ``reference.add_rows``."""
    X, group = np.ascontiguousarray(X), np.ascontiguousarray(group)
    _native.add_rows(X, group, threads, total)


def kmeans_pp_init(
    U: NDArray[np.floating],
    first: NDArray[np.int64],
    draws: NDArray[np.float64],
    *,
    threads: int = 1,
) -> NDArray[np.float32]:
    """k-means++ seeds in every sub-space; equal to ``reference.kmeans_pp_init``."""
    U = np.ascontiguousarray(U, dtype=np.float32)
    M = len(first)
    C = np.empty((M, draws.shape[1] + 1, U.shape[1] // M), np.float32)
    first, draws = np.ascontiguousarray(first, np.int64), np.ascontiguousarray(draws, np.float64)
    _native.spread(U, first, draws, threads, C)
    return C


def _scan(
    B: NDArray[np.uint8],
    tables: Tables,
    shape: tuple[int, int],
    across_rows: bool,
    threads: int,
    isa: str | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scores, index = np.empty(shape, np.float32), np.empty(shape, np.int64)
    if scores.size:
        prepared = prepare(tables, across_rows=across_rows, threads=threads, isa=isa)
        prepared.scan(np.ascontiguousarray(B), threads, scores, index)
    return scores, index


_isa_name = isa  # for functions with an argument ``isa``
