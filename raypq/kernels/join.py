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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Metric
from raypq.kernels import native
from raypq.kernels.sdc import SymmetricTables
from raypq.kernels.tables import norms_of_codes, squared_norms

Codes = NDArray[np.uint8]

_EXCESS = 2e-5  # allowed to float32 sums of up to 100 entries
_PARTS = (2, 3, 4, 6, 8)  # of a group, that are tried on a sample
_TRIED_STEPS = 100_000_000  # of the trials of one join
_ALL = 1 << 62
# Seconds of one core (AMD EPYC, 2026-11-29): a visit of two prefixes, a comparison of two codes,
# one in the scan of all pairs, and the sorting of a code.
_VISIT, _CHECK, _SCAN, _SORT = 7.0e-8, 1.3e-8, 1.7e-10, 2.5e-7


@dataclass(frozen=True, kw_only=True)
class JoinWork:
    """What a join finds, and its work.

    Attributes:
        total: number of pairs. visited, checked: pairs of prefixes and of codes that were compared.
        complete: whether it did all of its work.
    """

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
        M = len(C)
        groups = max(1, round(M / parts))
        first = tuple(M * g // groups for g in range(groups + 1))
        return cls.by(C, metric, threshold, first=first)

    @classmethod
    def by(
        cls, C: NDArray[np.float32], metric: Metric, threshold: float, *, first: tuple[int, ...]
    ) -> Self:
        """The join by groups that start with these parts, and M."""
        M, K, d = C.shape
        return cls(
            T=SymmetricTables(C, "l2").entries.astype(np.float32),
            norms=squared_norms(C.reshape(-1, d)).reshape(M, K),
            metric=metric,
            threshold=threshold,
            first=first,
        )

    @property
    def groups(self) -> int:
        """Number of groups, each of which has a join of its own."""
        return len(self.first) - 1

    def pays(self, n: int, m: int) -> bool:
        """Whether n rows are joined with m faster than scanned: all of them are sorted first."""
        return self.groups * (n + m) * _SORT < _seconds_of_scan(n * m, len(self.T))

    def pairs(
        self, group: int, A: Codes, B: Codes | None = None, *, once: bool = False
    ) -> Iterator[NDArray[np.uint32]]:
        """Pairs a < b of rows of A [n, M], or, given B [m, M], of a row of A and one of B, whose
        first near group is this one: parts [p, 2], in no order. All groups together find every pair
        within the threshold, once, and perhaps some beyond it.

        Args:
            once: of rows with equal codes, the first one stands for all, in pairs with other codes;
                and it has a pair with each of the others.
        """
        first, shares, limit = self._limits(A, A if B is None else B)
        return native.pairs(
            A, B, self.T, first, shares, limit, group, once=once, threads=kernels.threads()
        )

    def count(
        self, group: int, A: Codes, *, once: bool = False, most_steps: int = _ALL
    ) -> JoinWork:
        """The number of pairs that ``pairs`` gives, within A [n, M].

        Args:
            most_steps: comparisons after which it gives up.
        """
        first, shares, limit = self._limits(A, A)
        total, visited, checked, complete = native.count_pairs(
            A, self.T, first, shares, limit, group,
            once=once, most_steps=most_steps, threads=kernels.threads(),
        )  # fmt: skip
        return JoinWork(total=total, visited=visited, checked=checked, complete=complete)

    def _limits(self, A: Codes, B: Codes) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
        """The first part of each group and M, the limit of each group, and that of all parts."""
        limit = self._limit(A, B)
        first = np.array(self.first, np.int64)
        # Half by the number of parts, half by how far their codewords are apart.
        apart = np.add.reduceat(self.T.mean(axis=(1, 2), dtype=np.float64), first[:-1])
        even = np.diff(first) / first[-1]
        share = (even + apart / apart.sum()) / 2 if apart.sum() > 0 else even
        return first, (limit * share).astype(np.float32), limit

    def _limit(self, A: Codes, B: Codes) -> float:
        """The largest squared distance of pairs within the threshold, with some excess."""
        limit = float(np.float32(self.threshold))
        if self.metric != "l2":
            own = self._lengths(A)
            (a, a_most), (b, b_most) = own, own if B is A else self._lengths(B)
            c = limit - 1e-6
            if self.metric == "dot":
                c = limit - 1e-6 * max(1.0, abs(limit), a_most * b_most)
                limit = a_most**2 + b_most**2 - 2 * c
            else:  # ‖a‖² + ‖b‖² − 2c‖a‖‖b‖ is convex in both, and largest in a corner
                corners = [(x, y) for x in (a, a_most) for y in (b, b_most)]
                limit = max(x * x + y * y - 2 * c * x * y for x, y in corners)
        return min(max(limit, 0.0) * (1 + _EXCESS) + 1e-30, float(np.finfo(np.float32).max))

    def _lengths(self, B: Codes) -> tuple[float, float]:
        """The least and the greatest length of codes; of those without length, none is within a
        positive cosine of another."""
        squared = norms_of_codes(B, self.norms)
        if self.metric == "cosine" and self.threshold > 0:
            squared = squared[squared > 0]
        if not len(squared):
            return 0.0, 0.0
        return math.sqrt(squared.min()), math.sqrt(squared.max())


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
    sample: Codes,
    rows: int,
    C: NDArray[np.float32],
    metric: Metric,
    threshold: float,
    *,
    compared: float | None = None,
    once: bool = False,
) -> JoinChoice:
    """Tries groups of several sizes on a random sample [n, M] of a store of so many rows.

    Args:
        compared: pairs that a scan compares; default: all of the store.
        once: as in ``CodeJoin.pairs``.
    """
    scale = rows / max(1, len(sample))
    compared = rows**2 / 2 if compared is None else compared
    best = JoinChoice(join=None, seconds=_seconds_of_scan(compared, len(C)), pairs=math.nan)
    if not usable(C):
        return best
    for parts in sorted({min(parts, C.shape[0]) for parts in _PARTS}):
        join = CodeJoin.of(C, metric, threshold, parts=parts)
        choice = _tried(join, sample, scale, once)
        if choice is not None and choice.seconds < best.seconds:
            best = choice
    return best


