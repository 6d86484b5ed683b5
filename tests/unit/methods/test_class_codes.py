"""Codes of class probabilities, for both labelled methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from raypq import kernels
from raypq.errors import ConfigError
from raypq.methods.base import TrainingSetInfo
from raypq.methods.dpq import DPQ, DPQModel, DPQNetwork, DPQSettings
from raypq.methods.gpq import GPQ, GPQModel, GPQNetwork, GPQSettings
from raypq.methods.gradient import Batch, GradientMethod, Network, NetworkModel
from raypq.methods.support import class_codebooks
from raypq.methods.support.class_codebooks import ClassCodebooks
from raypq.methods.support.class_codes import ClassCodesModel, ClassCodesNetwork

M, K, L, N, DX = 3, 8, 6, 400, 5
Build = Callable[..., GradientMethod]


def dataset_info(L: int = L) -> TrainingSetInfo:
    return TrainingSetInfo(N=N, dx=DX, names=tuple(f"class {t}" for t in range(L)), unlabelled=N)


def dpq(**changes: Any) -> GradientMethod:
    return DPQ(DPQSettings.parse({"M": M, "K": K, "hidden": 8, "width": 12, "batch": 6, **changes}))


def gpq(**changes: Any) -> GradientMethod:
    return GPQ(GPQSettings.parse({"M": M, "K": K, "hidden": 8, "d": 3, "batch": 6, **changes}))


both = pytest.mark.parametrize("method", [dpq, gpq])


@pytest.fixture
def X() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, DX)).astype(np.float32)


def trained(method: GradientMethod, X: np.ndarray) -> tuple[ClassCodesNetwork, ClassCodesModel]:
    """A network with random weights and fitted codebooks, and its model."""
    info = dataset_info()
    network = method.network(info).eval().requires_grad_(False)
    assert isinstance(network, ClassCodesNetwork)
    method.finish(network, info, X, np.zeros(len(X), np.int32))
    network.finished = True
    model = method.freeze(network, info, scale={}, record={})
    assert isinstance(model, ClassCodesModel)
    return network, model


def rows_of(model: ClassCodesModel, X: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(model._normalised(X))


@both
def test_a_score_is_the_probability_of_a_common_class(method: Build, X: np.ndarray) -> None:
    network, model = trained(method(), X)
    P = network.class_logits(rows_of(model, X)).softmax(dim=-1).numpy()
    B = model.encode(X)
    estimated = model.decode(B).reshape(N, M, L).sum(axis=1)
    np.testing.assert_allclose(model.queries(X) @ model.decode(B).T, P @ estimated.T, atol=1e-5)
    V, bias = model.class_prototypes(list(model.classes or ()))
    np.testing.assert_allclose(model.decode(B) @ V.T + bias, estimated, atol=1e-5)
    np.testing.assert_allclose(model.prototypes(X[:4])[0], model.queries(X[:4]))


@both
def test_codes_are_nearly_the_best_of_all(method: Build, X: np.ndarray) -> None:
    network, model = trained(method(), X)
    stored, B = network.stored(rows_of(model, X)).numpy().astype(np.float64), model.encode(X)
    C = model.C.astype(np.float64)
    sums = (
        C[0][:, None, None] + C[1][None, :, None] + C[2][None, None]
    )  # of every code [K, K, K, L]
    distance = ((stored[:, None] - sums.reshape(1, -1, L)) ** 2).sum(axis=2)
    found = distance[np.arange(N), np.ravel_multi_index(B.T.astype(int), (K, K, K))]
    assert found.mean() < 1.05 * distance.min(axis=1).mean()
    assert (found < distance.min(axis=1) + 1e-6).mean() > 0.9
    assert found.mean() < 0.05 * stored.var(axis=0).sum()


def test_fitting_together_has_the_least_error() -> None:
    """No other codewords are better for the same codes; unused ones stay."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((N, L)).astype(np.float32)
    B = rng.integers(0, K - 1, (N, M))
    before = rng.standard_normal((M, K, L)).astype(np.float32)
    words = class_codebooks._fitted_together(X, B, before)
    np.testing.assert_allclose(words[:, K - 1], before[:, K - 1], atol=1e-6)

    def error(words: np.ndarray) -> float:
        q = sum(words[m].astype(np.float64)[B[:, m]] for m in range(M))
        return float(((X - q) ** 2).sum())

    least = error(words)
    assert least < error(before)
    for _ in range(5):
        assert error(words + 0.05 * rng.standard_normal(words.shape).astype(np.float32)) > least


