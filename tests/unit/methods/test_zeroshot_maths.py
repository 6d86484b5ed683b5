"""What the zero-shot methods compute, against the papers' formulas in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raypq.errors import ConfigError, DivergenceError, InputError
from raypq.methods.base import TrainingSetInfo
from raypq.methods.clusterable import Clusterable
from raypq.methods.eszsl import ESZSL, ESZSLSettings
from raypq.methods.gradient import Batch
from raypq.methods.psr import PSR, PSRSettings
from raypq.methods.sae import SAE, SAESettings
from raypq.methods.support.closed_form import Moments
from raypq.methods.support.clusterable_network import ClusterableSettings
from raypq.methods.support.score_axes import Axes, interpolated_classes
from raypq.methods.support.softmax_classifier import Fit, fit_on_axes, fit_softmax
from raypq.methods.support.statistics import class_sums
from raypq.stages.representation.clusterability import kmeans, mutual_information

N, DX, DA, L = 60, 12, 7, 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def rows(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X [N, dx], y [N] with every class there, A [L, da]."""
    y = np.concatenate([np.arange(L), rng.integers(0, L, N - L)]).astype(np.int32)
    X, A = rng.standard_normal((N, DX)), rng.standard_normal((L, DA))
    return X.astype(np.float32), y, A.astype(np.float32)


def moments(X: np.ndarray, y: np.ndarray, A: np.ndarray) -> Moments:
    wide = X.astype(np.float64)
    return Moments(G=wide.T @ wide, S=class_sums(X, y, L), n=np.bincount(y, minlength=L),
                   A=A.astype(np.float64).T)  # fmt: skip


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("negative", [0.0, -1.0])
def test_eszsl_minimises_its_objective(rows, negative):
    """W is where the gradient of ‖XᵀWA − Y‖² + γ‖WA‖² + λ‖XᵀW‖² + γλ‖W‖² is zero."""
    X, y, A = rows
    gamma, lam = 0.7, 0.3
    W = ESZSL(ESZSLSettings(gamma=gamma, lam=lam, negative=negative)).bilinear(moments(X, y, A))
    X64, A64 = X.astype(np.float64), A.astype(np.float64).T
    Y = np.where(np.eye(L)[y] > 0, 1.0, negative)
    gradient = (
        X64.T @ (X64 @ W @ A64 - Y) @ A64.T
        + gamma * W @ A64 @ A64.T
        + lam * X64.T @ X64 @ W
        + gamma * lam * W
    )
    assert np.abs(gradient).max() < 1e-8


def test_sae_solves_its_sylvester_equation(rows):
    X, y, A = rows
    lam = 0.3
    W = SAE(SAESettings(lam=lam)).autoencoder(moments(X, y, A))
    X64, S = X.astype(np.float64).T, A.astype(np.float64)[y].T
    left = S @ S.T @ W + lam * W @ X64 @ X64.T
    np.testing.assert_allclose(left, (1 + lam) * S @ X64.T, atol=1e-8)


@pytest.fixture
def psr(rows):
    """A PSR network, and the loss terms of a batch, by name."""
    X, y, A = rows

    def build(**settings):
        method = PSR(PSRSettings(M=2, K=4, hidden=(6,), p=N, **settings))
        network = method.network(TrainingSetInfo(N=N, dx=DX, A=A, names=tuple("abcde")))
        batch = Batch(x=torch.from_numpy(X), y=torch.from_numpy(y.astype(np.int64)))
        terms = network(batch, "train")
        return network, {name: term.detach() for name, term in terms.items()}

    return build