def _seconds_of_scan(compared: float, M: int) -> float:
    """Seconds of one core that compares so many pairs of codes of M parts."""
    return compared * _SCAN * M / 16


def usable(C: NDArray[np.float32]) -> bool:
    """Whether codes of codebooks C [M, K, d] can be joined here."""
    return native.available() and sums_fit(C)


def sums_fit(C: NDArray[np.float32]) -> bool:
    """Whether sums of squared distances and products of codes stay within float32."""
    largest = float(np.abs(C).max(initial=0.0))
    return 4 * C.shape[0] * C.shape[2] * largest**2 < 1e38


def _tried(join: CodeJoin, sample: Codes, scale: float, once: bool) -> JoinChoice | None:
    """The estimated time of a join, by half of the sample and all of it; None where that is not
    done in time."""
    left, seconds, pairs = _TRIED_STEPS, 0.0, 0.0
    for group in range(join.groups):
        trials = []
        for rows in (sample[: len(sample) // 2], sample):
            found = join.count(group, rows, once=once, most_steps=left)
            if not found.complete:
                return None
            left -= found.visited + found.checked
            trials.append(found)
        half, whole = trials
        seconds += _VISIT * _extrapolated(half.visited, whole.visited, scale)
        seconds += _CHECK * _extrapolated(half.checked, whole.checked, scale)
        pairs += whole.total * scale**2
    return JoinChoice(join=join, seconds=seconds, pairs=pairs)


def _extrapolated(half: int, whole: int, scale: float) -> float:
    """A count at ``scale`` times as many rows, by its growth from half of the sample to the whole;
    between linear and quadratic."""
    growth = math.log2((whole + 1) / (half + 1))
    return float(whole * scale ** min(2.0, max(1.0, growth)))
