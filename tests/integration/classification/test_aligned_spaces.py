"""Classes in the space of the features (CLIP): codes for their scores, several prototypes a class,
probabilities and thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypq
from raypq import api
from raypq.config import (
    AddClassesJob,
    ClassifyJob,
    ClusterSettings,
    EncodeJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.data.network_info import BackboneInfo, EncoderInfo, Logits
from raypq.data.store import snapshot
from raypq.errors import ConfigError, InputError, ModelError, RaypqError
from raypq.methods import registry

ALONE = ClusterSettings(cluster="none", workers=1)
N, T, DX = 900, 40, 32
SCALE = 20.0


def unit(V: np.ndarray) -> np.ndarray:
    return V / np.linalg.norm(V, axis=-1, keepdims=True)


class Space:
    """A cone as CLIP's: texts around one mean, images around another, classes close together."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(7)
        spectrum = 0.8 ** np.arange(DX)
        of_texts, of_images = unit(rng.standard_normal((2, DX)))
        meaning = unit(rng.standard_normal((T, DX)) * spectrum)
        self.V = unit(of_texts + 0.5 * meaning).astype(np.float32)
        self.y = np.arange(N) % T
        nuisance = unit(rng.standard_normal((N, DX)) * spectrum[::-1])
        self.X = unit(of_images + 0.5 * meaning[self.y] + 0.7 * nuisance).astype(np.float32)
        ids = [f"c{t:02d}" for t in range(T)]
        pq.write_table(
            pa.table({"id": range(N), "feature": list(self.X), "label": [ids[t] for t in self.y]}),
            root / "f.parquet",
        )
        self.ids = ids
        self.write_classes()

    def write_classes(self, *, metadata: Any = None, **columns: Any) -> None:
        column = arrays.fixed_list(self.V)
        table = pa.table({"class_id": self.ids, **columns})
        field = pa.field("embedding", column.type, metadata=metadata)
        pq.write_table(table.append_column(field, column), self.root / "classes.parquet")

    def train(self, output: str = "model", **more: Any) -> Any:
        settings = {"M": 4, "K": 16, "iterations": 5, "polish": 3, **more.pop("settings", {})}
        job = TrainJob(
            method="opq", features=str(self.root / "f.parquet"), settings=settings,
            output=str(self.root / output), where=ALONE, overwrite=True,
            **{"classes": str(self.root / "classes.parquet"), **more},
        )  # fmt: skip
        raypq.train(job)
        return registry.load(job.output)

    def encode(self, model: str = "model") -> None:
        raypq.encode(
            EncodeJob(model=str(self.root / model), features=str(self.root / "f.parquet"),
                      output=str(self.root / f"codes-{model}"), where=ALONE)
        )  # fmt: skip

    def classify(
        self, model: str = "model", *, features: bool = False, head: str | None = None, **more: Any
    ) -> pa.Table:
        source: dict[str, Any] = {"codes": str(self.root / f"codes-{model}"), "model": head}
        if features:
            source = {"features": str(self.root / "f.parquet"), "model": str(self.root / model)}
        output = str(self.root / "predictions")
        version = raypq.classify(
            ClassifyJob(classes=str(self.root / "classes.parquet"), output=output, where=ALONE,
                        **source, **more)
        )  # fmt: skip
        paths = [f"{output}/{receipt.path}" for receipt in version.shards]
        return pa.concat_tables([pq.read_table(path) for path in paths]).sort_by("id")

    def scores(self, model: Any, *, features: bool = False) -> np.ndarray:
        """Scores [N, T] in float64."""
        V, bias = model.prototypes(self.V)
        u = model.embed(self.X) if features else model.decode(model.encode(self.X))
        return u.astype(np.float64) @ V.astype(np.float64).T + bias


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return Space(tmp_path)


