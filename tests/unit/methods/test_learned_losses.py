"""Each term of the losses of DPQ and GPQ against the paper's formula in NumPy, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypq.errors import ConfigError
from raypq.methods import dpq, gpq
from raypq.methods.base import TrainingSetInfo
from raypq.methods.gradient import Batch
from raypq.methods.support.layers import intra_normalise, one_hot_of, reverse_gradient

N, M, K, D, L = 7, 3, 5, 4, 3


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x)


def cross_entropy(scores: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(softmax(scores)[np.arange(len(y)), y]).mean())


def test_soft_is_the_mean_of_the_codewords(rng):
    p, C = softmax(rng.standard_normal((N, M, K))), rng.standard_normal((M, K, D))
    found = dpq.soft_of(tensor(p), tensor(C)).numpy()
    for n in range(N):
        for m in range(M):
            wanted = sum(p[n, m, k] * C[m, k] for k in range(K))
            np.testing.assert_allclose(found[n, m], wanted)


def test_hard_is_the_likeliest_codeword_and_its_gradient_goes_straight_through(rng):
    p = tensor(softmax(rng.standard_normal((N, M, K)))).requires_grad_()
    e = one_hot_of(p)
    np.testing.assert_allclose(e.detach().numpy().sum(axis=-1), 1, atol=1e-12)
    np.testing.assert_array_equal(e.detach().argmax(-1), p.detach().argmax(-1))
    weight = tensor(rng.standard_normal((N, M, K)))
    (e * weight).sum().backward()
    np.testing.assert_allclose(p.grad, weight)


def test_joint_central_loss(rng):
    soft, hard, o = (rng.standard_normal((N, D)) for _ in range(3))
    wanted = 0.5 * (((soft - o) ** 2).sum(1) + ((hard - o) ** 2).sum(1)).mean()
    found = dpq.joint_central_loss(tensor(soft), tensor(hard), tensor(o))
    assert float(found) == pytest.approx(wanted)


def test_gini_terms(rng):
    p = softmax(rng.standard_normal((N, M, K)))
    wanted = np.mean([(p[:, m].mean(axis=0) ** 2).sum() for m in range(M)])
    assert float(dpq.gini_batch(tensor(p))) == pytest.approx(wanted)
    wanted = np.mean([-(p[n, m] ** 2).sum() for n in range(N) for m in range(M)])
    assert float(dpq.gini_sample(tensor(p))) == pytest.approx(wanted)
    alike = np.full((N, M, K), 1 / K)
    decided = np.zeros((N, M, K))
    decided[..., 2] = 1
    assert float(dpq.gini_batch(tensor(alike))) == pytest.approx(1 / K)
    assert float(dpq.gini_batch(tensor(decided))) == pytest.approx(1)
    assert float(dpq.gini_sample(tensor(decided))) == pytest.approx(-1)


def test_soft_assignment_weighs_the_nearest_word_most(rng):
    x, Z = unit(rng.standard_normal((N, M, D))), unit(rng.standard_normal((M, K, D)))
    alpha = 20.0
    found = gpq.soft_assign(tensor(x), tensor(Z), alpha).numpy()
    for n in range(N):
        for m in range(M):
            weight = softmax(alpha * Z[m] @ x[n, m])
            assert weight.argmax() == (Z[m] @ x[n, m]).argmax()
            np.testing.assert_allclose(found[n, m], weight @ Z[m])


def test_n_pair_loss(rng):
    x, q = rng.standard_normal((N, M, D)), rng.standard_normal((N, M, D))
    y = np.array([0, 1, 2, 0, 1, 2, 0])
    scores = x.reshape(N, -1) @ q.reshape(N, -1).T
    logs = np.log(softmax(scores))
    same = (y[:, None] == y[None, :]).astype(float)
    wanted = -(same / same.sum(axis=1, keepdims=True) * logs).sum(axis=1).mean()
    found = gpq.n_pair_loss(tensor(x), tensor(q), tensor(y))
    assert float(found) == pytest.approx(wanted)


def test_triplet_loss(rng):
    q, y, margin = rng.standard_normal((N, M, D)), np.array([0, 1, 2, 0, 1, 2, 0]), 0.1
    flat = unit(q.reshape(N, -1))
    costs = [
        max(0.0, margin + flat[a] @ flat[n] - flat[a] @ flat[p])
        for a in range(N)
        for p in range(N)
        for n in range(N)
        if a != p and y[a] == y[p] and y[a] != y[n]
    ]
    wanted = np.sum(costs) / np.count_nonzero(costs)
    assert float(gpq.triplet_loss(tensor(q), tensor(y), margin)) == pytest.approx(wanted)
    alone = gpq.triplet_loss(tensor(q[:3]), tensor(y[:3]), margin)
    assert float(alone) == 0, "no two rows of a class"


def test_classification_loss(rng):
    x, W = unit(rng.standard_normal((N, M, D))), unit(rng.standard_normal((M, L, D)))
    y, beta = np.array([0, 1, 2, 0, 1, 2, 0]), 4.0
    wanted = np.mean([cross_entropy(beta * x[:, m] @ W[m].T, y) for m in range(M)])
    found = gpq.classification_loss(tensor(x), tensor(W), tensor(y), beta)
    assert float(found) == pytest.approx(wanted)


def test_subspace_entropy(rng):
    x, W, beta = unit(rng.standard_normal((N, M, D))), unit(rng.standard_normal((M, L, D))), 4.0
    p = np.stack([softmax(beta * x[:, m] @ W[m].T) for m in range(M)])
    wanted = -(p * np.log(p)).sum(axis=-1).mean()
    assert float(gpq.subspace_entropy(tensor(x), tensor(W), beta)) == pytest.approx(wanted)


def test_reversed_gradient():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x)
    np.testing.assert_array_equal(y.detach(), x.detach())
    (y * torch.tensor([3.0, 5.0])).sum().backward()
    np.testing.assert_array_equal(x.grad, [-3, -5])


def network(**changes: object) -> gpq.GPQNetwork:
    """The paper's method unless ``changes`` say otherwise."""
    wanted = {**gpq.AS_PUBLISHED, "M": 2, "K": 4, "hidden": 8, "d": 3, "batch": 6, **changes}
    method = gpq.GPQ(gpq.GPQSettings.parse(wanted))
    built = method.network(TrainingSetInfo(N=50, dx=5, names=("a", "b", "c"), unlabelled=50))
    assert isinstance(built, gpq.GPQNetwork)
    return built


