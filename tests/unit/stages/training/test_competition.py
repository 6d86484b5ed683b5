"""Held-out rows as seen and as unseen ones, where other classes compete."""

from __future__ import annotations

import numpy as np
import pytest

from raypq.methods.base import TrainingSetInfo
from raypq.methods.support.class_relations import weights
from raypq.stages.training.held_out_classes import best_gamma, competition


def problem(L: int, T: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, TrainingSetInfo]:
    """Class probabilities P [n, L] of rows in classes y [n] that spread to similar classes."""
    rng = np.random.default_rng(L)
    E = rng.standard_normal((L + T, 6)).astype(np.float32)
    y = (np.arange(n) % L).astype(np.int32)
    S = E[:L].astype(np.float64)
    logits = 2 * (S @ S.T)[y] + rng.standard_normal((n, L))
    P = np.exp(logits - logits.max(axis=1, keepdims=True))
    names = tuple(f"class {t}" for t in range(L + T))
    info = TrainingSetInfo(
        N=n, dx=4, A=E[:L], names=names[:L], A_other=E[L:], other_names=names[L:]
    )
    return P / P.sum(axis=1, keepdims=True), y, info


@pytest.mark.parametrize(("L", "T"), [(2, 1), (3, 4), (25, 1), (25, 7)])
def test_seen_rows_meet_the_real_other_classes(L: int, T: int) -> None:
    P, y, info = problem(L, T)
    [found] = competition([P], y, info, seed=0)
    assert info.A is not None
    assert info.A_other is not None
    scores = P @ weights(info.A, np.concatenate([info.A, info.A_other])).T
    margin = scores[:, :L].max(axis=1) - scores[:, L:].max(axis=1)
    np.testing.assert_allclose(found.margin[found.of_seen], margin)
    right = scores[:, :L].argmax(axis=1) == y
    expected = np.mean([right[y == label].mean() for label in range(L)])
    assert found.at(-np.inf)[1] == pytest.approx(expected)
    assert found.at(np.inf) == (pytest.approx(found.zsl), 0.0)


def test_unseen_rows_are_scored_without_their_class() -> None:
    """What P says of a row's own class has no part in its scores as an unseen one."""
    P, y, info = problem(25, 7)
    [found] = competition([P], y, info, seed=0)
    changed = P.copy()
    changed[np.arange(len(y)), y] *= 0.01
    np.testing.assert_allclose(
        competition([changed], y, info, seed=0)[0].margin[~found.of_seen],
        found.margin[~found.of_seen],
    )
    assert 1 / 8 < found.zsl <= 1, "among 7 other classes and those left out, above chance"


def test_gamma_balances_seen_and_unseen() -> None:
    P, y, info = problem(25, 7)
    [found] = competition([P], y, info, seed=0)
    gamma, best = best_gamma([found])
    assert gamma > 0
    assert best == pytest.approx(found.H(gamma))
    assert best > found.H(0)


def test_the_split_depends_on_the_seed_alone() -> None:
    P, y, info = problem(25, 7)
    order = np.random.default_rng(0).permutation(len(y))
    [one] = competition([P], y, info, seed=3)
    [other] = competition([P[order]], y[order], info, seed=3)
    assert one.zsl == pytest.approx(other.zsl)
    np.testing.assert_allclose(np.sort(one.margin), np.sort(other.margin))
