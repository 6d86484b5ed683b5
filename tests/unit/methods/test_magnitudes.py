"""Values far from 1: finite float32 whose squares, sums or inverses leave float32's range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypq import kernels
from raypq.errors import ConfigError, InputError, ModelError
from raypq.methods import registry
from raypq.methods.base import Model, TrainingSetInfo
from raypq.methods.support.layers import intra_normalise, unit
from raypq.methods.support.normalisation import normalise
from raypq.methods.support.softmax_classifier import Fit, fit_softmax
from raypq.methods.support.statistics import outer, scale
from raypq.metrics.drift import Gauge
from raypq.stages.representation import clusterability
from raypq.stages.retrieval import faiss_exchange
from raypq.stages.training.in_memory import fit_in_memory

SCALES = [1e37, 1e30, 1e25, 1e20, 1e18, 1e10, 1e-10, 1e-15, 1e-20, 1e-25, 1e-30, 1e-36]
N, DX = 300, 16


def rows(scale: float) -> np.ndarray:
    # A power of two changes no mantissa, so every scale gives the same numbers but for it.
    X = np.random.default_rng(0).standard_normal((N, DX))
    return (X * 2.0 ** np.round(np.log2(scale))).astype(np.float32)


def fitted(X: np.ndarray, how: str, metric: str = "l2", name: str = "pq") -> Model:
    settings = {"M": 4, "K": 16, "iterations": 5, "normalise": how, "metric": metric}
    dataset_info = TrainingSetInfo(N=len(X), dx=DX)
    return fit_in_memory(
        registry.create(name, settings), dataset_info, X, np.zeros(len(X), np.int32)
    )


@pytest.mark.parametrize("size", [*SCALES, 1e-41])
def test_unit_length_at_every_magnitude(size):
    X = rows(size)
    found = normalise(X, "unit")
    wide = X.astype(np.float64)
    exact = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(found, exact, atol=2e-7)


def test_rows_of_all_magnitudes_side_by_side():
    """A far row changes nothing of its neighbours, and a zero row stays zero."""
    near = rows(1.0)
    mixed = near.copy()
    mixed[::7] = rows(1e30)[::7]
    mixed[3] = 0.0
    mixed[5, 0] = 3e38
    found, alone = normalise(mixed, "unit"), normalise(near, "unit")
    same = np.ones(N, bool)
    same[[3, 5, *range(0, N, 7)]] = False
    assert np.array_equal(found[same], alone[same])
    assert not found[3].any()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(np.delete(found, 3, axis=0), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [1e37, 1e20, 1e-20, 1e-36])
@pytest.mark.parametrize("how", ["unit", "zscore", "zscore-unit"])
@pytest.mark.parametrize("name", ["pq", "opq"])
def test_codes_do_not_depend_on_the_scale(size, how, name):
    X = rows(size)
    model, plain = fitted(X, how, name=name), fitted(rows(1.0), how, name=name)
    B, expected = model.encode(X), plain.encode(rows(1.0))
    assert len(np.unique(B, axis=0)) > N // 2, "more than a few codes"
    assert np.mean(expected == B) > 0.99  # the last bits of 1/std may differ
    assert np.isfinite(model.embed(X)).all()


@pytest.mark.parametrize("size", [1e37, 1e30, 1e25, 1e20])
def test_rows_too_long_for_float32_are_refused(size):
    with pytest.raises(InputError, match="normalise=unit"):
        fitted(rows(size), "none")
    model = fitted(rows(1.0), "none")
    with pytest.raises(InputError, match="squares float32 can hold"):
        model.embed(rows(size))
    with pytest.raises(InputError, match="squares float32 can hold"):
        model.encode(rows(size))


@pytest.mark.parametrize("size", [1e-18, 1e-25, 1e-36, 1e-41])
def test_values_too_small_for_float32_are_refused(size):
    with pytest.raises(InputError, match="scale the features up"):
        fitted(rows(size), "none")


def test_zscoring_denormals_is_refused_in_words():
    with pytest.raises(InputError, match="standard deviation of at least 3e-39"):
        fitted(rows(1e-41), "zscore")


def test_zscore_of_values_whose_difference_overflows():
    X = np.array([[3e38, 1.0], [-3e38, 2.0], [3e38, 3.0], [-3e38, 4.0]], np.float32)
    wide = X.astype(np.float64)
    how = scale(np.array(4.0), wide.sum(axis=0), (wide * wide).sum(axis=0))
    far = np.array([[-3.4e38, 1.0]], np.float32)
    mean = np.array([3e38, 2.5], np.float32)
    found = normalise(far, "zscore", mean, how["inverse_std"])
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(-6.4e38 / 3e38, rel=1e-4)


def test_products_beyond_float32_are_summed_in_float64():
    A = np.full((4, 2), 1e30, np.float32)
    assert outer(A, A) == pytest.approx(4 * float(A[0, 0]) ** 2)


@pytest.mark.parametrize("size", SCALES)
def test_figures_of_drift_are_finite(size):
    X = rows(size)
    model = fitted(X, "unit", "cosine")
    gauge = Gauge(model, N)
    gauge.add_features(X, 0)
    stats = gauge.read()
    assert stats is not None
    assert 0 < stats.error.mean < 1
    length = np.linalg.norm(X.astype(np.float64), axis=1).mean()
    assert stats.norm.mean == pytest.approx(length, rel=0.05), "of a sample"


@pytest.mark.parametrize("size", [1e30, 1e10, 1e-10, 1e-25])
def test_cosines_at_every_magnitude(size):
    model = fitted(rows(1.0), "unit", "cosine")
    q = rows(1.0)[:5]
    V = rows(size)[5:9]
    wide, V64 = q.astype(np.float64), V.astype(np.float64)
    exact = wide @ V64.T / np.linalg.norm(wide, axis=1)[:, None] / np.linalg.norm(V64, axis=1)
    np.testing.assert_allclose(model.cosines(q, V), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("pqzsl", {"ridge": 0.0}), ("pqzsl", {"ridge": 1e-300}), ("eszsl", {"gamma": 0.0})],
)
def test_a_singular_solve_names_the_setting(name, settings):
    """Fewer rows than dimensions: without a ridge the answer would be noise."""
    rng = np.random.default_rng(0)
    L, n, dx = 20, 60, 100
    X = rng.standard_normal((n, dx)).astype(np.float32)
    A = rng.standard_normal((L, 30)).astype(np.float32)
    dataset_info = TrainingSetInfo(N=n, dx=dx, A=A, names=tuple(map(str, range(L))))
    y = np.repeat(np.arange(L), 3).astype(np.int32)
    method = registry.create(name, {"M": 4, "K": 16, "iterations": 2, **settings})
    with pytest.raises(ConfigError, match="singular"):
        fit_in_memory(method, dataset_info, X, y)


@pytest.mark.parametrize("n", [24, 90, 99, 100])
@pytest.mark.parametrize("name", ["pqzsl", "eszsl"])
def test_a_solve_of_no_full_rank_is_refused_up_to_the_last_row(name, n):
    """n rows of 100 dimensions, the last of which is the sum of two others."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, 100)).astype(np.float32)
    X[:, 99] = X[:, 0] + X[:, 1]
    A = rng.standard_normal((8, 12)).astype(np.float32)
    dataset_info = TrainingSetInfo(N=n, dx=100, A=A, names=tuple("abcdefgh"))
    y = (np.arange(n) % 8).astype(np.int32)
    setting = {"pqzsl": "ridge", "eszsl": "gamma"}[name]
    method = registry.create(name, {"M": 4, "K": 8, "iterations": 2, setting: 0.0})
    with pytest.raises(ConfigError, match=f"^{setting}: XXᵀ is singular .* set a larger {setting}"):
        fit_in_memory(method, dataset_info, X, y)


