"""What codewords believe, and how queries ask them, of both methods that learn from labels."""

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


def corpus(L: int) -> TrainingSetInfo:
    return TrainingSetInfo(N=50, dx=DX, names=tuple(f"class {t}" for t in range(L)), unlabelled=50)


def built_dpq(L: int, **changes: object) -> PosteriorNetwork:
    settings = {"M": M, "K": K, "hidden": 8, "width": 12, "batch": 6, **changes}
    return frozen(DPQ(DPQSettings.parse(settings)).network(corpus(L)))


def built_gpq(L: int, **changes: object) -> PosteriorNetwork:
    settings = {"M": M, "K": K, "hidden": 8, "d": 3, "batch": 6, **changes}
    return frozen(GPQ(GPQSettings.parse(settings)).network(corpus(L)))


def frozen(network: object) -> PosteriorNetwork:
    assert isinstance(network, PosteriorNetwork)
    return network.eval().requires_grad_(False)


both = pytest.mark.parametrize("build", [built_dpq, built_gpq])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((N, DX)).astype(np.float32))


def by_hand(network: PosteriorNetwork, x: torch.Tensor) -> np.ndarray:
    """The mean P(t|x) of the rows that chose a codeword; all rows count as one more. [M, K, L]."""
    P, B = (found.double().numpy() for found in network.probabilities(x))
    found = np.empty((M, K, P.shape[1]))
    for m in range(M):
        for k in range(K):
            chose = P[B[:, m] == k]
            found[m, k] = (chose.sum(axis=0) + P.mean(axis=0)) / (len(chose) + 1)
    return found


@both
@pytest.mark.parametrize("most", [128, 3], ids=["whole", "on 3 axes"])
def test_a_score_is_the_chance_of_one_class_as_each_part_judges(
    build: Build, x: torch.Tensor, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_posteriors, "_MOST_AXES", most)
    network = build(L=6)
    network.observe(x)
    P, B = (found.numpy() for found in network.probabilities(x))
    # On the axes that keep most: nothing of that rank is nearer.
    flat = by_hand(network, x).reshape(M * K, 6)
    axes = np.linalg.svd(flat, full_matrices=False)[2][:most]
    kept = (flat @ axes.T @ axes).reshape(M, K, 6)
    wanted = np.mean([P @ kept[m, B[:, m]].T for m in range(M)], axis=0)
    codebooks = network.codebooks()
    assert codebooks is not None
    decoded = np.concatenate([codebooks.numpy()[m, B[:, m]] for m in range(M)], axis=1)
    np.testing.assert_allclose(network.queries(x).numpy() @ decoded.T, wanted, rtol=1e-4, atol=1e-6)
    assert (network.codes(x) == torch.from_numpy(B)).all()


@both
def test_class_scores_read_the_words_alone(build: Build, x: torch.Tensor) -> None:
    network = build(L=3)
    P, B = network.probabilities(x)
    layer, before = network.class_layer(), network.codebooks()
    assert layer is not None
    assert before is not None
    network.observe(x)
    after = network.codebooks()
    assert after is not None
    found, wanted = (
        torch.cat([C[m, B[:, m]] for m in range(M)], dim=1) @ layer[0].T + layer[1]
        for C in (after, before)
    )
    torch.testing.assert_close(found, wanted)
    scores = network.embed(x) @ layer[0].T + layer[1]
    assert (scores.argmax(dim=1) == P.argmax(dim=1)).all()


@both
def test_a_codeword_that_nothing_chose_believes_the_mean(build: Build, x: torch.Tensor) -> None:
    network = build(L=3)
    network.observe(x[:1])
    P, B = network.probabilities(x[:1])
    assert network.beliefs is not None
    other = [k for k in range(K) if k != int(B[0, 0])]
    found = network.beliefs.words[0, other] / class_posteriors._WEIGHT
    torch.testing.assert_close(found, P.expand(len(other), -1))


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
def test_nothing_of_it_is_trained(build: Build) -> None:
    network = build(L=3)
    kept = {name for name, p in network.named_parameters() if name.startswith("beliefs.")}
    assert kept == {"beliefs.words", "beliefs.axes"}
    assert len(list(network.trainable("train"))) == len(list(network.parameters())) - 2


@pytest.mark.parametrize(("build", "metric"), [(built_dpq, "l2"), (built_gpq, "cosine")])
def test_classes_ask_by_dot_product_alone(build: Build, metric: str) -> None:
    with pytest.raises(ConfigError, match=f"query = classes asks by dot .*, found {metric}"):
        build(L=3, metric=metric)
