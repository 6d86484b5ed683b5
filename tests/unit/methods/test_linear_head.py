"""The maths of a linear head: closed form, gradient, scale, and sums that any split gives."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional as F

from raypq.errors import ConfigError, DivergenceError
from raypq.methods.base import Stats
from raypq.methods.support import lbfgs, linear_head
from raypq.methods.support.linear_head import LinearSettings, Scale, Weights

Rows = tuple[np.ndarray, np.ndarray]


def rows(n: int = 400, D: int = 6, L: int = 4, seed: int = 0) -> Rows:
    """Rows s [n, D] of unlike scales, with a constant dimension, and classes y [n]."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(L), rng.integers(0, L, n - L)]).astype(np.int32)
    s = rng.standard_normal((L, D))[y] + rng.standard_normal((n, D))
    s = (s + rng.standard_normal(D)) * 10.0 ** rng.integers(-2, 3, D)
    s[:, -1] = 2.5
    return s.astype(np.float32), y


def moments(s: np.ndarray, y: np.ndarray, L: int, loss: str) -> Stats:
    return Stats(sums=linear_head.accumulate_moments(s, y, L, loss))


def standardised(s: np.ndarray) -> np.ndarray:
    wide = s.astype(np.float64)
    std = wide.std(axis=0)
    return np.divide(wide - wide.mean(axis=0), std, out=np.zeros_like(wide), where=std > 1e-6)


@given(seed=st.integers(0, 50), penalty=st.sampled_from([1e-3, 1e-1, 10.0]))
@settings(max_examples=20, deadline=None)
def test_ridge_is_the_closed_form_with_an_intercept(seed: int, penalty: float) -> None:
    L = 4
    s, y = rows(seed=seed)
    found = linear_head.fit_ridge(
        moments(s, y, L, "ridge"), LinearSettings(loss="ridge", penalty=penalty)
    )
    z = np.column_stack([standardised(s), np.ones(len(s))])
    left = z.T @ z / len(s) + penalty * np.diag([1.0] * s.shape[1] + [0.0])
    solution = np.linalg.solve(left, z.T @ np.eye(L)[y] / len(s))
    expected = z @ solution
    scores = s.astype(np.float64) @ found.W.T.astype(np.float64) + found.bias
    assert_allclose(scores, expected, atol=2e-5)
    assert_array_equal(found.W[:, -1], 0.0)