def test_one_step_raises_the_entropy_by_prototypes_and_lowers_it_by_features(rng):
    """The mini-max: the same term moves W up and the trunk down (section 3.1)."""
    net = network(lambda2=1.0, dropout=0.0, feature_dropout=0.0)
    u = torch.from_numpy(rng.standard_normal((40, 5)).astype(np.float32))
    batch = Batch(x=u[:6], y=torch.tensor([0, 1, 2, 0, 1, 2]), u=u)

    def entropy() -> float:
        with torch.no_grad():
            return float(gpq.subspace_entropy(net.features(u), net.prototypes(), 4.0))

    net(batch, "train")["entropy"].backward()
    before = entropy()
    for only in ("W", "trunk"):
        moved = [p for name, p in net.named_parameters() if name.startswith(only)]
        with torch.no_grad():
            kept = [p.clone() for p in moved]
            for p in moved:
                p -= 0.01 * p.grad
            assert (entropy() > before) == (only == "W")
            for p, old in zip(moved, kept, strict=True):
                p.copy_(old)


def test_codewords_are_refreshed_through_the_sub_prototypes():
    net = network()
    Z, W = net.Z.detach().numpy(), net.W.detach().numpy()
    Z, W = unit(Z), unit(W)
    for m in range(2):
        wanted = unit(softmax(20.0 * Z[m] @ W[m].T) @ W[m])
        np.testing.assert_allclose(net.codebooks().detach()[m], wanted, atol=1e-6)
    plain = network(lambda1=0.0, lambda2=0.0)
    np.testing.assert_allclose(
        plain.codebooks().detach(), unit(plain.Z.detach().numpy()), atol=1e-6
    )
    assert plain.class_layer() is None