@both
def test_embeddings_hold_all_that_codes_estimate(method: Build, X: np.ndarray) -> None:
    network, model = trained(method(), X)
    U = model.embed(X)
    stored = network.stored(rows_of(model, X)).numpy()
    np.testing.assert_allclose(U.reshape(N, M, L).sum(axis=1), stored, atol=1e-6)
    np.testing.assert_array_equal(kernels.encode(U, model.C), model.encode(X))


@both
def test_stored_codes_as_queries_are_their_probabilities(method: Build, X: np.ndarray) -> None:
    _, model = trained(method(), X)
    B = model.encode(X)
    estimated = model.decode(B).reshape(N, M, L).sum(axis=1)
    scores = model.code_queries(B) @ model.decode(B).T
    np.testing.assert_allclose(scores, estimated @ estimated.T, atol=1e-5)


@both
def test_a_temperature_flattens_what_is_stored(method: Build, X: np.ndarray) -> None:
    sharp, _ = trained(method(temperature=1.0), X)
    flat, model = trained(method(temperature=4.0), X)
    x = rows_of(model, X)
    assert (flat.stored(x).amax(dim=1) <= sharp.stored(x).amax(dim=1)).all()
    np.testing.assert_array_equal(flat.queries(x), sharp.queries(x))


@both
def test_codebooks_are_not_trained_by_gradient(method: Build, X: np.ndarray) -> None:
    network = method().network(dataset_info())
    assert isinstance(network, ClassCodesNetwork)
    assert network.codebooks() is None  # validated as probabilities until the end
    trainable = {id(p) for p in network.trainable("train")}
    left = {name for name, p in network.named_parameters() if id(p) not in trainable}
    assert left == {"class_codes.words"}
    terms = network(
        Batch(
            x=torch.from_numpy(X[:6]),
            y=torch.arange(6),
            u=torch.from_numpy(X[6:12]),
        ),
        "train",
    )
    torch.stack([*terms.values()]).sum().backward()
    assert network.class_codes.words.grad is None
    assert all(p.grad is not None for p in network.trainable("train"))


def test_fitting_depends_on_the_seed_alone() -> None:
    P = torch.from_numpy(np.random.default_rng(1).dirichlet(np.full(L, 0.3), N).astype(np.float32))
    fitted = []
    for seed in (0, 0, 1):
        codebooks = ClassCodebooks(M, K, L)
        codebooks.fit(P, seed)
        fitted.append(codebooks.words)
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


@pytest.mark.parametrize(
    ("method", "parts"), [(dpq, DPQNetwork), (gpq, GPQNetwork)], ids=["dpq", "gpq"]
)
def test_classes_are_stored_where_codewords_suffice(method: Build, parts: type[Network]) -> None:
    assert isinstance(method().network(dataset_info(K)), ClassCodesNetwork)
    assert isinstance(method().network(dataset_info(K + 1)), parts)
    assert isinstance(method(codes="parts").network(dataset_info(K)), parts)
    assert isinstance(method(codes="classes").network(dataset_info(K + 1)), ClassCodesNetwork)


@pytest.mark.parametrize(
    ("method", "given"), [(dpq, "gini_batch"), (dpq, "part_hidden"), (gpq, "alpha")]
)
def test_settings_of_parts_are_refused_with_codes_of_classes(method: Build, given: str) -> None:
    changed = {given: 3}
    with pytest.raises(ConfigError, match=f"{given}: a setting of codes = parts"):
        method(**changed).network(dataset_info())
    method(**changed).network(dataset_info(K + 1))
    method(**changed, codes="parts").network(dataset_info())


@pytest.mark.parametrize(
    ("method", "changes"),
    [(dpq, {"head": 0}), (dpq, {"query": "soft"}), (gpq, {"query": "vector"})],
)
def test_classes_can_be_stored_only_with_their_probabilities(
    method: Build, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"codes: .*classes needs"):
        method(codes="classes", **changes)


@both
def test_a_setting_of_classes_is_refused_with_codes_of_parts(method: Build) -> None:
    with pytest.raises(ConfigError, match=r"temperature: .*here codes = parts, the default"):
        method(temperature=2).network(dataset_info(K + 1))
    with pytest.raises(ConfigError, match=r"temperature: .*found codes = parts"):
        method(temperature=2, codes="parts").network(dataset_info())


@pytest.mark.parametrize("changes", [{"joint": 0}, {"joint": 0, "distil": 0}])
def test_joint_0_says_what_else_to_set(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"joint: 0 trains no .*query = vector and distil = 0"):
        gpq(**changes)


@pytest.mark.parametrize("model", [DPQModel, GPQModel])
def test_models_from_before_have_codes_of_parts(model: type[NetworkModel]) -> None:
    assert model.legacy_settings["codes"] == "parts"
