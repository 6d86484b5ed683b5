"""Drift detection: whether new shards still resemble a model's training data.

A few hundred rows of each encoded shard are measured: quantization error, entropy of codeword
usage, and norms of the features. The same statistics of the training shards, taken after training,
are the baseline in the model's record. They are of training, not of the first encode, because the
question is whether to train again: a store that differs from the training data from its first night
on must be reported. Drift is a change that exceeds the limits of the settings and is statistically
significant. A model of too few training rows a codeword has fitted each of them, so its training
error and its use of codewords say nothing of new rows; then feature norms alone are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from raypq import console
from raypq.config import DriftLimits
from raypq.data.codes import usage_bits
from raypq.data.store.shard_stats import MOST_OPTIMISM, Baseline, Level, ShardStats, Spread
from raypq.methods.base import Model

# Rows whose error is measured: one in 128, which costs a hundredth of encoding, but at least 64
# (a mean good to about one part in twenty) and at most 512.
_ONE_IN, _LEAST, _MOST = 128, 64, 512
_CODED = 2048  # rows whose codes are counted
_OPTIMISM = 3.0  # c in ``baseline_of``
_COUNTABLE = 4  # rows for each codeword that the entropy needs
_FEW = 64  # rows of a shard that its means need


class Gauge:
    """Measures a sample of one shard while it is encoded.

    Rows are chosen by random numbers that depend only on the number of rows: a shard gives the same
    statistics everywhere, and a regular order of rows does not bias the sample.
    """

    def __init__(self, model: Model, rows: int) -> None:
        self._model = model
        rng = np.random.default_rng(0)
        sample = min(rows, max(_LEAST, min(rows // _ONE_IN, _MOST)))
        self._coded = np.sort(rng.choice(rows, min(rows, _CODED), replace=False))
        self._measured = np.sort(rng.choice(self._coded, sample, replace=False))
        self._count = np.zeros((model.M, model.K), np.int64)
        self._X: list[NDArray[np.float32]] = []
        self._B: list[NDArray[np.uint8]] = []

    def add(
        self,
        X: NDArray[np.float32],
        B: NDArray[np.uint8],
        row: int,
        fresh: NDArray[np.bool_] | None = None,
    ) -> None:
        """Measures a batch: features [m, dx] and codes [m, M] of the rows from ``row`` on.

        Args:
            fresh: mask [n] of the m rows that X and B hold; None for all.
        """
        coded = _inside(self._coded, row, len(X), fresh)
        self._take(X, B[coded], coded, _inside(self._measured, row, len(X), fresh))

    def add_features(self, X: NDArray[np.float32], row: int) -> None:
        """As ``add`` for rows without codes; only the sample is encoded."""
        coded = _inside(self._coded, row, len(X))
        measured = _inside(self._measured, row, len(X))
        self._take(X, self._model.encode(X[coded]), coded, measured)

    def _take(
        self,
        X: NDArray[np.float32],
        B: NDArray[np.uint8],
        coded: NDArray[np.int64],
        measured: NDArray[np.int64],
    ) -> None:
        M, K = self._count.shape
        flat = (B.astype(np.int64) + K * np.arange(M)).reshape(-1)
        self._count += np.bincount(flat, minlength=M * K).reshape(M, K)
        self._X.append(X[measured])  # copies, so that the batch can be freed
        self._B.append(B[np.searchsorted(coded, measured)])

    def read(self) -> ShardStats | None:
        """The statistics of the shard; None if no rows were measured."""
        if not any(map(len, self._X)):
            return None
        X = np.concatenate(self._X)
        U = self._model.embed(X).astype(np.float64)
        delta = U - self._model.decode(np.concatenate(self._B))
        energy = float(np.einsum("nd,nd->", U, U)) / len(U)
        error = np.einsum("nd,nd->n", delta, delta) / (energy or 1.0)
        return ShardStats(
            rows=len(X),
            error=Spread.of(error),
            norm=Spread.of(np.linalg.norm(X.astype(np.float64), axis=1)),
            coded=int(self._count[0].sum()),
            entropy=float(f"{_entropy(self._count):.6g}"),
        )


def _inside(
    chosen: NDArray[np.int64], row: int, m: int, fresh: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Positions of chosen rows in a batch of m rows; with ``fresh``, among those of the mask."""
    n = m if fresh is None else len(fresh)
    low, high = np.searchsorted(chosen, [row, row + n])
    rows = chosen[low:high] - row
    if fresh is None:
        return rows
    return (np.cumsum(fresh) - 1)[rows[fresh[rows]]]


def _entropy(count: NDArray[np.int64]) -> float:
    n = int(count[0].sum())
    correction = ((count > 0).sum(axis=1) - 1) / (2 * n * np.log(2))
    bits = np.minimum(usage_bits(count) + correction, np.log2(count.shape[1]))
    return float(bits.mean())