def test_uncompressed_scores_are_the_cosines(space):
    model = space.train(settings={"M": 8, "K": 16})
    cosines = space.X.astype(np.float64) @ space.V.T
    np.testing.assert_allclose(space.scores(model, features=True), cosines, atol=3e-6)
    assert model.metric == "dot"
    assert model.settings.normalise == "unit"
    assert model.da is None


def test_the_mean_score_of_each_class_is_kept_with_fewer_axes(space):
    model = space.train(settings={"M": 4, "K": 16, "D": 8})
    cosines = space.X.astype(np.float64) @ space.V.T
    found = space.scores(model, features=True)
    np.testing.assert_allclose(found.mean(axis=0), cosines.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"D": 16}, {"M": 2}])
def test_codes_are_better_than_those_of_features_alone(space, settings):
    space.train(settings=settings)
    space.train("plain", classes=None,
                settings={**settings, "metric": "dot", "normalise": "unit"})  # fmt: skip
    cosines = space.X.astype(np.float64) @ space.V.T
    error, right, absolute = {}, {}, {}
    for name in ("model", "plain"):
        model = registry.load(str(space.root / name))
        off = space.scores(model) - cosines
        error[name] = np.square(off - off.mean(axis=1, keepdims=True)).mean()
        absolute[name] = np.square(off).mean()
        right[name] = ((off + cosines).argmax(axis=1) == space.y).mean()
    assert absolute["model"] < absolute["plain"], "thresholds and sigmoids need them"
    assert error["model"] < 0.8 * error["plain"], (error, right)
    assert right["model"] > right["plain"], (error, right)


def test_labels_are_not_needed(space):
    table = pq.read_table(space.root / "f.parquet").drop(["label"])
    pq.write_table(table, space.root / "f.parquet")
    assert space.train().D == DX


def test_predictions_are_the_best_scores(space):
    model = space.train()
    space.encode()
    found = space.classify(top_k=5)
    order = np.argsort(-space.scores(model), axis=1, kind="stable")[:, :5]
    assert found["class_id"].to_pylist() == [[space.ids[t] for t in row] for row in order]


