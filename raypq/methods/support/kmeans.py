"""k-means of codes: assignment, exact sums, centres, seeds.

A row is a decoded code; for cosine it has unit length, as every centre then has (spherical
k-means). Rows are assigned by the exact scores of ``raypq.kernels``, ties to the lower cluster.

**Exact sums.** Values are rounded to multiples of a power of two before they are added. It is so
large that float64 holds every sum over the rows of the store without rounding, so sums depend
neither on the order of rows nor on how they are divided into files, tasks and threads. The rounding
is at most N·2⁻⁵² of the largest value: up to 134 million rows less than that of a float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Metric
from raypq.kernels.tables import norms_of_codes, squared_norms
from raypq.methods.base import Model, Stats
from raypq.methods.support import codebooks
from raypq.methods.support.code_sample import CodeSample

Floats = NDArray[np.float32]

SAMPLE_ROWS = 16  # distinct codes that seeds are drawn from, for each centre
_MIN_SAMPLE = 4096
_GROWTH = 8  # seeds are drawn one at a time up to this number, then an eighth of their number
_VALUES = 1 << 20  # float64 values of rows that are decoded at once
_HARDLY = 1e-4  # part of the error by which the last pass must lower it


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeRows:
    """The rows of a code store of one model.

    Attributes:
        metric: l2 or cosine. n: number of rows, on which the rounding of exact sums depends.
    """

    model: Model
    metric: Metric
    n: int

    @cached_property
    def _norms(self) -> NDArray[np.float64]:
        """‖C[m, k]‖² [M, K]."""
        M, K, d = self.model.C.shape
        return squared_norms(self.model.C.reshape(-1, d)).reshape(M, K)

    @cached_property
    def _units(self) -> tuple[float, float]:
        """What values, and squared norms, are rounded to multiples of."""
        if self.metric == "cosine":
            return (_unit(1.0, self.n),) * 2
        longest = float(self._norms.max(axis=1).sum())
        return _unit(float(np.abs(self.model.C).max()), self.n), _unit(longest, self.n)

    @cached_property
    def _codewords(self) -> NDArray[np.float64]:
        """Codewords [M·K, d]; for l2 rounded, since rows are made of them."""
        M, K, d = self.model.C.shape
        wide = self.model.C.reshape(M * K, d).astype(np.float64)
        return wide if self.metric == "cosine" else _rounded(wide, self._units[0])

    def tables(self, centres: Floats) -> kernels.Tables:
        """Tables of centres [k, D] for ``assign``.

        Raises:
            InputError: values whose scores would overflow or vanish in float32.
        """
        return self.model.tables(centres, None, self.metric)

    def no_sums(self, k: int) -> Stats:
        """Sums of no rows: ``count`` [k], ``total`` [k, D] and ``squares`` [k], float64."""
        shapes = {"count": (k,), "total": (k, self.model.D), "squares": (k,)}
        return Stats(sums={name: np.zeros(shape) for name, shape in shapes.items()})

    def add_to(self, sums: Stats, B: NDArray[np.uint8], cluster: NDArray[np.int64]) -> None:
        """Adds rows with codes [n, M], by cluster [n]: their number, sum and squared norms."""
        total = sums.sums["total"]
        unit, square_unit = self._units
        squares, k = norms_of_codes(B, self._norms), len(total)
        scale = None
        if self.metric == "cosine":
            length = np.sqrt(squares)
            scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
            squares = (length > 0).astype(np.float64)
        squares = _rounded(squares, square_unit)
        sums.sums["count"] += np.bincount(cluster, minlength=k)
        sums.sums["squares"] += np.bincount(cluster, squares, minlength=k)
        step = max(1, _VALUES // self.model.D)
        M, K, _ = self.model.C.shape
        for start in range(0, len(B), step):
            part = slice(start, start + step)
            index = B[part] + np.arange(M) * K
            rows = np.take(self._codewords, index, axis=0).reshape(len(index), -1)
            if scale is not None:
                rows *= scale[part, None]
                rows = _rounded(rows, unit)
            kernels.add_rows(total, cluster[part], rows)

    def moved(self, centres: Floats, sums: Stats, rng: np.random.Generator) -> tuple[Floats, float]:
        """Centres moved to the means of their rows, empty ones re-seeded as in
        ``codebooks.means``; and the mean squared distance of the rows to the centres before.

        Args:
            centres: [k, D]. sums: of all rows, assigned to them.
        """
        count, total, squares = (sums.sums[name] for name in ("count", "total", "squares"))
        C = centres.astype(np.float64)
        error = squares - 2 * (total * C).sum(axis=1) + count * (C * C).sum(axis=1)
        error[error < squares * self.n * 2.0**-48] = 0.0  # not more than rounding
        mean_error = float(error.sum() / self.n)
        new = codebooks.means(centres[None], count[None], total[None], error[None], rng)[0]
        return self._unit_length(new), mean_error

    def _unit_length(self, centres: Floats) -> Floats:
        """For cosine, centres of length one."""
        if self.metric != "cosine":
            return centres
        wide = centres.astype(np.float64)
        length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        scaled = np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
        return scaled.astype(np.float32)

    def seeds(self, sample: CodeSample, k: int, rng: np.random.Generator) -> Floats:
        """Centres [k, D], distinct codes of a sample of at least k.

        k-means++, except that beyond the first few an eighth of the centres so far are drawn at
        once: about 6·log₂(k) passes over the sample instead of k.
        """
        weight = sample.count.astype(np.float64)
        chosen = _drawn(weight, rng.random(1))
        nearest = np.full(len(weight), np.inf)
        latest = chosen
        while True:
            np.minimum(nearest, self._squared_distances(sample.B, latest), out=nearest)
            nearest[chosen] = 0.0
            if len(chosen) == k:
                return self._unit_length(self.model.decode(sample.B[chosen]))
            mass = weight * nearest
            if not mass.any():  # codes of equal vectors are left
                mass = weight.copy()
                mass[chosen] = 0.0
            latest = _drawn(mass, rng.random(min(k - len(chosen), max(1, len(chosen) // _GROWTH))))
            chosen = np.concatenate([chosen, latest])

    def _squared_distances(
        self, B: NDArray[np.uint8], centres: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Squared distance of each row to the nearest of those of numbers ``centres`` [n]."""
        score, _ = assign(B, self.tables(self.model.decode(B[centres])))
        if self.metric == "cosine":
            return np.maximum(2.0 - 2.0 * score.astype(np.float64), 0.0)
        return np.maximum(-score.astype(np.float64), 0.0)