def test_psr_objectives(rows, psr):
    """O1 with its adaptive weight, O2 and O3 (eq. 2 to 4), with the worst of all candidates."""
    X, y, _ = rows
    tau, lam1, lam2 = 0.05, 0.6, 0.2
    network, terms = psr(tau=tau, lam1=lam1, lam2=lam2)
    A = network.A.double().numpy()
    with torch.no_grad():
        f = network.encoder(network.A)
        back = network.decoder(f).double().numpy()
    f = f.double().numpy()
    s = unit(f)[y] @ unit(X.astype(np.float64)).T
    delta = (unit(A) @ unit(A).T)[y][:, y]
    other = y[:, None] != y[None]
    o1, o2 = [], []
    for r in range(N):
        far = other[r] & (delta[r] < tau)
        near = other[r] & (delta[r] >= tau)
        o1.append(((tau - delta[r]) * s[r])[far].max() if far.any() else 0.0)
        kept = np.maximum(tau - s[r], 0) + np.maximum(s[r] - delta[r], 0)
        o2.append(kept[near].max() if near.any() else 0.0)
    assert float(terms["identical"]) == pytest.approx(-np.diag(s).mean(), abs=1e-5)
    assert float(terms["dissimilar"]) == pytest.approx(np.mean(o1), abs=1e-5)
    assert float(terms["similar"]) == pytest.approx(lam1 * np.mean(o2), abs=1e-5)
    wrong = ((back - A)[y] ** 2).sum(axis=1).mean()
    assert float(terms["reconstruction"]) == pytest.approx(lam2 * wrong, rel=1e-4)


def test_psr_baselines(psr):
    """B1 regresses, B2 has no similar classes, B3 no decoder (section 4.1)."""
    names = {baseline: set(psr(baseline=baseline)[1]) for baseline in ("full", "B1", "B2", "B3")}
    assert names["full"] == {"identical", "dissimilar", "similar", "reconstruction"}
    assert names["B1"] == {"regression", "reconstruction"}
    assert names["B2"] == names["full"] - {"similar"}
    assert names["B3"] == names["full"] - {"reconstruction"}


def test_psr_says_which_cosines_there_are(rows):
    A = unit(np.eye(L, DA, dtype=np.float32) + 0.5)
    with pytest.raises(ConfigError, match=r"tau: at -0.9 .* from -0\.\d+ to -0\.\d+\)"):
        PSR(PSRSettings(M=2, tau=-0.9)).network(
            TrainingSetInfo(N=N, dx=DX, A=A, names=tuple("abcde"))
        )


def test_psr_takes_an_attribute_that_is_the_same_for_all(rows):
    """One constant column says nothing and does no harm; all constant is an error."""
    A = rows[2].copy()
    A[:, 2] = 4.0
    dataset_info = TrainingSetInfo(N=N, dx=DX, A=A, names=tuple("abcde"))
    for how in ("centre", "zscore"):
        network = PSR(PSRSettings(M=2, attributes=how)).network(dataset_info)
        assert torch.isfinite(network.A).all()
        assert (network.A[:, 2] == 0).all()
    with pytest.raises(InputError, match="all of them alike"):
        PSR(PSRSettings(M=2)).network(
            TrainingSetInfo(N=N, dx=DX, A=np.ones_like(A), names=tuple("abcde"))
        )


def clusterable(A: np.ndarray, **settings):
    method = Clusterable(ClusterableSettings(M=2, K=4, hidden=8, latent=3, **settings))
    return method.network(TrainingSetInfo(N=N, dx=DX, A=A, names=tuple("abcde")))


def test_gaussian_similarity_is_the_corrected_eq_8(rows):
    """The sum over k has w_k: a softmax over −γ‖F(x) − w_k‖²."""
    X, y, A = rows
    network = clusterable(A, gaussian=1, gamma=0.4)
    w = np.random.default_rng(1).standard_normal((L, DX))
    with torch.no_grad():
        network.centres.copy_(torch.from_numpy(w))
    batch = Batch(x=torch.from_numpy(X), y=torch.from_numpy(y.astype(np.int64)))
    found = float(network(batch, "gaussian")["gaussian"].detach())
    similar = np.exp(-0.4 * ((X[:, None] - w[None]) ** 2).sum(-1))
    wanted = -np.log(similar[np.arange(N), y] / similar.sum(axis=1)).mean()
    assert found == pytest.approx(wanted, rel=1e-4)


