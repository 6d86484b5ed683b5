"""Statistics of how well a model fits a shard, and a model's baseline of them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raypq.config import Settings

# The largest optimism that is known to correct the error of training rows: of 23 rows a codeword,
# the fewest that it was measured with (``metrics.drift.baseline_of``). With about as many rows as
# codewords, the training error is near 0 whatever the data.
MOST_OPTIMISM = 1.3
_DIGITS = 6  # significant; a snapshot may hold 10,000 of these


class Spread(Settings):
    """Mean, standard deviation and quantiles of a statistic over rows."""

    mean: float
    std: float
    q05: float
    q50: float
    q95: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """The spread of values [n]."""
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        return cls(
            mean=_rounded(values.mean()),
            std=_rounded(values.std()),
            q05=_rounded(low),
            q50=_rounded(middle),
            q95=_rounded(high),
        )


class ShardStats(Settings):
    """Statistics of a shard, on a fixed random sample of its rows.

    Attributes:
        rows: size of the sample.
        error: relative quantization error of a row, ‖u − q(u)‖² / mean ‖u‖².
        norm: ‖x‖ of a row.
        coded: size of the sample for ``entropy``.
        entropy: of codeword usage in bits, mean over sub-codebooks, with the Miller-Madow
            correction for the size of the sample.
    """

    rows: int
    error: Spread
    norm: Spread
    coded: int
    entropy: float


class Level(Settings):
    """A statistic on the training data.

    Attributes:
        mean: over all rows.
        within: standard deviation of rows within shards.
        between: standard deviation between shards, beyond what rows explain.
    """

    mean: float
    within: float
    between: float


class Baseline(Settings):
    """Statistics of a model's training data; stored in the model's record.

    Attributes:
        shards: number of shards that were measured.
        optimism: factor by which the error of new rows is expected to exceed that of the training
            rows, to which the codebooks were fitted.
    """

    shards: int
    optimism: float
    error: Level
    norm: Level
    entropy: Level

    @property
    def judges_codes(self) -> bool:
        """Whether the training rows were enough to expect an error and an entropy of new rows."""
        return self.optimism <= MOST_OPTIMISM


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
