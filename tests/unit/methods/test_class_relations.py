"""Classes as combinations of trained ones, and codes that are fitted to their scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raypq.errors import InputError
from raypq.methods.base import TrainingSetInfo
from raypq.methods.dpq import DPQ, DPQSettings
from raypq.methods.gpq import GPQ, GPQSettings
from raypq.methods.gradient import GradientMethod
from raypq.methods.support.class_codes import ClassCodesModel, ClassCodesNetwork
from raypq.methods.support.class_relations import ClassRelations, weights, without

L, T, DA, DX, N = 6, 4, 5, 7, 400


@pytest.fixture
def E() -> np.ndarray:
    """Embeddings of L training classes and T others."""
    return np.random.default_rng(3).standard_normal((L + T, DA)).astype(np.float32)


@pytest.fixture
def X() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, DX)).astype(np.float32)


def unit(E: np.ndarray) -> np.ndarray:
    wide = E.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def test_weights_are_those_of_ridge_regression(E: np.ndarray) -> None:
    s, e = unit(E[:L]), unit(E)
    # The minimum of ‖w s − e‖² + λ‖w‖², by least squares on extended rows.
    extended = np.concatenate([s.T, 0.1**0.5 * np.eye(L)])
    target = np.concatenate([e.T, np.zeros((L, L + T))])
    expected = np.linalg.lstsq(extended, target, rcond=None)[0].T
    np.testing.assert_allclose(weights(E[:L], E), expected, atol=1e-10)
    np.testing.assert_allclose(weights(3 * E[:L], 0.5 * E), expected, atol=1e-6)


def test_a_class_like_a_trained_one_has_its_scores(E: np.ndarray) -> None:
    w = weights(np.eye(L, dtype=np.float32), np.eye(L, dtype=np.float32)[:3])
    np.testing.assert_allclose(w, np.eye(L)[:3] / 1.1, atol=1e-12)
    assert not weights(E[:L], np.zeros((1, DA), np.float32)).any()


@pytest.mark.parametrize("copies", [0, 2])
def test_the_error_of_what_is_stored_is_that_of_scores(E: np.ndarray, copies: int) -> None:
    E = np.concatenate([E[:L], E[:copies], E[L:]])  # classes with the same embedding
    relations = ClassRelations(L, DA, E[:L], E[L:])
    R = relations.R.double().numpy()
    error = np.random.default_rng(1).standard_normal((20, L))
    scores = error @ weights(E[:L], E).T
    expected = (scores**2).sum(axis=1) + 0.1 * (error**2).sum(axis=1)
    np.testing.assert_allclose(((error @ R) ** 2).sum(axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose(R @ relations.inverse.double().numpy(), np.eye(L), atol=1e-5)


def test_what_is_stored_is_probabilities_where_no_other_class_competes(E: np.ndarray) -> None:
    for others in (None, E[:0]):
        relations = ClassRelations(L, DA, E[:L], others)
        assert torch.equal(relations.R, torch.eye(L))
        assert torch.equal(relations.inverse, torch.eye(L))


def test_classes_that_are_left_out_have_no_probability() -> None:
    P = np.random.default_rng(2).dirichlet(np.ones(L), 30)
    left_out = np.isin(np.arange(L), [1, 4])
    kept = P[:, ~left_out]
    np.testing.assert_allclose(without(P, left_out), kept / kept.sum(axis=1, keepdims=True))
    none = np.where(left_out, 1.0, -0.01)[None]  # a code may estimate less than 0
    np.testing.assert_allclose(without(none, left_out), 1 / (L - 2))


def dpq(**changes: Any) -> GradientMethod:
    return DPQ(DPQSettings.parse({"M": 3, "K": 16, "hidden": 8, "width": 12, "batch": 6} | changes))


def gpq(**changes: Any) -> GradientMethod:
    return GPQ(GPQSettings.parse({"M": 3, "K": 16, "hidden": 8, "d": 3, "batch": 6} | changes))


both = pytest.mark.parametrize("method", [dpq, gpq])


def info(E: np.ndarray, T: int = T) -> TrainingSetInfo:
    names = tuple(f"class {t}" for t in range(L + T))
    return TrainingSetInfo(
        N=N, dx=DX, A=E[:L], names=names[:L], A_other=E[L : L + T], other_names=names[L:],
        unlabelled=N,
    )  # fmt: skip


def trained(
    method: GradientMethod, X: np.ndarray, given: TrainingSetInfo
) -> tuple[ClassCodesNetwork, ClassCodesModel]:
    network = method.network(given).eval().requires_grad_(False)
    assert isinstance(network, ClassCodesNetwork)
    method.finish(network, given, X, np.zeros(len(X), np.int32))
    network.finished = True
    model = method.freeze(network, given, scale={}, record={})
    assert isinstance(model, ClassCodesModel)
    return network, model


@both
def test_scores_of_unseen_classes_are_combinations(method: Any, X: np.ndarray, E: np.ndarray):
    given = info(E)
    network, model = trained(method(M=8, K=64), X, given)
    x = torch.from_numpy(model._normalised(X))
    P = (network.class_logits(x) / network.temperature).softmax(dim=-1).double().numpy()
    ids = [*given.names, *given.other_names]
    V, bias = model.prototypes_of(ids, E)
    w = weights(E[:L], E)
    exact = model.embed(X).astype(np.float64) @ V.T + bias
    np.testing.assert_allclose(exact, P @ w.T, atol=1e-5)
    by_codes = model.decode(model.encode(X)) @ V.T
    assert np.abs(by_codes - P @ w.T).mean() < 0.02
    # Without others, those of the training classes are their own probabilities.
    V, bias = model.prototypes_of(given.names, E[:L])
    np.testing.assert_allclose(model.embed(X) @ V.T + bias, P, atol=1e-5)
    assert model.da == DA


@both
def test_codes_as_queries_where_others_compete(method: Any, X: np.ndarray, E: np.ndarray) -> None:
    _, model = trained(method(), X, info(E))
    B = model.encode(X)
    estimated = model.class_prototypes(model.classes or ())[0] @ model.decode(B).T
    scores = model.code_queries(B) @ model.decode(B).T
    np.testing.assert_allclose(scores, estimated.T @ estimated, atol=1e-4)


@both
def test_a_class_without_embedding_is_refused(method: Any, X: np.ndarray, E: np.ndarray) -> None:
    _, model = trained(method(), X, info(E))
    with pytest.raises(Exception, match=r"among the 6 that it was trained on.*'new'"):
        model.prototypes_of(["class 0", "new"], None)
    with pytest.raises(Exception, match="class embeddings of width 5, found 4"):
        model.prototypes_of(["class 0", "new"], E[:2, :4])
    model.prototypes_of(["class 0"], E[:1, :4])  # not needed


@both
def test_classes_that_are_all_alike_cannot_compete(method: Any, E: np.ndarray) -> None:
    alike = np.ones_like(E)
    with pytest.raises(InputError, match="all of them alike"):
        method().network(info(alike))
    method().network(info(alike, T=0))


def test_codes_estimate_class_probabilities(X: np.ndarray, E: np.ndarray) -> None:
    for given in (info(E), TrainingSetInfo(N=N, dx=DX, names=info(E).names[:L])):
        network, model = trained(dpq(M=8, K=64), X, given)
        P = network.class_logits(torch.from_numpy(X)).div(network.temperature).softmax(dim=-1)
        found = model.class_probabilities(model.encode(X))
        assert np.abs(found - P.numpy()).mean() < 0.02
    assert model.da is None