def test_what_trains_the_mapping(rows):
    """M learns from the classifier alone: reconstruction would make it constant."""
    X, y, A = rows
    network = clusterable(A, mapping=6)
    batch = Batch(x=torch.from_numpy(X), y=torch.from_numpy(y.astype(np.int64)))
    terms = network(batch, "cvae")
    assert set(terms) == {"reconstruction", "kl", "cls", "cls_made"}
    moved = {}
    for name, loss in terms.items():
        network.zero_grad()
        loss.backward(retain_graph=True)
        grad = network.mapping.weight.grad
        moved[name] = grad is not None and bool(grad.abs().max() > 0)
    assert moved == {"reconstruction": False, "kl": False, "cls": True, "cls_made": False}


def test_kl_and_noise(rows):
    X, y, A = rows
    batch = Batch(x=torch.from_numpy(X), y=torch.from_numpy(y.astype(np.int64)))
    network = clusterable(A, output="linear")
    terms = network(batch, "cvae")
    a = torch.from_numpy(X)
    with torch.no_grad():
        hidden = network.encoder(torch.cat([a, network.A[batch.y]], dim=1)).double().numpy()
    mean, logvar = np.split(hidden, 2, axis=1)
    wanted = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(axis=1).mean()
    assert float(terms["kl"].detach()) == pytest.approx(wanted, rel=1e-4)
    # Noise on the target adds its variance, α² in units of each dimension's own.
    noisy = clusterable(A, output="linear", alpha=2.0)
    noisy.load_state_dict(network.state_dict())
    torch.manual_seed(0)
    means = [
        np.mean([float(one(batch, "cvae")["reconstruction"].detach()) for _ in range(200)])
        for one in (network, noisy)
    ]
    assert means[1] - means[0] == pytest.approx(4 * X.var(axis=0).sum(), rel=0.05)


def test_a_collapsed_kl_names_the_step(rows):
    X, y, A = rows
    network = clusterable(A)
    with torch.no_grad():  # the encoder says the same of everything: mean 0, variance 1
        for parameter in network.encoder.parameters():
            parameter.zero_()
    batch = Batch(x=torch.from_numpy(X), y=torch.from_numpy(y.astype(np.int64)))
    for epoch in range(2):
        network.begin_epoch("cvae", epoch)
        network(batch, "cvae")
        network(batch, "cvae")
        if not epoch:
            network.end_epoch("cvae", epoch)  # the first epoch is allowed to find its use
    with pytest.raises(DivergenceError, match=r"collapsed by epoch 1, step 1 of it: .* lower kl"):
        network.end_epoch("cvae", 1)


def test_axes_keep_every_score_of_the_span(rng):
    """x·v is the same after the two maps, for prototypes within the axes that are kept."""
    V = rng.standard_normal((40, 4)) @ rng.standard_normal((4, DX))
    X = rng.standard_normal((N, DX))
    axes = Axes(4, DX)
    axes.fit(torch.from_numpy(V), torch.from_numpy(X), 2)
    v, x = torch.from_numpy(V).float(), torch.from_numpy(X).float()
    np.testing.assert_allclose(
        (axes(x) @ axes.prototypes(v).T).numpy(), X @ V.T, atol=1e-4 * np.abs(X @ V.T).max()
    )


def test_axes_weigh_what_scores_weigh(rng):
    """Distance in u is what a change of x costs a score on average, up to the floor."""
    V = rng.standard_normal((500, DX)) * np.linspace(3, 0.5, DX)
    axes = Axes(DX, DX)
    axes.fit(torch.from_numpy(V), torch.from_numpy(rng.standard_normal((N, DX))), 2)
    delta = rng.standard_normal((20, DX))
    moved = axes(torch.from_numpy(delta).float()).numpy()
    cost = ((delta @ V.T) ** 2).mean(axis=1)
    np.testing.assert_allclose((moved**2).sum(axis=1), cost, rtol=0.1)