def several(space: Space, most: int = 3) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Prototypes of each class, the embedding among them."""
    rng = np.random.default_rng(1)
    lists = []
    for v in space.V:
        extra = unit(v + 0.1 * rng.standard_normal((int(rng.integers(0, most)), DX)))
        lists.append([v, *extra.astype(np.float32)])
    return lists, np.repeat(np.arange(T), [len(vectors) for vectors in lists])


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_a_class_has_the_score_of_its_best_prototype(space, features, seen):
    model = space.train()
    space.encode()
    lists, owner = several(space)
    bias = np.linspace(0, 0.01, T)
    columns = {"prototypes": lists, "bias": bias}
    if seen:
        columns["seen"] = [t % 3 == 0 for t in range(T)]
    space.write_classes(**columns)
    found = space.classify(features=features, top_k=6)
    V, offset = model.prototypes(np.concatenate(lists))
    u = model.embed(space.X) if features else model.decode(model.encode(space.X))
    each = u.astype(np.float64) @ V.astype(np.float64).T + offset + bias[owner]
    best = np.stack([each[:, owner == t].max(axis=1) for t in range(T)], axis=1)
    order = np.argsort(-best.astype(np.float32), axis=1, kind="stable")[:, :6]
    assert found["class_id"].to_pylist() == [[space.ids[t] for t in row] for row in order]
    np.testing.assert_allclose(
        np.array(found["score"].to_pylist()), np.take_along_axis(best, order, 1), atol=1e-6
    )


def expected_probabilities(score: np.ndarray, kind: str, offset: float = 0.0) -> np.ndarray:
    logits = SCALE * score
    if kind == "sigmoid":
        return 1 / (1 + np.exp(-logits - offset))
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("prototypes", [False, True])
@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize(("kind", "offset"), [("softmax", 0.0), ("sigmoid", -3.0)])
def test_probabilities_and_accepted_classes(space, features, prototypes, seen, kind, offset):
    """All classes that reach the threshold are listed, however many: also beyond the top k."""
    model = space.train()
    space.encode()
    lists, owner = several(space) if prototypes else ([[v] for v in space.V], np.arange(T))
    columns: dict[str, Any] = {"prototypes": lists} if prototypes else {}
    if seen:
        columns["seen"] = [t % 3 == 0 for t in range(T)]
    space.write_classes(**columns)
    V, bias = model.prototypes(np.concatenate(lists))
    u = model.embed(space.X) if features else model.decode(model.encode(space.X))
    each = u.astype(np.float64) @ V.astype(np.float64).T + bias
    score = np.stack([each[:, owner == t].max(axis=1) for t in range(T)], axis=1)
    p = expected_probabilities(score, kind, offset)
    threshold = float(np.quantile(p, 0.92))
    found = space.classify(
        features=features, top_k=2, logit_scale=SCALE, probability=kind, threshold=threshold,
        logit_bias=offset,
    )  # fmt: skip
    order = np.argsort(-score.astype(np.float32), axis=1, kind="stable")
    top = np.take_along_axis(p, order[:, :2], 1)
    np.testing.assert_allclose(np.array(found["probability"].to_pylist()), top, rtol=2e-4)
    lengths = []
    for row, (names, values) in enumerate(
        zip(found["accepted"].to_pylist(), found["accepted_value"].to_pylist(), strict=True)
    ):
        clear = [t for t in order[row] if p[row, t] >= threshold * 1.001]
        close = [t for t in order[row] if p[row, t] >= threshold * 0.999]
        assert [space.ids[t] for t in clear] == names[: len(clear)]
        assert {*names} <= {space.ids[t] for t in close}
        np.testing.assert_allclose(values, p[row, order[row, : len(names)]], rtol=2e-4)
        lengths.append(len(names))
    assert max(lengths) > 2, "more than the top k"
    assert len({*lengths}) > 2


def test_a_threshold_of_scores(space):
    model = space.train()
    space.encode()
    score = space.scores(model)
    least = float(np.quantile(score, 0.9))
    found = space.classify(top_k=1, threshold=least)
    assert "probability" not in found.column_names
    for row, names in enumerate(found["accepted"].to_pylist()):
        clear = {space.ids[t] for t in np.flatnonzero(score[row] > least + 1e-6)}
        assert (
            clear <= {*names} <= {space.ids[t] for t in np.flatnonzero(score[row] > least - 1e-6)}
        )


def test_no_class_is_accepted_where_none_reaches_the_threshold(space):
    space.train()
    space.encode()
    found = space.classify(top_k=3, threshold=9.0)
    assert found["accepted"].to_pylist() == [[]] * N


def test_the_scale_of_the_encoder(space):
    space.write_classes(metadata=Logits(scale=SCALE, bias=-3.0).note)
    space.train()
    space.encode()
    own = space.classify(logit_scale="encoder", probability="sigmoid")
    named = space.classify(logit_scale=SCALE, probability="sigmoid", logit_bias=-3.0)
    assert own["probability"] == named["probability"]
    space.write_classes()
    with pytest.raises(ConfigError, match="does not say the logit scale"):
        space.classify(logit_scale="encoder")


def test_another_decision_is_another_version(space):
    """And a job without one keeps the work of earlier versions."""
    space.train()
    space.encode()
    store = str(space.root / "predictions")
    versions = []
    for more in ({}, {"threshold": 0.1}, {"threshold": 0.2}, {"threshold": 0.2}):
        space.classify(**more)
        versions.append(snapshot.read(store, None).version)
    assert versions[1:] == [versions[0] + 1, versions[0] + 2, versions[0] + 2]


def test_a_large_scale_gives_all_to_the_best_class(space):
    space.train()
    space.encode()
    found = space.classify(top_k=2, logit_scale=1e30, threshold=0.5)
    assert {p[0] for p in found["probability"].to_pylist()} == {1.0}
    assert {len(names) for names in found["accepted"].to_pylist()} == {1}


def test_probabilities_need_cosines(space):
    space.train("plain", classes=None, settings={"normalise": "unit"})
    space.encode("plain")
    with pytest.raises(ConfigError, match=r"scores by l2.*--metric cosine"):
        space.classify("plain", logit_scale=10.0)
    space.classify("plain", logit_scale=10.0, metric="cosine")
    job = TrainJob(
        method="eszsl", features=str(space.root / "f.parquet"), output=str(space.root / "model"),
        classes=str(space.root / "classes.parquet"), where=ALONE, settings={"M": 4, "K": 16},
    )  # fmt: skip
    raypq.train(job)
    space.encode()
    space.write_classes(metadata=Logits(scale=SCALE).note)
    with pytest.raises(ConfigError, match="projection of classes"):
        space.classify(logit_scale="encoder")


def test_a_threshold_of_scores_of_several_models_is_warned_of(space, caplog):
    table = pq.read_table(space.root / "f.parquet")
    for number, model in enumerate(("model", "plain")):
        more = {} if model == "model" else {"classes": None, "settings": {"metric": "dot"}}
        space.train(model, **more)
        pq.write_table(table.slice(number * 450, 450), space.root / f"part{number}.parquet")
        raypq.encode(
            EncodeJob(model=str(space.root / model), output=str(space.root / "codes-both"),
                      features=str(space.root / f"part{number}.parquet"), append=True,
                      where=ALONE)
        )  # fmt: skip
    space.classify("both", threshold=0.1)
    assert "2 models, whose scores have no common scale" in caplog.text


def test_one_class_is_no_base_for_codes(space):
    table = pq.read_table(space.root / "classes.parquet").slice(0, 1)
    pq.write_table(table, space.root / "classes.parquet")
    with pytest.raises(ConfigError, match="at least 2 classes"):
        space.train()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"normalise": "zscore"}}, "statistics of images"),
    ({"settings": {"metric": "cosine"}}, "metric: dot"),
    ({"settings": {"M": 5}}, "multiple of"),
]


@pytest.mark.parametrize(("more", "text"), BAD)
def test_settings_that_do_not_fit_are_refused(space, more, text):
    settings = {"method": "opq", "settings": {"M": 4, "K": 16}, **more}
    job = TrainJob(
        features=str(space.root / "f.parquet"), output=str(space.root / "other"),
        classes=str(space.root / "classes.parquet"), where=ALONE, **settings,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=text):
        raypq.train(job)


def test_classes_of_another_space_are_not_used(space, caplog):
    """With a warning; as before there were codes for classes."""
    plain = space.train(classes=None)
    space.V = space.V[:, :8]
    space.write_classes()
    assert space.train().fingerprint == plain.fingerprint
    assert "of width 32, found of width 8" in caplog.text
    raypq.train(
        TrainJob(method="pq", features=str(space.root / "f.parquet"), where=ALONE,
                 classes=str(space.root / "classes.parquet"), output=str(space.root / "pq"),
                 settings={"M": 4, "K": 16})
    )  # fmt: skip
    assert "pq uses no class table" in caplog.text


def encoder(weights: str) -> dict[bytes, bytes]:
    return EncoderInfo(name="text", weights=weights, templates=("{}",), pooling="mean").note


def with_backbone(space: Space) -> None:
    info = BackboneInfo(
        name="images", weights="w", size=8, resize=8, interpolation="bicubic",
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    )  # fmt: skip
    table = pq.read_table(space.root / "f.parquet")
    index = table.schema.get_field_index("feature")
    field = table.schema.field(index).with_metadata(info.note)
    pq.write_table(table.set_column(index, field, table.column(index)), space.root / "f.parquet")


def test_texts_must_be_of_the_network_of_the_features(space):
    with_backbone(space)
    space.write_classes(metadata=encoder("other"))
    with pytest.raises(ModelError, match="network of the features, images"):
        space.train()
    space.write_classes(metadata=encoder("w"))
    space.train()


def test_texts_are_not_scaled_by_statistics_of_images(space):
    space.train(classes=None, settings={"normalise": "zscore"})
    space.encode()
    space.classify()
    space.write_classes(metadata=encoder("w"))
    with pytest.raises(ModelError, match=r"normalise: zscore.*train with normalise=unit"):
        space.classify()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"probability": "sigmoid"}, "expected a logit_scale too"),
        ({"logit_scale": 2.0, "logit_bias": 1.0}, "softmax ignores it"),
        ({"logit_scale": "encoder", "probability": "sigmoid", "logit_bias": 1.0}, "has its own"),
        ({"logit_scale": 0.0}, "greater than 0"),
    ],
)
def test_decisions_that_contradict_themselves_are_refused(space, more, text):
    with pytest.raises(ConfigError, match=text):
        space.classify(**more)


@pytest.mark.parametrize(
    ("lists", "text"),
    [
        ([[] if t == 3 else [[1.0] * DX] for t in range(T)], "'c03'.*at least one vector"),
        ([[[1.0] * (5 if t == 3 else DX)] * 2 for t in range(T)], "'c03'.*32 values.*one of 5"),
        ([[[1.0] * DX, None] for _ in range(T)], "'c00'.*found a null"),
        ([None if t == 3 else [[1.0] * DX] for t in range(T)], "1 nulls"),
        ([1.0] * T, "a list of vectors for each class"),
        ([[[np.nan] * DX] for _ in range(T)], "c00"),
    ],
)
def test_prototypes_that_cannot_be_used_are_named(space, lists, text):
    space.train()
    space.encode()
    space.write_classes(prototypes=lists)
    with pytest.raises(InputError, match=text):
        space.classify()


def test_added_classes_have_one_embedding(space):
    job = TrainJob(
        method="eszsl", features=str(space.root / "f.parquet"), output=str(space.root / "model"),
        classes=str(space.root / "classes.parquet"), where=ALONE, settings={"M": 4, "K": 16},
    )  # fmt: skip
    raypq.train(job)
    space.write_classes(prototypes=[[v] for v in space.V])
    with pytest.raises(InputError, match="classify takes this table directly"):
        api.add_classes(
            AddClassesJob(model=str(space.root / "model"), output=str(space.root / "more"),
                          classes=str(space.root / "classes.parquet"))
        )  # fmt: skip


def test_methods_with_joint_prototypes_need_one_embedding(space):
    job = TrainJob(
        method="clusterable", features=str(space.root / "f.parquet"),
        output=str(space.root / "model"),
        classes=str(space.root / "classes.parquet"), where=ALONE,
        settings={"M": 4, "K": 16, "epochs": 1, "batch": 64, "hidden": 32},
    )  # fmt: skip
    raypq.train(job)
    space.encode()
    space.classify()
    assert registry.load(job.output).joint_classes
    space.write_classes(prototypes=[[v] for v in space.V])
    with pytest.raises(RaypqError, match="prototypes of all classes together"):
        space.classify()


def test_a_head_knows_its_classes_by_name(space):
    """Several prototypes in the class table change nothing for a head."""
    space.train()
    space.encode()
    raypq.train(
        TrainJob(method="linear", codes=str(space.root / "codes-model"), where=ALONE,
                 classes=str(space.root / "classes.parquet"), output=str(space.root / "head"))
    )  # fmt: skip
    more: dict[str, Any] = {"head": str(space.root / "head"), "top_k": 3}
    plain = space.classify(**more)
    space.write_classes(prototypes=[[v, -v] for v in space.V])
    assert space.classify(**more).equals(plain)
