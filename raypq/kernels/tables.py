"""Classes or queries prepared for a scan, with one form of score for every metric.

    score(i, t) = scale[i] · ⟨q_i, W[t]⟩ + offset[i] + bias[t]

with q_i the decoded code of image i. dot: scale 1, offset 0. l2 (PQZSL eq. 23, negated and
squared so that more is better): W = 2v, bias −‖v‖², offset −‖q_i‖². cosine (eq. 24): W = v/‖v‖,
scale 1/‖q_i‖.

**Exactness.** Every implementation gives the same float32 score, bit for bit. The inner product is
summed in float64 in eight accumulators: accumulator a adds the dimensions a, a+8, … in order
(products of float32 values are exact in float64). They are added as ((0+4)+(2+6)) + ((1+5)+(3+7));
scale, offset and bias follow in float64 in that order, and the sum is rounded once. Ranking is by
that float32, ties to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq.config import Metric
from raypq.errors import InputError

ACCUMULATORS = 8  # partial sums of an inner product
# Rows of one block of squared_norms, and values where rows are short.
_NORM_ROWS, _NORM_VALUES = 1024, 1 << 17
_LOW = (1 << 32) - 1  # the half of a key that holds an index


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """Inputs of the lookup tables: weights and terms of classes (or queries), and the codebooks.

    The lookup tables themselves, LUT [M, K, T], are made from these by the kernels.

    A higher score is better, whatever the metric: for l2 it is the negative squared distance.

    Attributes:
        C: codebooks [M, K, d], float32.
        W: weights [T, D], float32, D = M·d.
        bias: [T], float64.
        norms: ‖C[m, k]‖² [M, K], float64.
        metric: l2, cosine or dot.
    """

    C: NDArray[np.float32]
    W: NDArray[np.float32]
    bias: NDArray[np.float64]
    norms: NDArray[np.float64]
    metric: Metric

    @property
    def T(self) -> int:
        """Number of classes or queries."""
        return len(self.W)

    def row_terms(
        self, squared: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(scale, offset) of rows with squared norms ``squared`` [n]."""
        if self.metric == "cosine":
            norm = np.sqrt(squared)
            scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
            return scale, np.zeros_like(norm)
        offset = -squared if self.metric == "l2" else np.zeros_like(squared)
        return np.ones_like(squared), offset

    def squared_norms(self, B: NDArray[np.uint8]) -> NDArray[np.float64]:
        """‖q_i‖² of codes [n, M], summed over m in order, float64 [n]."""
        return norms_of_codes(B, self.norms)