def test_terms_are_weighted_and_a_weight_of_nothing_is_nothing(rng):
    x = torch.from_numpy(rng.standard_normal((6, 5)).astype(np.float32))
    batch = Batch(x=x, y=torch.tensor([0, 1, 2, 0, 1, 2]), u=x)
    one, three = (
        network(dropout=0.0, feature_dropout=0.0, **w)
        for w in ({"lambda1": 1, "lambda2": 1}, {"lambda1": 3, "lambda2": 0})
    )
    with torch.no_grad():
        first, second = one(batch, "train"), three(batch, "train")
    assert float(second["class"]) == pytest.approx(3 * float(first["class"]), rel=1e-5)
    assert set(first) == {"n_pair", "class", "entropy"}
    assert set(second) == {"n_pair", "class"}
    assert set(network(similarity="triplet")(batch, "train")) == {"triplet", "class", "entropy"}


def test_whole_rows_and_their_codes_are_classified(rng):
    """With rows of no label by the classes that the network expects of them in inference."""
    net = network(joint=2.0, distil=3.0, distil_from=2, gamma=5.0, dropout=0.5)
    x, u = (torch.from_numpy(rng.standard_normal((6, 5)).astype(np.float32)) for _ in range(2))
    y = np.array([0, 1, 2, 0, 1, 2])
    W, C = (v.detach().double().numpy() for v in (net.prototypes(), net.codebooks()))

    def both(x: torch.Tensor) -> list[np.ndarray]:
        f = net.features(x).detach().double().numpy()
        code = np.einsum("nmd,mkd->nmk", f, C).argmax(axis=-1)
        hard = np.stack([C[m, code[:, m]] for m in range(2)], axis=1)
        return [5.0 * np.einsum("nmd,mld->nml", v, W).mean(axis=1) for v in (f, hard)]

    net.eval()
    scores, blind = both(x), both(u)
    expected = softmax(blind[0])
    np.testing.assert_allclose(net.train().inferred_classes(u), expected, rtol=1e-4)
    assert net.training, "looking at a batch leaves the dropout on"
    net.trunk.dropout.p = 0.0
    batch = Batch(x=x, y=torch.from_numpy(y), u=u)
    with torch.no_grad():
        net.begin_epoch("train", 1)
        assert "distil" not in net(batch, "train"), "there is nothing to expect yet"
        net.begin_epoch("train", 2)
        terms = net(batch, "train")
    assert float(terms["joint"]) == pytest.approx(
        2.0 * sum(cross_entropy(s, y) for s in scores), rel=1e-4
    )
    assert float(terms["distil"]) == pytest.approx(
        -3.0 * sum((expected * np.log(softmax(s))).sum(axis=1).mean() for s in blind), rel=1e-4
    )


def test_the_gradient_of_codes_reaches_the_features(rng):
    net = network(joint=1.0)
    x = net.features(torch.from_numpy(rng.standard_normal((6, 5)).astype(np.float32)))
    C, y = net.codebooks(), torch.tensor([0, 1, 2, 0, 1, 2])
    alone = torch.nn.functional.cross_entropy(net.class_scores(x), y)
    whole = torch.autograd.grad(net.joint_loss(x, C, y), x, retain_graph=True)[0]
    assert not torch.allclose(whole, torch.autograd.grad(alone, x)[0])


@pytest.mark.parametrize("wrong", [{"query": "classes"}, {"distil": 1.0}])
def test_expected_classes_want_the_term_that_teaches_them(wrong):
    with pytest.raises(ConfigError, match=f"joint: 0 .*{next(iter(wrong))} = "):
        gpq.GPQSettings.parse({**gpq.AS_PUBLISHED, **wrong})


