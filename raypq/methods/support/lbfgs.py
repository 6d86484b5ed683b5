"""Softmax weights by L-BFGS: every evaluation of the loss is one exact pass over the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.errors import DivergenceError
from raypq.methods.base import Stats
from raypq.methods.support.linear_head import LinearSettings, Scale, Weights

_HISTORY_BYTES = 1 << 30  # of the steps and gradients that L-BFGS remembers
_MOST_STEPS, _FEWEST_STEPS = 20, 3
_SMALLEST_CHANGE = 1e-9  # of the loss and of weights, at which L-BFGS stops

Pass = Callable[[Weights], Stats]
Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Point:
    """The objective at W [L, D] and bias [L]: its value and gradient."""

    value: float
    W: NDArray[np.float64]
    bias: NDArray[np.float64]

    @property
    def slope(self) -> float:
        """The largest entry of the gradient."""
        return float(max(np.abs(self.W).max(initial=0.0), np.abs(self.bias).max(initial=0.0)))


class Objective:
    """Mean cross-entropy plus penalty/2·‖W‖², of weights W of standardised rows and a bias.

    Args:
        run_pass: the sums of ``accumulate_softmax`` over all rows.
        log: called with an entry of the history after each pass.
    """

    def __init__(self, scale: Scale, penalty: float, run_pass: Pass, log: Log) -> None:
        self._scale, self._penalty = scale, penalty
        self._run_pass, self._log = run_pass, log
        self._passes = 0

    def at(self, W: NDArray[np.float64], bias: NDArray[np.float64]) -> _Point:
        """Evaluates W [L, D] and bias [L] by one pass.

        Raises:
            DivergenceError: the loss is not finite.
        """
        sums, N = self._run_pass(self._scale.to_rows(W, bias)).sums, self._scale.N
        loss = float(sums["loss"]) / N
        gradient = self._scale.from_rows(sums["W"], sums["bias"]) / N + self._penalty * W
        value = loss + self._penalty / 2 * float(np.vdot(W, W))
        point = _Point(value=value, W=gradient, bias=sums["bias"] / N)
        self._passes += 1
        if not np.isfinite(point.value) or not np.isfinite(point.slope):
            raise DivergenceError(
                f"linear: the loss of pass {self._passes} is {point.value}; set a larger penalty"
            )
        accuracy = int(sums["right"]) / N
        self._log({"iteration": self._passes, "objective": point.value, "loss": loss,
                   "accuracy": accuracy, "gradient": point.slope})  # fmt: skip
        return point


def fit_softmax(stats: Stats, settings: LinearSettings, run_pass: Pass, log: Log) -> Weights:
    """Weights of rows s with the least objective (see ``Objective``), given their moments.

    It starts from zero weights and the log shares of the classes.

    Raises:
        DivergenceError: the loss is not finite.
    """
    scale = Scale.of(stats)
    objective = Objective(scale, settings.penalty, run_pass, log)
    W = torch.zeros(len(stats.sums["n"]), len(scale.mean), dtype=torch.float64, requires_grad=True)
    bias = torch.from_numpy(np.log(stats.sums["n"] / scale.N)).requires_grad_()

    def evaluate() -> _Point:
        return objective.at(W.detach().numpy(), bias.detach().numpy())

    first: _Point | None = evaluate()
    assert first is not None, "just evaluated"
    optimizer = torch.optim.LBFGS(
        [W, bias],
        max_iter=settings.iterations,
        max_eval=2 * settings.iterations,
        tolerance_grad=settings.tolerance * first.slope,
        tolerance_change=_SMALLEST_CHANGE,
        history_size=_history(W.numel() + bias.numel()),
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        nonlocal first
        point, first = first or evaluate(), None  # the optimizer begins where it was evaluated
        W.grad, bias.grad = torch.from_numpy(point.W), torch.from_numpy(point.bias)
        return point.value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return scale.to_rows(W.detach().numpy(), bias.detach().numpy())


def _history(parameters: int) -> int:
    """Steps that L-BFGS remembers; each is two vectors of float64."""
    return max(_FEWEST_STEPS, min(_MOST_STEPS, _HISTORY_BYTES // (16 * parameters)))
