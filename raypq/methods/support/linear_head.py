"""A linear head: a classifier of decoded codes q [n, D], by ridge regression or softmax.

The score of class t is V[t]·q + bias[t]. Everything is computed from sums over rows, which are
float64 and merged in shard order, so a head has the same bits for any number of workers. Rows are
s = q − shift, where the shift is the mean codeword: products of them in float32 lose less than
those of q.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raypq.config import Positive, UserSettings
from raypq.methods.base import Model, Stats
from raypq.methods.support.closed_form import solve_ridge
from raypq.methods.support.statistics import PRODUCT_ROWS, class_sums, gram

Loss = Literal["softmax", "ridge"]
_CONSTANT = 1e-12  # share of a dimension's mean square; a variance below it is rounding
_SOFTMAX_ONLY = ("iterations", "tolerance")


class LinearSettings(UserSettings):
    """Settings of a linear head."""

    loss: Loss = Field(
        "softmax",
        description="softmax: cross-entropy, by L-BFGS; ridge: squared error, in one pass",
    )
    penalty: Annotated[float, Field(gt=0)] = Field(
        1e-3,
        description="strength of the L2 penalty on weights, for a mean loss of rows whose "
        "dimensions have variance 1; it does not depend on the number of rows or their scale",
    )
    iterations: Positive = Field(
        100, description="maximum number of L-BFGS iterations, each about one pass over the codes"
    )
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        1e-4, description="stop when the gradient falls below this share of the first one"
    )

    @model_validator(mode="after")
    def _refuse_unused(self) -> Self:
        for name in _SOFTMAX_ONLY:
            if self.loss == "ridge" and name in self.model_fields_set:
                raise ValueError(
                    f"{name}: expected no such setting with loss = ridge, which has a closed form, "
                    f"found {getattr(self, name)}"
                )
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A linear classifier of rows x [n, D]: W [L, D] and bias [L]."""

    W: NDArray[np.float32]
    bias: NDArray[np.float64]

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [n, L]."""
        return x @ self.W.T + self.bias.astype(np.float32)


def shift_of(model: Model) -> NDArray[np.float32]:
    """The mean codeword of each part [D]."""
    return model.C.mean(axis=1, dtype=np.float64).astype(np.float32).reshape(-1)


def accumulate_moments(
    s: NDArray[np.float32], y: NDArray[np.int32], L: int, loss: Loss
) -> dict[str, NDArray[Any]]:
    """Sums over rows s [n, D] of classes y [n]: counts n [L], Σs [D] and Σs² [D]; for ridge also
    the gram G [D, D] and the class sums S [D, L]."""
    wide = s.astype(np.float64)
    sums = {
        "n": np.bincount(y, minlength=L).astype(np.float64),
        "x": wide.sum(axis=0),
        "xx": (wide * wide).sum(axis=0),
    }
    if loss == "ridge":
        sums |= {"G": gram(s), "S": class_sums(s, y, L)}
    return sums


def accumulate_softmax(
    s: NDArray[np.float32], y: NDArray[np.int32], weights: Weights, *, gradient: bool
) -> dict[str, NDArray[Any]]:
    """Sums over rows s [n, D] of classes y [n]: cross-entropy in nats and right rows; with
    ``gradient`` also those by W [L, D] and bias [L]."""
    sums = _no_sums(weights, gradient)
    for rows in _blocks(len(s)):
        block, target = s[rows], y[rows]
        at = np.arange(len(block))
        P = weights.logits(block)
        P -= P.max(axis=1, keepdims=True)
        picked = P[at, target].astype(np.float64)
        sums["right"] += np.count_nonzero(P.argmax(axis=1) == target)
        np.exp(P, out=P)
        total = P.sum(axis=1, dtype=np.float64)
        sums["loss"] += (np.log(total) - picked).sum()
        if gradient:
            P /= total[:, None].astype(np.float32)
            P[at, target] -= 1
            sums["W"] += P.T @ block
            sums["bias"] += P.sum(axis=0, dtype=np.float64)
    return sums


def accumulate_squares(
    q: NDArray[np.float32], y: NDArray[np.int32], weights: Weights
) -> dict[str, NDArray[Any]]:
    """Sums over rows q [n, D] of classes y [n]: squared error of the one-hot classes, and right
    rows."""
    sums = _no_sums(weights, gradient=False)
    for rows in _blocks(len(q)):
        block, target = q[rows], y[rows]
        error = weights.logits(block)
        sums["right"] += np.count_nonzero(error.argmax(axis=1) == target)
        error[np.arange(len(block)), target] -= 1
        sums["loss"] += np.square(error, out=error).sum(dtype=np.float64)
    return sums


def _no_sums(weights: Weights, gradient: bool) -> dict[str, NDArray[Any]]:
    sums: dict[str, NDArray[Any]] = {"loss": np.zeros(()), "right": np.zeros((), np.int64)}
    if gradient:
        sums |= {"W": np.zeros(weights.W.shape), "bias": np.zeros(len(weights.bias))}
    return sums


def _blocks(n: int) -> Iterator[slice]:
    """Rows whose scores of all classes are in memory at once."""
    return (slice(start, start + PRODUCT_ROWS) for start in range(0, n, PRODUCT_ROWS))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """Mean and 1/std of rows s: ``mean`` and ``inverse_std`` [D], float64; N rows.

    A constant dimension has the 1/std 0: it has no information about the class.
    """

    N: float
    mean: NDArray[np.float64]
    inverse_std: NDArray[np.float64]

    @classmethod
    def of(cls, stats: Stats) -> Self:
        """The scale of the rows whose moments are in ``stats``."""
        N = float(stats.sums["n"].sum())
        mean, square = stats.sums["x"] / N, stats.sums["xx"] / N
        variance = square - mean**2
        constant = variance <= _CONSTANT * square
        inverse = 1.0 / np.sqrt(np.where(constant, 1.0, variance))
        return cls(N=N, mean=mean, inverse_std=np.where(constant, 0.0, inverse))

    def to_rows(self, W: NDArray[np.float64], bias: NDArray[np.float64]) -> Weights:
        """Weights W [L, D] of standardised rows, and bias [L], as weights of rows s."""
        scaled = (W * self.inverse_std).astype(np.float32)
        return Weights(W=scaled, bias=bias - scaled.astype(np.float64) @ self.mean)

    def from_rows(self, W: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
        """The gradient by weights of standardised rows [L, D], given that by weights of rows s."""
        return (W - np.outer(bias, self.mean)) * self.inverse_std


def unshifted(weights: Weights, shift: NDArray[np.float32]) -> Weights:
    """Weights of rows s as weights of decoded codes q = s + shift."""
    bias = weights.bias - weights.W.astype(np.float64) @ shift.astype(np.float64)
    return Weights(W=weights.W, bias=bias)


def fit_ridge(stats: Stats, settings: LinearSettings) -> Weights:
    """Weights of rows s that minimise the mean of ‖Wz + b − y‖² plus penalty·‖W‖², where z are
    standardised rows and y the one-hot classes.

    Raises:
        ConfigError: the penalty is too small for the rows.
    """
    scale, sums = Scale.of(stats), stats.sums
    N, n, r = scale.N, sums["n"], scale.inverse_std
    G = (sums["G"] / N - np.outer(scale.mean, scale.mean)) * np.outer(r, r)
    S = (sums["S"] / N - np.outer(scale.mean, n / N)) * r[:, None]
    W = solve_ridge(
        (G + G.T) / 2, settings.penalty, S,
        setting="penalty", of="the covariance of decoded codes", images=N,
    )  # fmt: skip
    return scale.to_rows(W.T, n / N)