def assign(
    B: NDArray[np.uint8], tables: kernels.Tables, *, device: str = "cpu"
) -> tuple[Floats, NDArray[np.int64]]:
    """Score with the nearest centre, and its number, of codes [n, M]; both [n]."""
    score, index = kernels.topk_per_code(B, tables, 1, device=device)
    return score[:, 0], index[:, 0]


def sample_size(k: int) -> int:
    """Distinct codes of the sample that seeds of k centres are drawn from."""
    return max(SAMPLE_ROWS * k, _MIN_SAMPLE)


def converged(errors: list[float]) -> bool:
    """Whether the last of several passes hardly lowered the mean error."""
    return len(errors) > 1 and errors[-2] - errors[-1] <= _HARDLY * errors[-2]


def _unit(largest: float, n: int) -> float:
    """The power of two of ``exact sums``, for n values up to ``largest``."""
    if not largest:
        return 1.0
    return 2.0 ** (math.ceil(math.log2(largest * n)) - 52)


def _rounded(values: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    """Values rounded to multiples of a power of two; overwritten."""
    values /= unit
    np.rint(values, out=values)
    values *= unit
    return values


def _drawn(mass: NDArray[Any], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Distinct rows, drawn with probability proportional to their mass by uniform ``draws``; fewer
    than these where a row is drawn twice."""
    running = np.cumsum(mass)
    rows = np.searchsorted(running, draws * running[-1], side="right")
    last = np.flatnonzero(mass)[-1]  # a product may round up to the whole
    return np.unique(np.minimum(rows, last))