@pytest.mark.parametrize("intra_norm", [False, True])
def test_dpq_gives_the_terms_of_the_paper(rng, intra_norm):
    settings = dpq.DPQSettings(
        M=2, K=4, width=6, hidden=8, part_hidden=5, dropout=0.0, intra_norm=intra_norm,
        hard=0.5, central=0.2, gini_batch=3.0, gini_sample=0.7, batch=6, **dpq.AS_PUBLISHED,
    )  # fmt: skip
    net = dpq.DPQ(settings).network(TrainingSetInfo(N=50, dx=5, names=("a", "b", "c")))
    assert isinstance(net, dpq.DPQNetwork)
    torch.nn.init.normal_(net.centres, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(rng.standard_normal((6, 5)).astype(np.float32))
    y = np.array([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        found = net(Batch(x=x, y=torch.from_numpy(y)), "train")
    terms = {name: float(value) for name, value in found.items()}
    p = softmax(net.logits(net.embedding_layer(x)).detach().double().numpy())
    C, W = net.words.detach().double().numpy(), net.predict.weight.detach().double().numpy()
    b, o = net.predict.bias.detach().numpy(), net.centres.detach().double().numpy()
    soft = np.einsum("nmk,mkd->nmd", p, C)
    hard = np.stack([C[m, p[:, m].argmax(axis=-1)] for m in range(2)], axis=1)
    if intra_norm:
        soft, hard = unit(soft), unit(hard)
    np.testing.assert_allclose(net.embed(x).detach(), soft.reshape(6, -1), atol=1e-5)
    soft, hard = soft.reshape(6, -1), hard.reshape(6, -1)
    wanted = {
        "soft": cross_entropy(soft @ W.T + b, y),
        "hard": 0.5 * cross_entropy(hard @ W.T + b, y),
        "central": 0.1 * (((soft - o[y]) ** 2).sum(1) + ((hard - o[y]) ** 2).sum(1)).mean(),
        "gini_batch": 3.0 * (p.mean(axis=0) ** 2).sum(axis=-1).mean(),
        "gini_sample": -0.7 * (p**2).sum(axis=-1).mean(),
    }
    assert terms == pytest.approx(wanted, rel=1e-4)


def test_dpq_learns_codes_from_the_head(rng):
    """With more classes than codewords the head learns from labels, and codes from the
    probabilities of the head, without a gradient to it; queries are these probabilities."""
    settings = dpq.DPQSettings(
        M=2, K=2, width=6, hidden=8, part_hidden=5, dropout=0.0, feature_dropout=0.0, batch=6
    )
    net = dpq.DPQ(settings).network(TrainingSetInfo(N=50, dx=5, names=("a", "b", "c")))
    assert isinstance(net, dpq.DPQNetwork)
    assert net.head is not None
    x = torch.from_numpy(rng.standard_normal((6, 5)).astype(np.float32))
    y = np.array([0, 1, 2, 0, 1, 2])
    found = net(Batch(x=x, y=torch.from_numpy(y)), "train")
    scores = net.head(net.embedding_layer(x)).detach().double().numpy()
    P = softmax(scores)
    assert found["head"].item() == pytest.approx(cross_entropy(scores, y), rel=1e-4)
    soft = (
        net.predict(net.represent(net.assignment(net.embedding_layer(x)))).detach().double().numpy()
    )
    wanted = -(P * np.log(softmax(soft))).sum(axis=1).mean()
    assert found["soft"].item() == pytest.approx(wanted, rel=1e-4)
    (gradient,) = torch.autograd.grad(
        found["soft"] + found["hard"], net.head.weight, allow_unused=True
    )
    assert gradient is None
    np.testing.assert_allclose(net.probabilities(x)[0].detach(), P, rtol=1e-4, atol=1e-6)


def test_parts_at_unit_length(rng):
    x = torch.from_numpy(rng.standard_normal((4, 3, 5)))
    np.testing.assert_allclose(intra_normalise(x).norm(dim=-1), 1, atol=1e-12)
    assert torch.isfinite(intra_normalise(torch.zeros(2, 3, 5))).all()