@given(seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_the_gradient_is_that_of_autograd(seed: int) -> None:
    L = 4
    s, y = rows(seed=seed)
    rng = np.random.default_rng(seed)
    scale = Scale.of(moments(s, y, L, "softmax"))
    W = torch.from_numpy(rng.standard_normal((L, s.shape[1]))).requires_grad_()
    bias = torch.from_numpy(rng.standard_normal(L)).requires_grad_()
    z = torch.from_numpy((s.astype(np.float64) - scale.mean) * scale.inverse_std)
    value = F.cross_entropy(z @ W.T + bias, torch.from_numpy(y.astype(np.int64)))
    value = value + 0.05 * W.square().sum()
    value.backward()
    point = lbfgs.Objective(
        scale, 0.1, lambda weights: softmax_stats(s, y, weights), lambda _: None
    ).at(W.detach().numpy(), bias.detach().numpy())
    assert point.value == pytest.approx(value.item(), rel=1e-5)
    assert_allclose(point.W, W.grad, atol=1e-5)
    assert_allclose(point.bias, bias.grad, atol=5e-6)


def softmax_stats(s: np.ndarray, y: np.ndarray, weights: Weights) -> Stats:
    return Stats(sums=linear_head.accumulate_softmax(s, y, weights, gradient=True))


def fitted(s: np.ndarray, y: np.ndarray, L: int, **chosen: Any) -> tuple[Weights, list[Any]]:
    history: list[Mapping[str, Any]] = []
    weights = lbfgs.fit_softmax(
        moments(s, y, L, "softmax"),
        LinearSettings(**chosen),
        lambda weights: softmax_stats(s, y, weights),
        history.append,
    )
    return weights, history


@pytest.mark.parametrize("seed", range(4))
def test_the_result_is_stationary(seed: int) -> None:
    L, penalty = 4, 0.01
    s, y = rows(seed=seed)
    weights, history = fitted(s, y, L, penalty=penalty, tolerance=1e-4)
    scale = Scale.of(moments(s, y, L, "softmax"))
    std = np.divide(1.0, scale.inverse_std, out=np.zeros_like(scale.mean),
                    where=scale.inverse_std > 0)  # fmt: skip
    objective = lbfgs.Objective(
        scale, penalty, lambda weights: softmax_stats(s, y, weights), lambda _: None
    )
    W = weights.W.astype(np.float64)
    end = objective.at(W * std, weights.bias + W @ scale.mean)
    assert end.slope <= 2e-4 * history[0]["gradient"]
    assert end.value == pytest.approx(min(entry["objective"] for entry in history), rel=1e-6)
    assert history[-1]["accuracy"] > history[0]["accuracy"]


def test_it_starts_from_the_shares_of_the_classes() -> None:
    s, y = rows()
    _, history = fitted(s, y, 4, iterations=1)
    share = np.bincount(y) / len(y)
    assert history[0]["loss"] == pytest.approx(-(share * np.log(share)).sum(), rel=1e-6)


@given(cuts=st.lists(st.integers(0, 400), max_size=4))
@settings(max_examples=20, deadline=None)
def test_sums_of_parts_are_the_sums_of_all(cuts: list[int]) -> None:
    s, y = rows()
    weights = Weights(W=np.ones((4, 6), np.float32), bias=np.arange(4.0))
    ends = [0, *sorted(cuts), 400]
    for sums in (
        lambda a, b: linear_head.accumulate_moments(a, b, 4, "ridge"),
        lambda a, b: linear_head.accumulate_softmax(a, b, weights, gradient=True),
        lambda a, b: linear_head.accumulate_squares(a, b, weights),
    ):
        total = Stats()
        for low, high in pairwise(ends):
            total.merge(Stats(sums=sums(s[low:high], y[low:high])))
        for name, value in sums(s, y).items():
            assert_allclose(total.sums[name], value, rtol=1e-5, atol=1e-3, err_msg=name)


def test_scale_and_units_do_not_matter() -> None:
    """Features in other units give the same scores, with the same penalty."""
    s, y = rows()
    factor = np.array([100.0, 0.01, 7.0, 1.0, 3.0, 1.0], np.float32)
    for loss in ("ridge", "softmax"):
        if loss == "ridge":
            settings = LinearSettings(loss="ridge", penalty=0.1)
            one = linear_head.fit_ridge(moments(s, y, 4, loss), settings)
            other = linear_head.fit_ridge(moments(s * factor, y, 4, loss), settings)
        else:
            one, _ = fitted(s, y, 4, penalty=0.1)
            other, _ = fitted(s * factor, y, 4, penalty=0.1)
        assert_allclose(other.logits(s * factor), one.logits(s), atol=2e-3)


def test_an_unshifted_head_gives_the_same_scores() -> None:
    s, y = rows()
    weights, _ = fitted(s, y, 4)
    shift = np.linspace(-1, 1, 6, dtype=np.float32)
    final = linear_head.unshifted(weights, shift)
    assert_allclose(final.logits(s + shift), weights.logits(s), atol=1e-3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss": "hinge"}, "'softmax' or 'ridge', found 'hinge'"),
        ({"penalty": 0}, "penalty.*greater than 0, found 0"),
        ({"iterations": 0}, "iterations.*greater than or equal to 1, found 0"),
        ({"loss": "ridge", "iterations": 5}, "iterations: expected no such setting with loss = "),
        ({"loss": "ridge", "tolerance": 0.1}, "tolerance: expected no such setting with loss = "),
        ({"ridge": 1}, "unknown key 'ridge'; allowed: iterations, loss, penalty, tolerance"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LinearSettings.parse(values)


def test_a_loss_that_is_not_finite_stops() -> None:
    s, y = rows()
    broken = Stats(sums={**softmax_stats(s, y, Weights(W=np.zeros((4, 6), np.float32),
                                                       bias=np.zeros(4))).sums,
                         "loss": np.array(np.nan)})  # fmt: skip
    with pytest.raises(DivergenceError, match="the loss of pass 1 is nan; set a larger penalty"):
        lbfgs.fit_softmax(
            moments(s, y, 4, "softmax"), LinearSettings(), lambda _: broken, lambda _: None
        )


def test_the_memory_of_lbfgs_is_bounded() -> None:
    assert lbfgs._history(1000) == 20
    assert lbfgs._history(21_841 * 1000) == 3
