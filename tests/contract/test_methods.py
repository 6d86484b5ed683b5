"""What every method promises, checked on every method of the registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from raypq import kernels
from raypq.data.model_files import ModelFiles
from raypq.errors import ConfigError, InputError, ModelError, NotFittedError
from raypq.methods import registry
from raypq.methods.base import Model, ReductionMethod, State, Stats, TrainBatch, TrainingSetInfo
from raypq.methods.gradient import GradientMethod
from raypq.methods.support import codebooks

METHODS = sorted(registry.METHODS)
BY_REDUCTION = [name for name in METHODS if issubclass(registry.find(name), ReductionMethod)]
BY_GRADIENT = [name for name in METHODS if issubclass(registry.find(name), GradientMethod)]
NORMALISE = ("none", "unit", "zscore", "zscore-unit")
N, DX, L, DA = 600, 16, 8, 6
BATCH = 50

every_method = pytest.mark.parametrize("name", METHODS)
by_reduction = pytest.mark.parametrize("name", BY_REDUCTION)
by_gradient = pytest.mark.parametrize("name", BY_GRADIENT)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    kernels.set_threads(1)


def small(name: str, **changes: Any) -> Any:
    """The method at a size for tests: M = 4 where it has more than one sub-codebook."""
    cls = registry.find(name)
    sizes = {"iterations": 6, "epochs": 2, "batch": 50, "hidden": 32, "width": 40}
    least = {key: value for key, value in sizes.items() if key in cls.settings_class.model_fields}
    wanted = {"M": 4, "K": 16, "seed": 1, **least, **changes}
    try:
        return registry.create(name, wanted)
    except ConfigError:
        if "M" in changes:
            raise
        fixed = {**wanted, "M": cls.settings_class.model_fields["M"].default}
        return registry.create(name, fixed)


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    """Rows X in classes y, class embeddings A, and classes E that training does not see."""
    rng = np.random.default_rng(11)
    E = rng.standard_normal((L + 4, DA)).astype(np.float32)
    W = rng.standard_normal((DA, DX))
    y = rng.permutation(np.arange(N) % L)
    X = (np.tanh(E @ W)[y] + 0.3 * rng.standard_normal((N, DX))).astype(np.float32)
    return {"X": X, "y": y.astype(np.int32), "A": E[:L], "E": E}


@pytest.fixture(scope="module")
def trained(fit, data) -> Callable[..., Model]:
    """Fits a small method on ``data``; equal requests are answered from memory."""
    known: dict[str, Model] = {}

    def trained(name: str, *, shards: tuple[int, ...] = (N,), **changes: Any) -> Model:
        key = f"{name} {shards} {sorted(changes.items())}"
        if key not in known:
            known[key] = fit(
                small(name, **changes),
                data["X"],
                y=data["y"],
                A=data["A"],
                batch=BATCH,
                shards=shards,
            )
        return known[key]

    return trained


def begin(method: ReductionMethod, data: dict[str, np.ndarray], n: int = N) -> State:
    names = tuple(str(t) for t in range(L))
    return method.begin(TrainingSetInfo(N=n, dx=DX, A=data["A"], names=names))


def batch(data: dict[str, np.ndarray], low: int, high: int) -> TrainBatch:
    return TrainBatch(X=data["X"][low:high], y=data["y"][low:high], row=low)


def prototype_width(model: Model) -> int:
    return model.dx if model.da is None else model.da


@every_method
def test_settings_survive_json(name):
    settings = small(name, seed=5).settings
    text = json.dumps(settings.model_dump(mode="json"))
    assert type(settings).parse(json.loads(text)) == settings


@every_method
def test_the_name_is_the_same_everywhere(name, trained):
    cls = registry.find(name)
    assert cls.name == cls.model_class.method == trained(name).method == name


@every_method
def test_unknown_settings_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} settings: unknown key 'k'; allowed: .*K"):
        registry.create(name, {"k": 1})


@by_reduction
def test_no_model_before_training(name, data):
    method = small(name)
    for state in (None, begin(method, data)):
        with pytest.raises(NotFittedError, match=name):
            method.model(state)


@by_gradient
def test_no_model_before_the_last_phase(name, data):
    method = small(name)
    dataset_info = TrainingSetInfo(N=N, dx=DX, A=data["A"], names=tuple("abcdefgh"), unlabelled=N)
    with pytest.raises(NotFittedError, match=name):
        method.freeze(method.network(dataset_info), dataset_info, scale={}, record={})


@every_method
def test_shapes_and_types(name, trained, data):
    model, X = trained(name), data["X"]
    U, B = model.embed(X), model.encode(X)
    assert (U.dtype, U.shape) == (np.float32, (N, model.D))
    assert (B.dtype, B.shape) == (np.uint8, (N, model.M))
    assert B.max() < model.K
    assert (model.C.dtype, model.C.shape) == (np.float32, (model.M, 16, model.D // model.M))
    assert model.dx == DX
    q = model.decode(B)
    assert (q.dtype, q.shape) == (np.float32, (N, model.D))
    E = np.ones((5, prototype_width(model)), np.float32)
    V, bias = model.prototypes(E)
    assert (V.dtype, V.shape) == (np.float32, (5, model.D))
    assert (bias.dtype, bias.shape) == (np.float64, (5,))
    assert all(np.isfinite(tensor).all() for tensor in model.tensors.values())


@every_method
def test_no_rows(name, trained):
    model = trained(name)
    none = np.empty((0, DX), np.float32)
    assert model.embed(none).shape == (0, model.D)
    assert model.encode(none).shape == (0, model.M)
    assert model.decode(model.encode(none)).shape == (0, model.D)
    V, bias = model.prototypes(np.empty((0, prototype_width(model)), np.float32))
    assert (V.shape, bias.shape) == ((0, model.D), (0,))


@every_method
def test_codes_do_not_hang_on_the_batch(name, trained, data):
    model, X = trained(name), data["X"]
    whole = model.encode(X)
    for low, high in [(0, 1), (3, 10), (100, 357)]:
        np.testing.assert_array_equal(model.encode(X[low:high]), whole[low:high])


@every_method
@pytest.mark.parametrize("offset", [4, 8])
def test_embeddings_do_not_hang_on_addresses(name, trained, data, offset):
    """Torch adds few rows in an order that depends on where the operands lie. Arrays from another
    process, and rows out of a file, lie at any multiple of 4 or 8 bytes."""
    model, X = trained(name), data["X"]
    moved = {key: at_offset(value, offset) for key, value in model.tensors.items()}
    elsewhere = replace(model, tensors=moved)
    E = np.random.default_rng(0).standard_normal((2, prototype_width(model))).astype(np.float32)
    for rows in (1, 2, 5):
        part, shifted = np.array(X[:rows]), at_offset(X[:rows], offset)
        np.testing.assert_array_equal(elsewhere.embed(shifted), model.embed(part))
        for found, wanted in zip(
            elsewhere.prototypes(at_offset(E[:rows], offset)),
            model.prototypes(E[:rows]),
            strict=True,
        ):
            np.testing.assert_array_equal(found, wanted)


def at_offset(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy of an array, ``offset`` bytes after a multiple of 64."""
    buffer = np.empty(array.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    moved = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@every_method
@pytest.mark.parametrize("normalise", NORMALISE)
def test_save_and_load(name, trained, data, tmp_path, normalise):
    model = trained(name, normalise=normalise)
    written = model.save(str(tmp_path / "m"))
    back = registry.load(str(tmp_path / "m"))
    assert type(back) is type(model)
    assert back.settings == model.settings
    assert back.fingerprint == written == model.fingerprint
    assert back.record == json.loads(json.dumps(model.record))
    X = data["X"]
    np.testing.assert_array_equal(back.embed(X), model.embed(X))
    np.testing.assert_array_equal(back.encode(X), model.encode(X))
    E = np.random.default_rng(0).standard_normal((7, prototype_width(model))).astype(np.float32)
    for found, wanted in zip(back.prototypes(E), model.prototypes(E), strict=True):
        np.testing.assert_array_equal(found, wanted)


@every_method
def test_a_seed_fixes_every_bit(name, fit, data, trained):
    again = fit(small(name), data["X"], y=data["y"], A=data["A"], batch=BATCH)
    assert again.fingerprint == trained(name).fingerprint
    other = trained(name, seed=2)
    assert other.fingerprint != again.fingerprint
    assert (other.encode(data["X"]) != again.encode(data["X"])).any()


@by_reduction
def test_accumulate_is_pure(name, data):
    method = small(name, normalise="zscore")
    state = begin(method, data)
    seen = set()
    while not state.done:
        seen.add(state.phase)
        public = state.for_workers()
        before = {key: value.copy() for key, value in public.arrays.items()}
        X = data["X"].copy()
        first = method.accumulate(public, batch(data, 0, 300))
        again = method.accumulate(public, batch(data, 0, 300))
        for key, value in first.sums.items():
            np.testing.assert_array_equal(again.sums[key], value)
        assert set(public.arrays) == set(before)
        for key, value in before.items():
            np.testing.assert_array_equal(public.arrays[key], value)
        np.testing.assert_array_equal(data["X"], X)
        total = Stats().merge(first).merge(method.accumulate(public, batch(data, 300, N)))
        np.testing.assert_array_equal(  # merging does not reach back into what was merged
            next(iter(again.sums.values()), np.zeros(1)),
            next(iter(first.sums.values()), np.zeros(1)),
        )
        kept = {key: value.copy() for key, value in state.arrays.items()}
        following = method.update(state, total)
        for key, value in kept.items():
            np.testing.assert_array_equal(state.arrays[key], value)
        state = following
    assert seen == {"scale", "sample", "assign"}


@by_reduction
def test_workers_are_not_sent_what_updates_alone_need(name, data):
    method = small(name)
    state = begin(method, data)
    while not state.done:
        sent = state.for_workers()
        assert not [key for key in sent.arrays if key.startswith("_")]
        assert sent.history == ()
        state = method.update(state, method.accumulate(sent, batch(data, 0, N)))


@by_reduction
@pytest.mark.parametrize("normalise", ["none", "zscore-unit"])
@pytest.mark.parametrize("shards", [(300, 300), (50, 100, 450), (BATCH,) * 12, (0, 600, 0)])
def test_any_split_of_the_rows_gives_the_same_model(name, normalise, shards, trained, data):
    """Batches are cut at the same rows; only how they are grouped into shards differs.

    Sums of float64 in another grouping may differ in their last bit, so the values are equal to
    rounding; for one grouping they are equal in every bit (see the seed test).
    """
    whole = trained(name, normalise=normalise)
    split = trained(name, normalise=normalise, shards=shards)
    for key, tensor in whole.tensors.items():
        np.testing.assert_allclose(split.tensors[key], tensor, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(split.encode(data["X"]), whole.encode(data["X"]))
    wanted = [note["objective"] for note in whole.record["history"]]
    found = [note["objective"] for note in split.record["history"]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@by_reduction
@pytest.mark.parametrize("normalise", ["unit", "zscore"])
def test_codebooks_of_a_sample_hang_on_its_rows_alone(name, normalise, fit, data):
    """20 rows for each of 16 codewords; the passes that see all rows come first."""
    method = small(name, normalise=normalise, rows_per_codeword=20)
    state, seen = begin(method, data), []
    while not state.done:
        rows = method.rows_of_pass(state)
        seen.append(len(data["X"]) if rows is None else len(rows))
        part = batch(data, 0, N) if rows is None else batch(data, 0, N).chosen(rows)
        later = method.rows_of_later_passes(state)
        before, state = state, method.update(state, method.accumulate(state.for_workers(), part))
        if later is not None and not state.done:
            assert np.isin(method.rows_of_pass(state), later).all()
        if before.phase == "axes":
            assert np.isin(before.arrays["rows"], rows).all(), "seeds are of the sample"
    all_rows = 2 if normalise == "zscore" else 1
    joint = seen.count(80)  # passes that update PQZSL's embedding
    assert bool(joint) == (name == "pqzsl")
    assert seen == [N] * all_rows + [80] * joint + [320] * (len(seen) - all_rows - joint)
    whole = fit(method, data["X"], y=data["y"], A=data["A"], batch=BATCH)
    split = fit(method, data["X"], y=data["y"], A=data["A"], batch=BATCH, shards=(50, 100, 450))
    for key, tensor in whole.tensors.items():
        np.testing.assert_allclose(split.tensors[key], tensor, rtol=1e-4, atol=1e-5)
    error = whole.record["history"][-1]["quantization_error"]
    U = whole.embed(data["X"])
    q = whole.decode(whole.encode(data["X"]))
    assert ((U - q) ** 2).sum(axis=1).mean() < 1.5 * error, "other rows are quantized about as well"


@by_reduction
def test_as_many_rows_as_the_sample_would_have(name, data):
    method = small(name, rows_per_codeword=38)  # 608 rows, of 600
    assert method.rows_of_later_passes(begin(method, data)) is None
    method = small(name, rows_per_codeword=0)
    assert method.rows_of_later_passes(begin(method, data)) is None


@by_reduction
def test_merging_keeps_every_row_and_sum(name, data):
    """Σ over any cut of the rows is the statistic of all of them, in every phase."""
    method = small(name, normalise="zscore")
    state = begin(method, data)
    rng = np.random.default_rng(0)
    while not state.done:
        whole = method.accumulate(state.for_workers(), batch(data, 0, N))
        cuts = [0, *np.sort(rng.choice(np.arange(1, N), 5, replace=False)), N]
        merged = Stats()
        for low, high in pairwise(cuts):
            merged.merge(method.accumulate(state.for_workers(), batch(data, low, high)))
        assert set(merged.sums) == set(whole.sums)
        for key, value in whole.sums.items():
            np.testing.assert_allclose(merged.sums[key], value, rtol=1e-5, atol=1e-4)
            assert merged.sums[key].dtype == np.float64
        for key, rows in whole.rows.items():
            np.testing.assert_array_equal(np.concatenate(merged.rows[key]), np.concatenate(rows))
        state = method.update(state, whole)


def decreases(values: list[float], slack: float) -> bool:
    return all(b <= a * (1 + slack) for a, b in pairwise(values))


@by_reduction
@pytest.mark.parametrize("seed", range(3))
def test_the_objective_never_rises(name, fit, data, seed):
    """PQ and VQ alternate two exact minimisations; PQZSL's joint update is shown to fall too.

    OPQ turns the rotation and moves the codewords at once, as in its paper's code, and may rise
    by a hair.
    """
    noise = np.random.default_rng(seed).standard_normal((N, DX))
    X = (data["X"] + noise).astype(np.float32)
    # A small sample leaves the passes something to do.
    method = small(name, seed=seed, tolerance=0.0, iterations=12, sample=100)
    model = fit(method, X, y=data["y"], A=data["A"])
    history = model.record["history"]
    values = [note["objective"] for note in history]
    assert len(values) > 2
    assert all(np.isfinite(values))
    assert decreases(values, 1e-3 if name == "opq" else 1e-9)
    assert values[-1] < values[0]
    assert history[-1]["empty"] == 0
    U, q = model.embed(X), model.decode(model.encode(X))
    found = ((U - q) ** 2).sum(axis=1).mean()
    assert found <= history[-1]["quantization_error"] * (1 + 1e-6), "the last update counts too"


@by_reduction
def test_training_stops_when_the_objective_stops(name, trained):
    model = trained(name, tolerance=0.5, iterations=50)
    assert len(model.record["history"]) < 10


@by_reduction
def test_fewer_rows_than_codewords(name, data):
    with pytest.raises(ConfigError, match=r"K: 16 codewords need .*, found 15"):
        begin(small(name), data, n=15)


@by_reduction
def test_as_many_rows_as_codewords(name, fit, data):
    n = 16
    y = np.arange(n) % L
    model = fit(small(name, normalise="none"), data["X"][:n], y=y, A=data["A"])
    assert np.isfinite(model.C).all()


@by_reduction
def test_rows_that_are_left_out_on_the_way(name, data):
    """Quarantined shards take their rows with them; too few left is an error, not a crash."""
    method = small(name)
    state = begin(method, data)
    with pytest.raises(ConfigError, match=r"K: 16 codewords need .*, found 10"):
        method.update(state, method.accumulate(state.for_workers(), batch(data, 0, 10)))
    with pytest.raises(ConfigError, match="found 0"):
        method.update(state, Stats())


@by_reduction
def test_M_that_does_not_fit(name, data):
    try:
        method = small(name, M=10_007)
    except ConfigError as error:
        assert "key 'M'" in str(error)  # noqa: PT017 - either place may refuse it
        return
    with pytest.raises(ConfigError, match=r"\bM\b.*10007|10007.*\bM\b"):
        begin(method, data)


@pytest.mark.parametrize("name", ["pq", "opq"])
def test_M_that_does_not_divide_the_width(name, data):
    with pytest.raises(ConfigError, match=r"16.*M|M.*16"):
        begin(small(name, M=5), data)


def test_pqzsl_pads_to_a_multiple_of_M(trained):
    assert trained("pqzsl", M=5).D == 10, "the 8 classes, padded"


def test_opq_may_narrow_the_space(trained, data):
    model = trained("opq", D=8)
    assert model.D == 8
    P = model.tensors["P"]
    np.testing.assert_allclose(P @ P.T, np.eye(8), atol=1e-5)
    with pytest.raises(ConfigError, match="at most the feature width 16"):
        begin(small("opq", D=20), data)


def test_opq_is_no_worse_than_pq(fit):
    """Correlated features are what the rotation is for."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((2000, 4)) @ rng.standard_normal((4, 16))).astype(np.float32)
    error = {}
    for name in ("pq", "opq"):
        model = fit(small(name, iterations=15), X)
        error[name] = np.mean((model.embed(X) - model.decode(model.encode(X))) ** 2)
    assert error["opq"] < 0.7 * error["pq"]


@by_reduction
def test_codewords_do_not_stay_empty(name, fit, data):
    """Five clusters and sixteen codewords, of which most start on the same few points."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 5, N)
    centres = 5 * rng.standard_normal((5, DX))
    X = (centres[y] + 0.05 * rng.standard_normal((N, DX))).astype(np.float32)
    y = np.concatenate([np.arange(L), rng.integers(0, L, N - L)])
    model = fit(small(name, iterations=15, tolerance=0.0, sample=16), X, y=y, A=data["A"])
    assert model.record["history"][-1]["empty"] == 0
    used = [len(np.unique(column)) for column in model.encode(X).T]
    assert min(used) == 16


@by_reduction
def test_fewer_distinct_rows_than_codewords(name, fit, data):
    X = np.repeat(data["X"][:5], N // 5, axis=0)
    y = np.arange(N) % L
    model = fit(small(name), X, y=y, A=data["A"])
    assert np.isfinite(model.C).all()
    U = model.embed(X)
    np.testing.assert_allclose(model.decode(model.encode(X)), U, atol=1e-4)


@every_method
def test_constant_features(name, fit, data):
    X = np.ones((N, DX), np.float32)
    model = fit(small(name, normalise="zscore-unit"), X, y=np.arange(N) % L, A=data["A"])
    assert all(np.isfinite(tensor).all() for tensor in model.tensors.values())


@every_method
def test_features_of_another_width(name, trained):
    model = trained(name)
    X = np.zeros((2, DX + 1), np.float32)
    for use in (model.embed, model.encode):
        with pytest.raises(ModelError) as caught:
            use(X)
        assert str(caught.value) == f"{name} model: expected features of width 16, found 17"


@every_method
def test_class_embeddings_of_another_width(name, trained):
    model = trained(name)
    width = prototype_width(model)
    with pytest.raises(ModelError, match=f"class embeddings of width {width}.*, found {width + 1}"):
        model.prototypes(np.zeros((2, width + 1), np.float32))


@every_method
def test_tables_of_prototypes(name, trained, data):
    model = trained(name)
    V, bias = model.prototypes(
        np.random.default_rng(0).standard_normal((6, prototype_width(model))).astype(np.float32)
    )
    B = model.encode(data["X"][:20])
    assert model.tables(V, bias).metric == model.metric
    for metric in ("l2", "cosine", "dot"):
        score, index = kernels.topk_per_code(B, model.tables(V, bias, metric), 3)
        assert score.shape == index.shape == (20, 3)
        assert (np.diff(score, axis=1) <= 0).all()


def test_pqzsl_needs_classes(data):
    with pytest.raises(ConfigError, match="--classes"):
        small("pqzsl").begin(TrainingSetInfo(N=N, dx=DX))


def test_pqzsl_needs_images_of_every_class(fit, data):
    y = np.where(data["y"] == 3, 2, data["y"])
    with pytest.raises(
        InputError, match="at least one image of each seen class, found none of c03"
    ):
        fit(small("pqzsl"), data["X"], y=y, A=data["A"])


def test_pqzsl_says_when_the_features_are_singular(fit, data):
    X = data["X"].copy()
    X[:, 5] = 0
    with pytest.raises(ConfigError, match="ridge"):
        fit(small("pqzsl", ridge=0.0), X, y=data["y"], A=data["A"])


def test_pqzsl_recognises_classes_it_never_saw(fit):
    """The point of it all, on data where attributes explain the features."""
    rng = np.random.default_rng(5)
    E = rng.standard_normal((40, 10)).astype(np.float32)
    centres = E @ rng.standard_normal((10, 32))
    y = np.concatenate([np.arange(30), rng.integers(0, 30, 1500)])
    X = centres[y] + rng.standard_normal((len(y), 32))
    model = fit(small("pqzsl", M=6), X, y=y, A=E[:30])
    unseen = rng.integers(30, 40, 400)
    B = model.encode((centres[unseen] + rng.standard_normal((400, 32))).astype(np.float32))
    V, bias = model.prototypes(E[30:])
    _, index = kernels.topk_per_code(B, model.tables(V, bias), 1)
    assert np.mean(index[:, 0] + 30 == unseen) > 0.7


@pytest.mark.parametrize("name", ["eszsl", "pqzsl"])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_scores_of_every_class_spread_alike(trained, data, tmp_path, name, metric):
    """The root mean square of a class's scores over the training images is 1, for classes without
    images too; as published, scores are those of the plain prototypes, and codes are the same."""
    model = trained(name, metric=metric)
    V, _ = model.prototypes(data["E"])
    scores = model.embed(data["X"]).astype(np.float64) @ V.T
    np.testing.assert_allclose(np.sqrt((scores**2).mean(axis=0)), 1, rtol=1e-4)
    assert (model.class_metric, model.metric) == ("dot", metric)
    plain = trained(name, metric=metric, score_scale="none")
    assert plain.class_metric == metric
    W, _ = plain.prototypes(data["E"])
    np.testing.assert_allclose(V, W * (V[:, :1] / W[:, :1]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(plain.encode(data["X"]), model.encode(data["X"]))
    model.save(str(tmp_path / "m"))
    loaded = registry.load(str(tmp_path / "m"))
    np.testing.assert_array_equal(loaded.prototypes(data["E"])[0], V)


@pytest.mark.parametrize("name", ["eszsl", "pqzsl"])
def test_squared_distances_have_no_scale(trained, name):
    assert trained(name, metric="l2").class_metric == "l2"


@pytest.mark.parametrize("name", ["eszsl", "pqzsl"])
def test_a_ridge_is_a_share_of_the_rows(trained, data, name):
    """Rows that are there twice, or that are longer, give the same embedding."""
    ridge = {"eszsl": "gamma", "pqzsl": "ridge"}[name]
    one = trained(name)
    absolute = trained(name, **{ridge: 1e-3 * N})  # rows have unit length
    np.testing.assert_allclose(absolute.tensors["P"], one.tensors["P"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize(
    ("polish", "scale"), [(0, "class"), (1, "class"), (10, "class"), (10, "none")]
)
def test_pqzsl_over_the_axes_of_its_scores(trained, data, tmp_path, metric, polish, scale):
    """Other codes, the same exact scores; trained, saved and loaded as any model."""
    plain = trained("pqzsl", metric=metric, polish=polish, score_scale=scale)
    model = trained("pqzsl", metric=metric, polish=polish, axes="scores", score_scale=scale)
    X, E = data["X"], data["E"]
    V, W = plain.prototypes(E)[0], model.prototypes(E)[0]
    if metric == "cosine" and scale == "none":
        V = V / np.linalg.norm(V, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(X) @ W.T, plain.embed(X) @ V.T, rtol=1e-3, atol=1e-4)
    assert model.metric == model.class_metric == "dot"
    passes = [note["iteration"] for note in model.record["history"]]
    assert all(before < after for before, after in pairwise(passes))
    assert max(passes) < 6 + polish

    split = trained(
        "pqzsl", metric=metric, polish=polish, axes="scores", score_scale=scale,
        shards=(50, 100, 450),
    )  # fmt: skip
    np.testing.assert_array_equal(split.encode(X), model.encode(X))
    model.save(str(tmp_path / "m"))
    loaded = registry.load(str(tmp_path / "m"))
    assert loaded.fingerprint == model.fingerprint
    np.testing.assert_array_equal(loaded.prototypes(E)[0], W)
    np.testing.assert_array_equal(loaded.encode(X), model.encode(X))


def test_the_axes_of_scores_make_better_scores(fit):
    """Where bytes are few: the error of a score, from codes, of classes in training and new."""
    rng = np.random.default_rng(5)
    E = (rng.standard_normal((40, 10)) * np.geomspace(3, 0.1, 10)).astype(np.float32)
    centres = np.tanh(E @ rng.standard_normal((10, 32)))
    y = np.concatenate([np.arange(30), rng.integers(0, 30, 1500)])
    X = (centres[y] + 0.3 * rng.standard_normal((len(y), 32))).astype(np.float32)
    error = {}
    for axes in ("embedding", "scores"):
        model = fit(small("pqzsl", M=2, metric="dot", axes=axes), X, y=y, A=E[:30])
        V, _ = model.prototypes(E)
        exact = model.embed(X) @ V.T
        coded = model.decode(model.encode(X)) @ V.T
        error[axes] = float(np.mean((exact - coded) ** 2) / np.var(exact))
    assert error["scores"] < 0.8 * error["embedding"]


@every_method
def test_a_model_from_before_a_setting_existed(name, trained, data, tmp_path):
    """Its codes name its fingerprint, so that must not change with the version that loads it."""
    model = trained(name)
    model.save(str(tmp_path / "m"))
    now = ModelFiles.load(str(tmp_path / "m"))
    later = ("tolerance", "patience", "axes")
    settings = {k: v for k, v in now.content["settings"].items() if k not in later}
    before = replace(now, content={**now.content, "settings": settings})
    before.save(str(tmp_path / "old"))
    old = registry.load(str(tmp_path / "old"))
    assert old.fingerprint == before.fingerprint != model.fingerprint
    np.testing.assert_array_equal(old.encode(data["X"]), model.encode(data["X"]))
    assert old.save(str(tmp_path / "again")) == old.fingerprint


def test_the_history_is_no_part_of_the_model(trained):
    model = trained("pq")
    assert replace(model, record={}).fingerprint == model.fingerprint


def test_an_empty_codeword_takes_half_of_the_worst():
    """Two parts; in the second, codeword 2 is empty and codeword 0 has the largest error."""
    C = np.zeros((2, 3, 2), np.float32)
    count = np.array([[4.0, 3, 3], [6, 4, 0]])
    total = np.ones((2, 3, 2)) * count[:, :, None]
    total[1, 2] = 0
    error = np.array([[1.0, 1, 1], [24, 2, 0]])
    moved = codebooks.means(C, count, total, error, np.random.default_rng(0))
    np.testing.assert_array_equal(moved[0], 1)
    np.testing.assert_array_equal(moved[1, 1], 1)
    np.testing.assert_allclose((moved[1, 0] + moved[1, 2]) / 2, 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(moved[1, 0] - moved[1, 2]), 2.0, atol=1e-5)


def test_several_empty_codewords_at_once():
    C = np.zeros((1, 8, 2), np.float32)
    count = np.array([[10.0, 10, 0, 0, 0, 0, 0, 0]])
    total = np.zeros((1, 8, 2))
    error = np.array([[40.0, 10, 0, 0, 0, 0, 0, 0]])
    moved = codebooks.means(C, count, total, error, np.random.default_rng(0))
    assert len(np.unique(moved[0], axis=0)) == 8


def test_usage_entropy():
    assert codebooks.usage_entropy(np.full((2, 16), 3.0)) == pytest.approx(4.0)
    one = np.zeros((1, 16))
    one[0, 3] = 7
    assert codebooks.usage_entropy(one) == 0.0


def test_seeding_covers_separate_clusters():
    """k-means++ puts a codeword into each of K clusters that are far apart."""
    rng = np.random.default_rng(0)
    centres = rng.permutation(8)[:, None] * np.full((1, 4), 100.0)
    U = (centres[rng.integers(0, 8, 500)] + rng.standard_normal((500, 4))).astype(np.float32)
    C = codebooks.seed(U, 2, 8, np.random.default_rng(1))
    q = kernels.decode(kernels.encode(U, C), C)
    assert np.abs(q - U).max() < 10
