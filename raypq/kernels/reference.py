"""Reference implementation of every kernel in NumPy; the arithmetic of scores is in ``tables``.

**Codes**: argmax over k of Σ_j u_j·c_kj − ½‖c_k‖², both sums in float64 over j in order (the
products are exact), which is the nearest codeword; ties to the lower index.

**Codeword sums**: float64, rows added in order. A squared residual is Σ_j of the float32 residuals'
squares (exact in float64) over j in order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq.kernels.tables import ACCUMULATORS, Tables, check_codebooks, decode, squared_norms

_BLOCK = 1 << 22  # float64 values in one intermediate array


def encode(U: NDArray[np.floating], C: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Codes [n, M] of vectors U [n, M·d] under codebooks C [M, K, d]."""
    C = np.ascontiguousarray(C, dtype=np.float32)
    U = np.ascontiguousarray(U, dtype=np.float32)
    check_codebooks(C)
    M, K, d = C.shape
    B = np.empty((len(U), M), np.uint8)
    half = 0.5 * squared_norms(C.reshape(-1, d)).reshape(M, K)
    step = max(1, _BLOCK // K)
    for m in range(M):
        for start in range(0, len(U), step):
            u = U[start : start + step, m * d : (m + 1) * d].astype(np.float64)
            score = np.zeros((len(u), K))
            for j in range(d):
                score += u[:, j, None] * C[m, None, :, j].astype(np.float64)
            B[start : start + step, m] = np.argmax(score - half[m], axis=1)
    return B


def widen(X: NDArray[np.float16]) -> tuple[NDArray[np.float32], bool]:
    """Float16 values as float32, and whether all are finite."""
    return X.astype(np.float32), bool(np.isfinite(X).all())


def dot(q: NDArray[np.float32], W: NDArray[np.float32]) -> NDArray[np.float64]:
    """⟨q_i, W_t⟩ [n, T] in the canonical order of ``tables``."""
    sums = np.zeros((len(q), len(W), ACCUMULATORS))
    for j in range(0, q.shape[1], ACCUMULATORS):
        part = slice(j, j + ACCUMULATORS)
        a, b = q[:, part].astype(np.float64), W[:, part].astype(np.float64)
        sums[:, :, : a.shape[1]] += a[:, None, :] * b[None, :, :]
    return add_accumulators(sums)


def add_accumulators(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of eight accumulators on the last axis, in the canonical order."""
    four = sums[..., :4] + sums[..., 4:]
    two = four[..., :2] + four[..., 2:]
    return np.asarray(two[..., 0] + two[..., 1])


def scores(
    q: NDArray[np.float32], squared: NDArray[np.float64], tables: Tables
) -> NDArray[np.float32]:
    """All scores [n, T] of vectors q [n, D] whose squared norms are ``squared``."""
    scale, offset = tables.row_terms(squared)
    out = np.empty((len(q), tables.T), np.float32)
    step = max(1, _BLOCK // (ACCUMULATORS * max(1, tables.T)))
    for start in range(0, len(q), step):
        rows = slice(start, start + step)
        value = dot(q[rows], tables.W) * scale[rows, None]
        out[rows] = (value + offset[rows, None]) + tables.bias
    return out


def best(score: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of each row of scores [n, T], ties to the lower index; both [n, min(k, T)]."""
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score, order, axis=1), order.astype(np.int64)


def topk_per_code(
    B: NDArray[np.uint8], tables: Tables, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each code: scores and classes, both [n, min(k, T)], best first."""
    return best(scores(decode(B, tables.C), tables.squared_norms(B), tables), k)


def topk_per_vector(
    U: NDArray[np.float32], tables: Tables, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As ``topk_per_code`` for uncompressed vectors U [n, D]."""
    return best(scores(U, squared_norms(U), tables), k)


def topk_per_query(
    B: NDArray[np.uint8], tables: Tables, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best codes of each query: scores and rows, both [T, min(k, n)], best first."""
    score = scores(decode(B, tables.C), tables.squared_norms(B), tables)
    return best(np.ascontiguousarray(score.T), k)


def range_search(
    B: NDArray[np.uint8], tables: Tables, threshold: float, *, upper_triangle: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Every (query, row, score) with a score of at least ``threshold``, by query, then by row.

    ``upper_triangle``: only pairs with row > query.
    """
    score = scores(decode(B, tables.C), tables.squared_norms(B), tables).T
    match = score >= np.float32(threshold)
    if upper_triangle:
        match &= np.arange(score.shape[1]) > np.arange(len(score))[:, None]
    query, row = np.nonzero(match)
    return query, row, score[query, row]


def codeword_sums(
    U: NDArray[np.floating], B: NDArray[np.uint8], C: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Count [M, K], Σu [M, K, d] and Σ‖u − c‖² [M, K] of each codeword's rows, float64."""
    C = np.ascontiguousarray(C, dtype=np.float32)
    U = np.ascontiguousarray(U, dtype=np.float32)
    M, K, d = C.shape
    count, total, error = np.empty((M, K)), np.empty((M, K, d)), np.empty((M, K))
    residual = (U - decode(B, C)).reshape(-1, M, d)
    for m in range(M):
        code = B[:, m]
        squared = squared_norms(residual[:, m])
        count[m] = np.bincount(code, minlength=K)
        error[m] = np.bincount(code, squared, minlength=K)
        for j in range(d):
            total[m, :, j] = np.bincount(code, U[:, m * d + j], minlength=K)
    return count, total, error


def add_rows(total: NDArray[np.float64], group: NDArray[np.int64], X: NDArray[np.float64]) -> None:
    """Adds rows X [n, D] to the sums of their groups [n]; ``total`` [k, D], in place."""
    np.add.at(total, group, X)


def kmeans_pp_init(
    U: NDArray[np.floating], first: NDArray[np.int64], draws: NDArray[np.float64]
) -> NDArray[np.float32]:
    """k-means++ seeds in every sub-space: C [M, K, d], all of them rows of U [n, M·d].

    The first codeword is row ``first[m]``. Each further one is drawn with probability proportional
    to its squared distance to the nearest codeword so far: the row at which the running sum of
    these distances reaches ``draws[m, k - 1]`` of their total. A part whose squares would overflow
    or vanish in float32 is first scaled by a power of two.
    """
    M, K = len(first), draws.shape[1] + 1
    d = U.shape[1] // M
    C = np.empty((M, K, d), np.float32)
    for m in range(M):
        original = np.ascontiguousarray(U[:, m * d : (m + 1) * d].T, dtype=np.float32)
        exponent = int(np.frexp(np.abs(original).max())[1])
        part = original
        if not -40 <= exponent <= 50:
            part = (original * np.ldexp(1.0, -exponent)).astype(np.float32)
        row = int(first[m])
        C[m, 0] = original[:, row]
        nearest = np.full(len(U), np.inf, np.float32)
        for k in range(1, K):
            squared = np.zeros(len(U), np.float32)
            for j in range(d):  # in order, as the native kernel does
                delta = part[j] - part[j, row]
                squared += delta * delta
            np.minimum(nearest, squared, out=nearest)
            mass = np.cumsum(nearest, dtype=np.float64)
            row = min(int(np.searchsorted(mass, draws[m, k - 1] * mass[-1])), len(U) - 1)
            C[m, k] = original[:, row]
    return C


def spanning_forest(
    n: int, edges: NDArray[np.uint32], weight: NDArray[np.float32]
) -> NDArray[np.uint32]:
    """The edges of the minimum spanning forest of a graph of n nodes, by Kruskal's algorithm.

    Args:
        edges: pairs of nodes [e, 2]. weight: of each [e].

    Returns:
        Numbers of the edges, by ascending weight; of equal weights, by their nodes.
    """
    parent = list(range(n))

    def find(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    kept = []
    for edge in np.lexsort((edges[:, 1], edges[:, 0], weight)):
        a, b = sorted(find(int(node)) for node in edges[edge])
        if a != b:
            parent[b] = a
            kept.append(edge)
    return np.array(kept, np.uint32)


def edges_from(n: int, edges: NDArray[np.uint32], roots: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The edge by which each of n nodes is reached from ``roots``, breadth first, in a forest of
    ``edges`` [e, 2]; e for the roots, and for nodes that are not reached."""
    of_node: list[list[int]] = [[] for _ in range(n)]
    for edge, nodes in enumerate(edges):
        for node in nodes:
            of_node[int(node)].append(edge)
    found = np.full(n, len(edges), np.uint32)
    ahead = list(dict.fromkeys(int(root) for root in roots))
    reached = set(ahead)
    for node in ahead:
        for edge in of_node[node]:
            other = int(edges[edge].sum()) - node
            if other not in reached:
                reached.add(other)
                found[other] = edge
                ahead.append(other)
    return found