def test_a_solve_of_full_rank_needs_no_ridge():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((600, 20)).astype(np.float32)
    A = rng.standard_normal((8, 6)).astype(np.float32)
    dataset_info = TrainingSetInfo(N=600, dx=20, A=A, names=tuple("abcdefgh"))
    method = registry.create("pqzsl", {"M": 4, "K": 8, "iterations": 2, "ridge": 0.0})
    model = fit_in_memory(method, dataset_info, X, (np.arange(600) % 8).astype(np.int32))
    assert len(np.unique(model.encode(X), axis=0)) > 100


def far_tables(
    metric: str, of_codes: float, of_prototypes: float
) -> tuple[np.ndarray, kernels.Tables]:
    rng = np.random.default_rng(0)
    C = (rng.standard_normal((4, 16, 3)) * of_codes).astype(np.float32)
    V = (rng.standard_normal((20, 12)) * of_prototypes).astype(np.float32)
    B = rng.integers(0, 16, (50, 4), dtype=np.uint8)
    return B, kernels.build_tables(C, V, None, metric)


@pytest.mark.parametrize("path", ["native", "torch"])
@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize(("of_codes", "of_prototypes"), [(1e20, 1e20), (1e3, 1e37), (1e20, 1.0)])
def test_scores_beyond_float32_are_refused(metric, of_codes, of_prototypes, path, monkeypatch):
    """What overflows is equal to all that overflows: any order of it would be made up."""
    if path == "torch":
        monkeypatch.setattr(kernels, "_use_native", lambda device: False)
    B, tables = far_tables(metric, of_codes, of_prototypes)
    if metric == "dot" and of_prototypes == 1.0:
        found, _ = kernels.topk_per_code(B, tables, 5)
        assert np.isfinite(found).all()
        return
    for search in (
        lambda: kernels.topk_per_code(B, tables, 5),
        lambda: kernels.topk_per_query(B, tables, 5),
        lambda: kernels.scores(B, tables),
    ):
        with pytest.raises(InputError, match="beyond it; scale the features"):
            search()


