"""Class posteriors of codewords and the queries that use them, for both labelled methods."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from raypq.errors import ConfigError
from raypq.methods.base import TrainingSetInfo
from raypq.methods.dpq import DPQ, DPQSettings
from raypq.methods.gpq import AS_PUBLISHED, GPQ, GPQSettings
from raypq.methods.support import class_posteriors
from raypq.methods.support.class_posteriors import PosteriorNetwork

M, K, N, DX = 2, 4, 40, 5
Build = Callable[..., PosteriorNetwork]


def dataset_info(L: int) -> TrainingSetInfo:
    return TrainingSetInfo(N=50, dx=DX, names=tuple(f"class {t}" for t in range(L)), unlabelled=50)


def built_dpq(L: int, **changes: object) -> PosteriorNetwork:
    settings = {"M": M, "K": K, "hidden": 8, "width": 12, "batch": 6, "codes": "parts", **changes}
    return frozen(DPQ(DPQSettings.parse(settings)).network(dataset_info(L)))


def built_gpq(L: int, **changes: object) -> PosteriorNetwork:
    settings = {"M": M, "K": K, "hidden": 8, "d": 3, "batch": 6, "codes": "parts", **changes}
    return frozen(GPQ(GPQSettings.parse(settings)).network(dataset_info(L)))


def frozen(network: object) -> PosteriorNetwork:
    assert isinstance(network, PosteriorNetwork)
    return network.eval().requires_grad_(False)


both = pytest.mark.parametrize("build", [built_dpq, built_gpq])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((N, DX)).astype(np.float32))


def direct_posteriors(network: PosteriorNetwork, x: torch.Tensor) -> np.ndarray:
    """The mean P(t|x) of the rows of each codeword, and of the mean row as one more [M, K, L]."""
    P, B = (values.double().numpy() for values in network.probabilities(x))
    posteriors = np.empty((M, K, P.shape[1]))
    for m in range(M):
        for k in range(K):
            rows = P[B[:, m] == k]
            posteriors[m, k] = (rows.sum(axis=0) + P.mean(axis=0)) / (len(rows) + 1)
    return posteriors


@both
@pytest.mark.parametrize("most", [128, 3], ids=["whole", "on 3 axes"])
def test_a_score_is_the_mean_probability_of_a_common_class(
    build: Build, x: torch.Tensor, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_posteriors, "_MAX_AXES", most)
    network = build(L=6)
    network.finish(x, 0)
    P, B = (values.numpy() for values in network.probabilities(x))
    # Along the principal axes: the best approximation of that rank.
    flat = direct_posteriors(network, x).reshape(M * K, 6)
    axes = np.linalg.svd(flat, full_matrices=False)[2][:most]
    approximated = (flat @ axes.T @ axes).reshape(M, K, 6)
    expected = np.mean([P @ approximated[m, B[:, m]].T for m in range(M)], axis=0)
    codebooks = network.codebooks()
    assert codebooks is not None
    decoded = np.concatenate([codebooks.numpy()[m, B[:, m]] for m in range(M)], axis=1)
    np.testing.assert_allclose(
        network.queries(x).numpy() @ decoded.T, expected, rtol=1e-4, atol=1e-6
    )
    assert (network.codes(x) == torch.from_numpy(B)).all()


@both
def test_class_scores_ignore_the_posteriors(build: Build, x: torch.Tensor) -> None:
    network = build(L=3, **({"head": 0.0} if build is built_dpq else {}))
    P, B = network.probabilities(x)
    layer, before = network.class_layer(), network.codebooks()
    assert layer is not None
    assert before is not None
    network.finish(x, 0)
    after = network.codebooks()
    assert after is not None
    scored_after, scored_before = (
        torch.cat([C[m, B[:, m]] for m in range(M)], dim=1) @ layer[0].T + layer[1]
        for C in (after, before)
    )
    torch.testing.assert_close(scored_after, scored_before)
    scores = network.embed(x) @ layer[0].T + layer[1]
    assert (scores.argmax(dim=1) == P.argmax(dim=1)).all()


@both
def test_a_codeword_without_rows_has_the_mean_posterior(build: Build, x: torch.Tensor) -> None:
    network = build(L=3)
    network.finish(x[:1], 0)
    P, B = network.probabilities(x[:1])
    assert network.beliefs is not None
    other = [k for k in range(K) if k != int(B[0, 0])]
    posterior = network.beliefs.words[0, other] / class_posteriors._WEIGHT
    torch.testing.assert_close(posterior, P.expand(len(other), -1))


@pytest.mark.parametrize(
    ("build", "published"),
    [(built_dpq, {"query": "soft", "metric": "l2"}), (built_gpq, dict(AS_PUBLISHED))],
    ids=["dpq", "gpq"],
)
def test_a_published_query_is_the_embedding(
    build: Build, published: dict[str, object], x: torch.Tensor
) -> None:
    network = build(L=3, **published)
    assert network.beliefs is None
    assert torch.equal(network.queries(x), network.embed(x))


@both
def test_posteriors_are_not_trained_by_gradient(build: Build) -> None:
    network = build(L=3)
    names = {name for name, p in network.named_parameters() if name.startswith("beliefs.")}
    assert names == {"beliefs.words", "beliefs.axes"}
    assert len(list(network.trainable("train"))) == len(list(network.parameters())) - 2


@pytest.mark.parametrize(("build", "metric"), [(built_dpq, "l2"), (built_gpq, "cosine")])
def test_queries_by_classes_need_the_dot_product(build: Build, metric: str) -> None:
    with pytest.raises(ConfigError, match=f"query = classes needs the dot .*, found {metric}"):
        build(L=3, metric=metric)