def baseline_of(measured: Sequence[ShardStats], *, images: int, K: int) -> Baseline | None:
    """The baseline of measured training shards, for a model trained on ``images`` rows."""
    if not measured:
        return None
    # The error of training rows is lower than that of new rows. Measured for Lloyd's algorithm on
    # n = 23 to 200 normally distributed rows a codeword in 2 to 40 dimensions: by a factor of
    # (n + c) / (n − c), with c from 1.4 to 5.
    n = max(images / K, 2 * _OPTIMISM)
    rows = np.array([stats.rows for stats in measured])
    entropies = np.array([stats.entropy for stats in measured])
    entropy = Level(mean=float(entropies.mean()), within=0.0, between=float(entropies.std()))
    return Baseline(
        shards=len(measured),
        optimism=(n + _OPTIMISM) / (n - _OPTIMISM),
        error=_level([stats.error for stats in measured], rows),
        norm=_level([stats.norm for stats in measured], rows),
        entropy=entropy,
    )


def _level(shards: Sequence[Spread], rows: NDArray[np.int64]) -> Level:
    means = np.array([spread.mean for spread in shards])
    within = np.average([spread.std**2 for spread in shards], weights=rows)
    mean = np.average(means, weights=rows)
    between = np.average((means - mean) ** 2, weights=rows) - float(np.mean(within / rows))
    return Level(
        mean=float(mean), within=float(within) ** 0.5, between=max(float(between), 0.0) ** 0.5
    )


def reason_not_judged(baseline: Baseline, *, K: int) -> str | None:
    """Why quantization error and entropy are not judged; None where they are."""
    if baseline.judges_codes:
        return None
    if math.isinf(baseline.optimism):
        return (
            "codes of this model store class probabilities, which are surer for training rows than "
            "for new ones; feature norms are compared now, quantization error and use of codewords "
            "from the next version on, with the shards of this one"
        )
    least = round(_OPTIMISM * (MOST_OPTIMISM + 1) / (MOST_OPTIMISM - 1)) * K
    n = _OPTIMISM * (baseline.optimism + 1) / (baseline.optimism - 1)  # solved for n
    rows = min(round(n * K), least - 1)
    return (
        f"the model was trained on {'at most ' if n <= 2 * _OPTIMISM else ''}{rows:,} rows for its "
        f"{K} codewords, too few to judge quantization error and use of codewords (it takes "
        f"{least:,}); feature norms are judged"
    )


def known_baseline(model: Model, others: Sequence[ShardStats]) -> Baseline | None:
    """The baseline in a model's record; for an older model, and for the codes of one that stores
    class probabilities, that of its other shards.

    Args:
        others: statistics of shards that the model encoded on earlier nights.
    """
    recorded = model.record.get("baseline")
    of_others = baseline_of(others, images=1 << 62, K=model.K)  # not training rows: no optimism
    if recorded is None:
        return of_others
    try:
        baseline = Baseline(**recorded)
    except (ValidationError, TypeError):
        console.warn("the baseline in the model's record cannot be read; drift is not judged")
        return None
    if not model.stores_classes:
        return baseline
    # A network is surer of the classes of its training rows: their error is no measure.
    if of_others is None:
        return baseline.model_copy(update={"optimism": math.inf})
    return of_others.model_copy(update={"norm": baseline.norm})


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """A shard that differs from the training data, and how."""

    shard: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.shard}: {'; '.join(self.reasons)}"


def detect_drift(
    shard: str, stats: ShardStats, baseline: Baseline, limits: DriftLimits, *, K: int
) -> Drifted | None:
    """How a shard differs from the baseline, if it does; None for shards of few rows."""
    if stats.rows < _FEW:
        return None
    reasons = []
    expected = baseline.error.mean * baseline.optimism
    rise = stats.error.mean - expected
    judged = baseline.judges_codes
    if judged and rise > _allowed(limits.error * expected, baseline.error, stats.rows, limits):
        reasons.append(
            f"quantization error {stats.error.mean:.3g} of the energy, {_percent(rise, expected)} "
            f"above the {expected:.3g} of training"
        )
    level = baseline.norm
    change = stats.norm.mean - level.mean
    if abs(change) > _allowed(limits.norm * level.mean, level, stats.rows, limits):
        reasons.append(
            f"feature norm {stats.norm.mean:.3g}, {_percent(abs(change), level.mean)} "
            f"{'above' if change > 0 else 'below'} the {level.mean:.3g} of training"
        )
    fall = baseline.entropy.mean - stats.entropy
    allowed = max(limits.entropy, limits.sigmas * baseline.entropy.between)
    if judged and stats.coded >= _COUNTABLE * K and fall > allowed:
        reasons.append(
            f"codewords used with an entropy of {stats.entropy:.2f} bits, {fall:.2f} below the "
            f"{baseline.entropy.mean:.2f} of training"
        )
    return Drifted(shard=shard, reasons=tuple(reasons)) if reasons else None


def _allowed(matters: float, level: Level, rows: int, limits: DriftLimits) -> float:
    noise: Any = np.sqrt(level.between**2 + level.within**2 / rows)
    return max(matters, limits.sigmas * float(noise))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "no part"
