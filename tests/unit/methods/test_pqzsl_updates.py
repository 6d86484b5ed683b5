"""PQZSL's updates against the objective written out with every image, as the paper has it.

The method never holds the images in its updates: all it knows are moments. Here X, Y and Z_s are
formed in full, and each update must be the minimum of the terms that its parameter stands in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from raypq.methods.pqzsl import Embedding, PQZSLSettings, solve_p, solve_q, solve_z
from raypq.methods.support.closed_form import Moments
from raypq.methods.support.linear_model import product

DX, DA, L, D, N = 7, 4, 5, 6, 40
# Weights of one size, so that no term hides behind another.
SETTINGS = PQZSLSettings(alpha=1.7, beta=0.6, lam=1.3, gamma=2.1, ridge=0.4)


@dataclass
class Problem:
    """Images X [dx, N], one-hot labels Y [L, N], attributes A [da, L], and q(PX) = R [D, N]."""

    X: np.ndarray
    Y: np.ndarray
    A: np.ndarray
    R: np.ndarray
    data: Moments
    now: Embedding

    @property
    def zs(self) -> np.ndarray:
        return self.now.F @ self.X + self.now.H @ self.Y

    def terms(self, now: Embedding, zs: np.ndarray) -> dict[str, float]:
        """Eq. 15, 16 and 20 term by term."""
        s = SETTINGS
        As = self.A @ self.Y

        def square(M: np.ndarray) -> float:
            return float(np.sum(M * M))

        return {
            "quantization": square(now.P @ self.X - self.R),
            "centre": s.alpha * square(now.P @ self.X - zs),
            "decode": s.beta * square(As - now.Q.T @ zs),
            "encode": s.lam * square(now.Q @ As - zs),
            "constraint": s.gamma * square(zs - now.Z @ self.Y),
            "ridge": (1 + s.alpha) * s.ridge * square(now.P),
        }

    def total(self, now: Embedding, zs: np.ndarray) -> float:
        return sum(self.terms(now, zs).values())


@pytest.fixture(params=range(3))
def problem(request) -> Problem:
    rng = np.random.default_rng(request.param)
    y = np.concatenate([np.arange(L), rng.integers(0, L, N - L)])
    X, Y, A = rng.standard_normal((DX, N)), np.eye(L)[:, y], rng.standard_normal((DA, L))
    data = Moments(G=X @ X.T, S=X @ Y.T, n=Y.sum(axis=1), A=A)
    now = Embedding(
        P=rng.standard_normal((D, DX)),
        Q=rng.standard_normal((D, DA)),
        Z=np.linalg.qr(rng.standard_normal((D, L)))[0],
        F=rng.standard_normal((D, DX)),
        H=rng.standard_normal((D, L)),
    )
    return Problem(X=X, Y=Y, A=A, R=rng.standard_normal((D, N)), data=data, now=now)


def losses(now: Embedding, data: Moments) -> dict[str, float]:
    return now.losses(now.products(data), data, SETTINGS)


def nudges(shape: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [size * rng.standard_normal(shape) for size in (1e-3, 1e-2, 0.1) for _ in range(10)]


def test_products_of_zs_follow_from_the_moments(problem):
    now, zs = problem.now, problem.zs
    products = now.products(problem.data)
    np.testing.assert_allclose(products.x, zs @ problem.X.T)
    np.testing.assert_allclose(products.y, zs @ problem.Y.T)
    np.testing.assert_allclose(products.z, zs @ zs.T)


def test_the_losses_follow_from_the_moments(problem):
    wanted = problem.terms(problem.now, problem.zs)
    del wanted["quantization"]
    assert losses(problem.now, problem.data) == pytest.approx(wanted)


def test_zs_is_the_minimum(problem):
    """Eq. 21, over every Z_s, also those that are not linear in X and Y."""
    F, H = problem.now.solve_zs(problem.data, SETTINGS)
    zs = F @ problem.X + H @ problem.Y
    best = problem.total(problem.now, zs)
    assert best < problem.total(problem.now, problem.zs)
    assert all(problem.total(problem.now, zs + step) > best for step in nudges(zs.shape))


def test_q_is_the_minimum(problem):
    """Eq. 17."""
    now = replace(
        problem.now, Q=solve_q(problem.now.products(problem.data), problem.data, SETTINGS)
    )
    best = problem.total(now, problem.zs)
    assert best < problem.total(problem.now, problem.zs)
    for step in nudges(now.Q.shape):
        assert problem.total(replace(now, Q=now.Q + step), problem.zs) > best


def test_p_is_the_minimum(problem):
    """Eq. 16."""
    zs = problem.zs
    target = (problem.R @ problem.X.T + SETTINGS.alpha * zs @ problem.X.T) / (1 + SETTINGS.alpha)
    now = replace(problem.now, P=solve_p(target, problem.data, SETTINGS))
    best = problem.total(now, zs)
    assert best < problem.total(problem.now, zs)
    for step in nudges(now.P.shape):
        assert problem.total(replace(now, P=now.P + step), zs) > best


def test_z_is_the_minimum_among_orthogonal_ones(problem):
    """Eq. 22."""
    Z = solve_z(problem.now.products(problem.data))
    np.testing.assert_allclose(Z.T @ Z, np.eye(L), atol=1e-12)
    best = problem.total(replace(problem.now, Z=Z), problem.zs)
    for step in nudges(Z.shape):
        other = np.linalg.qr(Z + step)
        turned = other.Q * np.sign(np.diag(other.R))
        assert problem.total(replace(problem.now, Z=turned), problem.zs) >= best - 1e-9


def test_a_step_lowers_the_sum(problem):
    now, products = problem.now.step(problem.R @ problem.X.T, problem.data, SETTINGS)
    np.testing.assert_array_equal(products.x, now.products(problem.data).x)
    after = now.F @ problem.X + now.H @ problem.Y
    best = problem.total(now, after)
    assert best < problem.total(problem.now, problem.zs)
    for step in nudges(now.P.shape):  # P comes last, so it fits all the others
        assert problem.total(replace(now, P=now.P + step), after) > best


def test_turning_the_space_changes_nothing_but_the_dimensions(problem):
    """The balance of the parts: the same losses, padded to a multiple of M."""
    start = Embedding.initial(problem.data, SETTINGS, np.random.default_rng(0))
    turned = start.balanced(problem.data, 4)
    assert turned.P.shape == (8, DX)
    assert losses(turned, problem.data) == pytest.approx(losses(start, problem.data))
    np.testing.assert_allclose(turned.Z.T @ turned.Z, np.eye(L), atol=1e-9)


def test_products_do_not_hang_on_the_memory_layout():
    """A fitted matrix may be column-major in memory; it is row-major once saved and loaded."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 16)).astype(np.float32)
    P = rng.standard_normal((8, 16)).astype(np.float32)
    np.testing.assert_array_equal(
        product(np.asfortranarray(X), np.asfortranarray(P)), product(X, P)
    )