def norms_of_codes(B: NDArray[np.uint8], norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """‖q_i‖² of codes [n, M] by the ‖c‖² [M, K] of codewords, summed over m in order [n]."""
    total = np.zeros(len(B))
    for m in range(B.shape[1]):
        total += norms[m, B[:, m]]
    return total


def squared_norms(X: NDArray[np.float32]) -> NDArray[np.float64]:
    """‖x_i‖² of vectors [n, D], summed over the dimensions in order, float64 [n]."""
    total = np.zeros(len(X))
    rows = max(_NORM_ROWS, _NORM_VALUES // max(1, X.shape[1]))
    for first in range(0, len(X), rows):
        part = total[first : first + rows]
        # Columns of a large array are strided over many pages; a transposed block fits the cache.
        for column in np.ascontiguousarray(X[first : first + rows].T):
            wide = column.astype(np.float64)
            part += wide * wide
    return total


def build_tables(
    C: NDArray[np.float32],
    V: NDArray[np.float32],
    bias: NDArray[np.floating] | None,
    metric: Metric,
) -> Tables:
    """Tables of prototypes V [T, D] with bias [T] (None: zero) for codes of C [M, K, d].

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a metric that is not
            l2, cosine or dot.
    """
    C = np.ascontiguousarray(C, dtype=np.float32)
    V = np.ascontiguousarray(V, dtype=np.float32)
    check_codebooks(C)
    M, _, d = C.shape
    if V.ndim != 2 or V.shape[1] != M * d:
        raise ValueError(f"V must be [T, {M * d}] for codebooks of {M} × {d}, found {V.shape}")
    bias64 = np.zeros(len(V)) if bias is None else np.asarray(bias, dtype=np.float64)
    if bias64.shape != (len(V),):
        raise ValueError(f"bias must be [{len(V)}], found {bias64.shape}")
    for name, values in (("C", C), ("V", V), ("bias", bias64)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite")
    squared = squared_norms(V)
    if metric == "l2":
        if np.abs(V).max(initial=0.0) > np.finfo(np.float32).max / 2:
            raise ValueError("V must be at most 1.7e38 for l2, whose weights are 2·V")
        W, bias64 = 2 * V, bias64 - squared
    elif metric == "cosine":
        norm = np.sqrt(squared)
        inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
        W = np.empty_like(V)
        np.multiply(V, inverse[:, None], out=W, dtype=np.float64, casting="same_kind")
    elif metric == "dot":
        W = V
    else:
        raise ValueError(f"metric must be l2, cosine or dot, found {metric!r}")
    norms = squared_norms(C.reshape(-1, d)).reshape(C.shape[:2])
    return Tables(C=C, W=W, bias=bias64, norms=norms, metric=metric)


def check_codebooks(C: NDArray[np.floating]) -> None:
    """Refuses arrays other than codebooks [M, K, d] with 1 to 256 codewords.

    Raises:
        ValueError: the shape does not fit.
    """
    if C.ndim != 3 or 0 in C.shape or C.shape[1] > 256:
        raise ValueError(f"C must be [M, K, d], K at most 256 and none of them 0, found {C.shape}")


def check_scores(score: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns finite scores unchanged; infinite ones would all tie.

    Raises:
        InputError: scores beyond float32's range.
    """
    if not np.isfinite(score).all():
        beyond = score.size - int(np.isfinite(score).sum())
        raise InputError(
            "scores",
            expected="values that float32 can hold, up to 3.4e38",
            found=f"{beyond} of {score.size} beyond it; scale the features (and the prototypes or "
            "queries) down, or train with normalise=unit or zscore, or compare by cosine",
        )
    return score


def decode(B: NDArray[np.integer[Any]], C: NDArray[np.float32]) -> NDArray[np.float32]:
    """q(u): codes [n, M] to vectors [n, M·d], float32."""
    M, K, d = C.shape
    flat = B.astype(np.int64) + np.arange(M) * K
    return np.asarray(C.reshape(M * K, d)[flat].reshape(len(B), M * d))


def vectors_of(
    rows: NDArray[Any], tables: Tables
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Vectors q [n, D] and ‖q‖² [n] of codes [n, M] (uint8), or of vectors [n, D] themselves."""
    if rows.dtype == np.uint8:
        return decode(rows, tables.C), tables.squared_norms(rows)
    return rows, squared_norms(rows)


def merge_topk(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of several (scores, indices) [n, ·] of each row, ties to the lower index.

    Exact if every part holds its own k best, so blocks of a store can be searched one by one.
    """
    if parts and all(_has_keys(*part) for part in parts):
        return _merge_by_keys(parts, k)
    score = np.concatenate([part[0] for part in parts], axis=1)
    index = np.concatenate([part[1] for part in parts], axis=1)
    order = np.lexsort((index, -score), axis=1)[:, :k]
    return np.take_along_axis(score, order, 1), np.take_along_axis(index, order, 1)


def _has_keys(score: NDArray[np.float32], index: NDArray[np.int64]) -> bool:
    """Whether ``_merge_by_keys`` orders these as numbers are: no NaN, no −0.0, which equals 0.0,
    and indices of 32 bits."""
    if score.dtype != np.float32 or index.dtype != np.int64:
        return False
    inside = not index.size or (int(index.min()) >= 0 and int(index.max()) <= _LOW)
    special = np.isnan(score) | ((score == 0) & np.signbit(score))
    return inside and not special.any()


def _merge_by_keys(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As ``merge_topk``, several times faster: by one integer for each score and index, whose order
    is that of the ranking."""
    ends = np.cumsum([score.shape[1] for score, _ in parts])
    key = np.empty((len(parts[0][0]), ends[-1]), np.int64)
    for end, (score, index) in zip(ends, parts, strict=True):
        part = key[:, end - score.shape[1] : end]
        part[:] = ~_ordered(score.view(np.int32))  # the best first
        part <<= 32
        part |= index
    key.sort(axis=1)
    best = key[:, :k]
    bits = _ordered(~(best >> 32).astype(np.int32))
    return bits.view(np.float32), best & _LOW


def _ordered(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """The bits of float32 values as integers of the same order; its own inverse."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
