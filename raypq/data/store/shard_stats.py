"""Figures of how well a model fits a shard, and a model's baseline."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raypq.config import Settings

_DIGITS = 6  # significant; a snapshot may hold 10,000 of these


class Spread(Settings):
    """Mean, standard deviation and quantiles of a figure over rows."""

    mean: float
    std: float
    q05: float
    q50: float
    q95: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """Of values [n]."""
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        return cls(
            mean=_short(values.mean()),
            std=_short(values.std()),
            q05=_short(low),
            q50=_short(middle),
            q95=_short(high),
        )


class ShardStats(Settings):
    """Measured on a fixed random sample of a shard's rows.

    Attributes:
        rows: the sample. error: ‖u − q(u)‖² of a row, in parts of the mean ‖u‖². norm: ‖x‖.
        entropy: of codeword usage, mean over sub-codebooks, in bits; corrected for the size of
            the sample (Miller and Madow), which has ``coded`` rows.
    """

    rows: int
    error: Spread
    norm: Spread
    coded: int
    entropy: float


class Level(Settings):
    """A figure on the training data.

    Attributes:
        mean: over all rows. within: standard deviation of rows. between: of shards, beyond what
            rows alone explain.
    """

    mean: float
    within: float
    between: float


class Baseline(Settings):
    """What a model's training data looked like to it; kept in the model's record.

    Attributes:
        shards: how many were measured. optimism: how much larger the error of new rows of the
            same kind is expected to be, since the codebooks were fitted to these.
    """

    shards: int
    optimism: float
    error: Level
    norm: Level
    entropy: Level


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