@pytest.mark.parametrize("how", ["none", "unit"])
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_prototypes_that_no_score_can_tell_apart_are_refused(metric, how):
    model = fitted(rows(1.0), "unit" if metric == "dot" else how, metric)
    V = model.embed(rows(1.0)[:5])
    with pytest.raises(InputError, match="as they are embedded"):
        model.tables(np.full_like(V, np.inf))
    if metric == "dot":
        with pytest.raises(InputError, match="float32 can tell apart"):
            model.tables((V * np.float32(1e-42)).astype(np.float32))


@pytest.mark.parametrize("size", [1e37, 1e20, 1.0, 1e-20, 1e-36])
def test_layers_of_unit_length(size):
    x = torch.from_numpy(rows(size))
    exact = x.double() / x.double().norm(dim=1, keepdim=True)
    assert torch.allclose(unit(x), exact.float(), atol=3e-7)
    assert not unit(torch.zeros(2, 3)).any()
    if size >= 1:
        assert torch.allclose(intra_normalise(x), exact.float(), atol=3e-7)


@pytest.mark.parametrize("size", [1e30, 1e20, 1e-20, 1e-30])
def test_a_classifier_and_clusters_at_every_magnitude(size):
    X, plain = rows(size), rows(1.0)
    y = torch.from_numpy((plain[:, 0] > 0).astype(np.int64))
    how = Fit(epochs=5, rate=0.1, decay=0.0)
    weight = torch.ones(N)

    def classified(x: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(x)
        V, bias = fit_softmax(x, y, weight, 2, how, torch.Generator().manual_seed(0))
        return (x.double() @ V.double().T + bias).argmax(dim=1).numpy()

    assert np.mean(classified(X) == classified(plain)) > 0.99
    left = clusterability.kmeans(X, 5, np.random.default_rng(0))
    right = clusterability.kmeans(plain, 5, np.random.default_rng(0))
    assert np.array_equal(left, right)


def test_embeddings_too_faint_for_psr_are_named(fit):
    rng = np.random.default_rng(0)
    A = (rng.standard_normal((4, 6)) * 1e-36).astype(np.float32)
    y = np.arange(N) % 4
    settings = {"M": 2, "K": 8, "hidden": [8], "epochs": 1}
    with pytest.raises(InputError, match="class embeddings: expected values that differ"):
        fit(registry.create("psr", settings), rows(1.0), y=y, A=A)


def test_a_scaling_that_faiss_cannot_hold_is_refused():
    faiss = pytest.importorskip("faiss")

    model = fitted(rows(1.0), "zscore")
    model.tensors["mean"] = np.full(DX, 1e30, np.float32)
    model.tensors["inverse_std"] = np.full(DX, 1e30, np.float32)
    with pytest.raises(ModelError, match="mean/std within the range of float32"):
        faiss_exchange._transforms(faiss, model)