def test_mixtures_are_the_same_every_time(rows):
    A = torch.from_numpy(rows[2])
    first, second = interpolated_classes(A), interpolated_classes(A)
    assert torch.equal(first, second)
    assert first.shape[1] == DA


def test_softmax_learns_what_is_separable(rng):
    """Weights count: a class of weight 0 is never the answer."""
    y = np.arange(90) % 3
    x = torch.from_numpy(4 * np.eye(3, 5)[y] + 0.2 * rng.standard_normal((90, 5))).float()
    how = Fit(epochs=60, rate=0.05, decay=0.0)
    labels = torch.from_numpy(y)
    V, bias = fit_softmax(x, labels, torch.ones(90), 3, how, torch.Generator().manual_seed(0))
    assert ((x @ V.T + bias).argmax(1) == labels).all()
    weight = (labels != 2).float()
    V, bias = fit_softmax(x, labels, weight, 3, how, torch.Generator().manual_seed(0))
    assert not ((x @ V.T + bias).argmax(1) == 2).any()


def test_a_classifier_on_axes_is_the_one_of_the_space(rng):
    """Decay counts in the space before the axes: orthonormal axes and scaled ones agree."""
    y = torch.from_numpy(np.arange(80) % 4)
    x = torch.from_numpy(rng.standard_normal((80, 6)) + 2 * np.eye(4, 6)[y]).float()
    how = Fit(epochs=30, rate=0.02, decay=0.05)
    scores = []
    for scale in (np.ones(6), np.array([9, 5, 3, 2, 1, 0.5])):
        axes = Axes(6, 6)
        axes.P.copy_(torch.from_numpy(np.diag(scale)).float())
        V, bias = fit_on_axes(
            axes, axes(x), y, torch.ones(80), 4, how, torch.Generator().manual_seed(0)
        )
        scores.append((axes(x) @ V.T + bias).numpy())
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


def test_mutual_information():
    y = np.repeat(np.arange(4), 25)
    mi, nmi = mutual_information((y + 1) % 4, y)
    assert mi == pytest.approx(np.log(4))
    assert nmi == pytest.approx(1.0)
    assert mutual_information(np.tile(np.arange(25), 4), y)[1] == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(np.zeros(100, int), y)[0] == pytest.approx(0.0, abs=1e-12)
    half = mutual_information(y // 2, y)  # log 2 of log 4, over the mean of both entropies
    assert half[0] == pytest.approx(np.log(2))
    assert half[1] == pytest.approx(np.log(2) / (1.5 * np.log(2)))


def test_kmeans_finds_what_is_apart(rng):
    y = np.repeat(np.arange(5), 30)
    X = (10 * rng.standard_normal((5, 8))[y] + 0.1 * rng.standard_normal((150, 8))).astype("f4")
    found = kmeans(X, 5, np.random.default_rng(0))
    assert mutual_information(found, y)[1] == pytest.approx(1.0)
    np.testing.assert_array_equal(found, kmeans(X, 5, np.random.default_rng(0)))
    assert len(np.unique(kmeans(np.ones((9, 2), np.float32), 3, np.random.default_rng(0)))) == 1


def test_cosines_of_psr_are_those_of_the_visual_space(rows, fit):
    """With as many axes as dimensions nothing is lost before the codes."""
    X, y, A = rows
    model = fit(
        PSR(PSRSettings(M=2, K=16, D=DX, hidden=(8,), epochs=2, batch=20, normalise="none")),
        np.tile(X, (3, 1)), y=np.tile(y, 3), A=A,
    )  # fmt: skip
    V, _ = model.prototypes(A)
    network = model.network()
    with torch.no_grad():
        f = network.encoder(network.normalised(torch.from_numpy(A)))
        wanted = F.normalize(torch.from_numpy(X)) @ F.normalize(f).T
    np.testing.assert_allclose(model.embed(X) @ V.T, wanted.numpy(), atol=0.05)
    assert np.abs(model.cosines(model.embed(X), V)).max() <= 1
