"""Pairs of codes within a threshold, found without a comparison of all pairs.

For codes, S(a, b) = Σ_m T[m, a_m, b_m] with the squared distances T ≥ 0 of codewords. The parts
are cut into groups with shares of the limit that add up to it. If S ≤ limit, the sum of some group
is at most its share. So for each group, codes are sorted by its parts; a walk through the tree of
their prefixes, nearest codewords first, leaves pairs that are near in the group; these are compared
in full. A pair is found in its first such group only.

Cosine and dot thresholds are turned into a squared distance by the lengths of the codes. What is
found is a superset: float32 sums are allowed a small excess, and lengths differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Metric
from raypq.kernels import native
from raypq.kernels.tables import squared_norms

Codes = NDArray[np.uint8]

_EXCESS = 2e-5  # allowed to float32 sums of up to 100 entries
_PARTS = (2, 3, 4, 6, 8)  # of a group, that are tried on a sample
_TRIED_STEPS = 30_000_000  # of one trial
_ALL = 1 << 62
# Seconds of one core (AMD EPYC, 2026-11-29): a visit of two prefixes, a comparison of two codes,
# and one in the scan of all pairs.
_VISIT, _CHECK, _SCAN = 7.0e-8, 1.3e-8, 1.7e-10


@dataclass(frozen=True, kw_only=True)
class JoinFound:
    """What a join found.

    Attributes:
        rows: pairs of rows [p, 2], uint32, in no order; none where there are more than allowed.
        total: number of pairs. visited, checked: pairs of prefixes and of codes that were compared.
        complete: whether it did all of its work.
    """

    rows: NDArray[np.uint32]
    total: int
    visited: int
    checked: int
    complete: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeJoin:
    """The join of codes for one threshold.

    Attributes:
        T: squared distances of codewords [M, K, K], float32. norms: ‖c‖² [M, K].
        threshold: largest squared distance (l2) or smallest score (cosine, dot).
        first: first part of each group, ascending, and M.
    """

    T: NDArray[np.float32]
    norms: NDArray[np.float64]
    metric: Metric
    threshold: float
    first: tuple[int, ...]

    @classmethod
    def of(cls, C: NDArray[np.float32], metric: Metric, threshold: float, *, parts: int) -> Self:
        """The join by groups of about so many parts each, of codebooks C [M, K, d]."""
        M, K, d = C.shape
        groups = max(1, round(M / parts))
        T = np.zeros((M, K, K))
        for j in range(d):
            x = C[:, :, j].astype(np.float64)
            T += (x[:, :, None] - x[:, None, :]) ** 2
        return cls(
            T=T.astype(np.float32),
            norms=squared_norms(C.reshape(-1, d)).reshape(M, K),
            metric=metric,
            threshold=threshold,
            first=tuple(M * g // groups for g in range(groups + 1)),
        )

    @property
    def groups(self) -> int:
        """Number of groups, each of which has a join of its own."""
        return len(self.first) - 1

    def find(
        self,
        group: int,
        A: Codes,
        B: Codes | None = None,
        *,
        once: bool = False,
        most_pairs: int = _ALL,
        most_steps: int = _ALL,
    ) -> JoinFound:
        """Pairs a < b of rows of A [n, M], or, given B [m, M], of a row of A and one of B, whose
        first near group is this one. All groups together find every pair within the threshold,
        once, and perhaps some beyond it.

        Args:
            most_pairs: more are not returned; 0: they are only counted.
            once: of rows with equal codes, the first one stands for all, in pairs with other codes;
                and it has a pair with each of the others.
        """
        limit = self._limit(A, A if B is None else B)
        first = np.array(self.first, np.int64)
        share = np.diff(first) / first[-1]
        rows, total, visited, checked, complete = native.join(
            A, B, self.T, first, (limit * share).astype(np.float32), limit, group,
            once=once, most_steps=most_steps, most_pairs=most_pairs, threads=kernels.threads(),
        )  # fmt: skip
        return JoinFound(
            rows=rows, total=total, visited=visited, checked=checked, complete=complete
        )

    def _limit(self, A: Codes, B: Codes) -> float:
        """The largest squared distance of pairs within the threshold, with some excess."""
        limit = float(np.float32(self.threshold))
        if self.metric != "l2":
            (a, a_most), (b, b_most) = self._lengths(A), self._lengths(B)
            c = limit - 1e-6 * max(1.0, abs(limit), a_most * b_most)
            if self.metric == "dot":
                limit = a_most**2 + b_most**2 - 2 * c
            else:  # ‖a‖² + ‖b‖² − 2c‖a‖‖b‖ is convex in both, and largest in a corner
                corners = [(x, y) for x in (a, a_most) for y in (b, b_most)]
                limit = max(x * x + y * y - 2 * c * x * y for x, y in corners)
        return min(max(limit, 0.0) * (1 + _EXCESS) + 1e-30, float(np.finfo(np.float32).max))

    def _lengths(self, B: Codes) -> tuple[float, float]:
        """The least and the greatest length of codes; of those without length, none is within a
        positive cosine of another."""
        squared = np.zeros(len(B))
        for m in range(B.shape[1]):
            squared += self.norms[m, B[:, m]]
        if self.metric == "cosine" and self.threshold > 0:
            squared = squared[squared > 0]
        return (
            (0.0, 0.0)
            if not len(squared)
            else (
                math.sqrt(squared.min()),
                math.sqrt(squared.max()),
            )
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinChoice:
    """How pairs of a store are found fastest.

    Attributes:
        join: None where the scan of all pairs is.
        seconds: estimated time on one core. pairs: estimated number of pairs.
    """

    join: CodeJoin | None
    seconds: float
    pairs: float


def choose(
    sample: Codes, rows: int, C: NDArray[np.float32], metric: Metric, threshold: float
) -> JoinChoice:
    """Tries groups of several sizes on a random sample [n, M] of a store of so many rows."""
    n = max(1, len(sample))
    scale = rows / n
    best = JoinChoice(join=None, seconds=rows**2 / 2 * _SCAN * C.shape[0] / 16, pairs=math.nan)
    if not native.available():
        return best
    for parts in sorted({min(parts, C.shape[0]) for parts in _PARTS}):
        join = CodeJoin.of(C, metric, threshold, parts=parts)
        seconds = join.groups * _seconds(join, sample, scale)
        if seconds < best.seconds:
            best = JoinChoice(join=join, seconds=seconds, pairs=math.nan)
    if best.join is None:
        return best
    found = (best.join.find(group, sample, most_pairs=0) for group in range(best.join.groups))
    pairs = sum(part.total for part in found)
    return JoinChoice(join=best.join, seconds=best.seconds, pairs=pairs * scale**2)


def _seconds(join: CodeJoin, sample: Codes, scale: float) -> float:
    """The estimated time of one group, by a trial of the last one; infinite where the trial is not
    done in time."""
    trials = []
    for rows in (sample[: len(sample) // 2], sample):
        found = join.find(join.groups - 1, rows, once=True, most_pairs=0, most_steps=_TRIED_STEPS)
        if not found.complete:
            return math.inf
        trials.append(found)
    half, whole = trials
    visited = _extrapolated(half.visited, whole.visited, scale)
    return _VISIT * visited + _CHECK * _extrapolated(half.checked, whole.checked, scale)


def _extrapolated(half: int, whole: int, scale: float) -> float:
    """A count at ``scale`` times as many rows, by its growth from half of the sample to the whole;
    between linear and quadratic."""
    growth = math.log2((whole + 1) / (half + 1))
    return float(whole * scale ** min(2.0, max(1.0, growth)))
