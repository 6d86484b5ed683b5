"""Zero-shot models on real features, by their verbs: short trainings that end in a few seconds.

The figures of full trainings are in ``test_zeroshot_figures.py``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from raypq.cli import main
from raypq.data import arrays
from raypq.data.classes import ClassTable
from raypq.methods import registry

SHORT = {
    "eszsl": {},
    "sae": {},
    "psr": {"epochs": 6, "hidden": 256},
    "clusterable": {"epochs": 4, "hidden": 128, "head_epochs": 10, "samples": 50, "K": 64},
    "dpq": {"epochs": 20, "hidden": 256, "M": 8},
}
# ZSL; chance is 0.037
LEAST = {"eszsl": 0.59, "sae": 0.55, "psr": 0.4, "clusterable": 0.35, "dpq": 0.45}
FAMILIES = ("Oriole", "Woodpecker")
LATER = 5  # unseen classes that come after training


@dataclass(frozen=True)
class Birds:
    """cub100 and the folder of the outputs."""

    data: Path
    out: Path

    @property
    def classes(self) -> str:
        return str(self.data / "classes.parquet")

    @property
    def test(self) -> list[str]:
        return [
            *("--features", str(self.data / "test_seen")),
            *("--features", str(self.data / "test_unseen")),
        ]

    def __call__(self, *words: str) -> dict[str, Any]:
        """Runs a command that must succeed; what it prints."""
        done = CliRunner().invoke(main, [*words])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    def fails(self, *words: str) -> str:
        """Runs a command that must fail; what it says."""
        done = CliRunner().invoke(main, [*words])
        assert done.exit_code in (1, 2), done.output
        assert "Traceback" not in done.output
        return done.stderr

    def table(self, name: str, keep: np.ndarray | None = None, **columns: Any) -> str:
        """Some rows of the class table, with other columns; its path."""
        table = pq.read_table(self.classes)
        for column, values in columns.items():
            table = table.set_column(table.column_names.index(column), column, values)
        path = self.out / name
        pq.write_table(table if keep is None else table.filter(pa.array(keep)), path)
        return str(path)

    def trained(self, method: str, *more: str, classes: str | None = None, to: str = "") -> str:
        """A model of short training; made once."""
        model = self.out / (to or method)
        if not (model / "model.json").exists():
            settings = [f"--set={key}={value}" for key, value in SHORT[method].items()]
            self(
                *("train", method, "--features", str(self.data / "train")),
                *("--classes", classes or self.classes, "--output", str(model)),
                *(*settings, *more, *ALONE),
            )
        return str(model)

    def encoded(self, model: str) -> str:
        """The codes of both test stores; made once."""
        codes = f"{model}-codes"
        if not Path(codes).exists():
            self("encode", "--model", model, *self.test, "--output", codes, *ALONE)
        return codes

    def evaluated(self, model: str, codes: str, classes: str, to: str) -> dict[str, Any]:
        """Classifies codes and evaluates."""
        output = str(self.out / to)
        given = ("--classes", classes, "--output", output)
        self("classify", "--model", model, "--codes", codes, *given, *ALONE)
        given = ("--predictions", output, "--classes", classes, "--json", "-")
        return self("evaluate", "classification", *given, *ALONE)


ALONE = ["--cluster", "none", "--workers", "1", "--quiet"]


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Birds:
    return Birds(data_root / "cub100", tmp_path_factory.mktemp("birds"))


def seen_flags(birds: Birds) -> np.ndarray:
    flags = ClassTable.open(birds.classes).seen
    assert flags is not None
    return flags


def without_later(birds: Birds) -> np.ndarray:
    """All classes but the last unseen ones."""
    keep = np.ones(100, bool)
    keep[np.flatnonzero(~seen_flags(birds))[-LATER:]] = False
    return keep


def content(folder: str) -> dict[str, str]:
    """sha256 of every file of a code store."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*.parquet"))
    }


@pytest.mark.parametrize("method", SHORT)
def test_unseen_birds_are_recognised_from_codes(birds: Birds, method: str) -> None:
    model = birds.trained(method)
    found = birds.evaluated(model, birds.encoded(model), birds.classes, f"{method}-predictions")
    assert found["zsl"] >= LEAST[method]
    assert SHORT[method].get("M", 64) == registry.load(model).M, "bytes an image"


def test_codes_of_classes_answer_unseen_ones(birds: Birds) -> None:
    """A quantizer that is trained with labels: calibrated where they compete, by id otherwise."""
    model = birds.trained("dpq")
    codes = birds.encoded(model)
    loaded = registry.load(model)
    assert loaded.record["calibration"] > 0
    assert loaded.tensors["net.temperature"] > 1
    found = birds.evaluated(model, codes, birds.classes, "dpq-all")
    assert found["calibrated"]["H"] > found["uncalibrated"]["H"] + 0.1
    # Training classes are known by their ids alone; others need an embedding.
    names = pq.read_table(birds.classes, columns=["class_id", "seen"])
    ids = birds.out / "ids.parquet"
    given = ("classify", "--model", model, "--features", str(birds.data / "test_seen"))
    pq.write_table(names.filter(pa.array(seen_flags(birds))), ids)
    birds(*given, "--classes", str(ids), "--output", str(birds.out / "dpq-by-id"), *ALONE)
    pq.write_table(names, ids)
    said = birds.fails(*given, "--classes", str(ids), "--output", str(birds.out / "no"), *ALONE)
    assert "classes among the 73 that it was trained on, or class embeddings of the others" in said
    other = ClassTable.open(birds.classes).embeddings[:, :300].copy()
    narrow = birds.table("narrow-dpq.parquet", embedding=arrays.fixed_list(other))
    said = birds.fails(*given, "--classes", narrow, "--output", str(birds.out / "no"), *ALONE)
    assert "class embeddings of width 312, found 300" in said


@pytest.mark.parametrize("method", ["psr", "clusterable", "dpq"])
def test_classes_are_added_without_touching_codes(birds: Birds, method: str) -> None:
    """Images of classes that came after training and encoding are recognised from old codes."""
    before = birds.table("before.parquet", without_later(birds))
    late = birds.table("late.parquet", ~without_later(birds))
    model = birds.trained(method, classes=before, to=f"{method}-early")
    codes = birds.encoded(model)
    files = content(codes)
    extended = str(birds.out / f"{method}-later")
    told = birds("add-classes", "--model", model, "--classes", late, "--output", extended)
    assert told["added"] == LATER
    old, new = registry.load(model), registry.load(extended)
    assert new.fingerprint == old.fingerprint == told["fingerprint"]
    table = ClassTable.open(late)
    assert new.layer is not None
    assert set(table.ids.to_pylist()) <= set(new.layer.ids)
    birds.evaluated(extended, codes, birds.classes, f"{method}-later-predictions")
    assert content(codes) == files
    predictions = [
        pq.read_table(path)
        for path in (birds.out / f"{method}-later-predictions").rglob("data/*.parquet")
    ]
    late_ids = set(table.ids.to_pylist())
    right = total = 0
    for part in predictions:
        for label, guess in zip(
            part["label"].to_pylist(), part["unseen_class_id"].to_pylist(), strict=True
        ):
            total += label in late_ids
            right += label in late_ids and guess == label
    assert total > 200
    assert right / total > 0.35, "of 27 unseen classes"


def test_a_class_takes_its_new_embedding(birds: Birds) -> None:
    model = birds.trained("eszsl")
    table = ClassTable.open(birds.classes)
    swapped = table.embeddings[::-1].copy()
    other = birds.table("swapped.parquet", embedding=arrays.fixed_list(swapped))
    first, second = str(birds.out / "first"), str(birds.out / "second")
    assert birds("add-classes", "--model", model, "--classes", birds.classes, "--output", first)[
        "added"
    ] == len(table)
    told = birds("add-classes", "--model", first, "--classes", other, "--output", second)
    assert (told["added"], told["replaced"], told["classes"]) == (0, 100, 100)
    ids = table.ids.to_pylist()
    V, _ = registry.load(second).prototypes_of(ids, swapped)
    W, _ = registry.load(first).prototypes_of(ids[::-1], table.embeddings[::-1])
    np.testing.assert_array_equal(V, W)


def test_adding_classes_refuses_what_does_not_fit(birds: Birds) -> None:
    model = birds.trained("eszsl")
    narrow = ClassTable.open(birds.classes).embeddings[:, :300]
    table = birds.table("narrow.parquet", embedding=arrays.fixed_list(narrow.copy()))
    out = str(birds.out / "never")
    said = birds.fails("add-classes", "--model", model, "--classes", table, "--output", out)
    assert "class embeddings of width 312, as in training, found 300" in said
    said = birds.fails("classify", "--model", model, "--codes", birds.encoded(model), "--classes",
                       table, "--output", out, *ALONE)  # fmt: skip
    assert "class embeddings of width 312, found 300" in said
    said = birds.fails("add-classes", "--model", model, "--classes", birds.classes,
                       "--output", model)  # fmt: skip
    assert "--overwrite" in said


def test_images_without_class_embeddings(birds: Birds) -> None:
    """Section 4.5 of PSR: two species without attributes, told by what they are like."""
    model = birds.trained("psr")
    codes = birds.encoded(model)
    table = ClassTable.open(birds.classes)
    called = dict(zip(table.ids.to_pylist(), table.names, strict=True))
    unseen = [key for key, seen in zip(called, seen_flags(birds), strict=True) if not seen]
    unknown = [key for key in unseen if called[key].endswith(FAMILIES)][:2]
    assert len(unknown) == 2, "unseen species of families that have others"
    vectors = [
        None if name in unknown else row.tolist()
        for name, row in zip(table.ids.to_pylist(), table.embeddings, strict=True)
    ]
    partly = birds.table("partly.parquet", embedding=pa.array(vectors, pa.list_(pa.float32())))
    out = birds.out / "semantics"
    done = CliRunner().invoke(main, [
        "infer-semantics", "--model", model, "--codes", codes, "--classes", partly, "--by", "label",
        *(word for name in unknown for word in ("--labels", name)),
        "--top-k", "3", "--output", str(out), *ALONE,
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"{len(unknown)} classes have no embedding" in done.stderr
    for name in unknown:
        assert f"\n{name} (" in "\n" + done.stderr, "a readable line for each"
    found = {row["key"]: row for row in pq.read_table(out / "groups.parquet").to_pylist()}
    assert set(found) == set(unknown)
    loaded = registry.load(model)
    test = [pq.read_table(path) for path in (birds.data / "test_unseen").glob("*.parquet")]
    X = np.concatenate([np.stack(part["feature"].to_numpy()) for part in test]).astype(np.float32)
    y = np.concatenate([part["label"].to_pylist() for part in test])
    known = np.array([name not in unknown for name in table.ids.to_pylist()])
    V, _ = loaded.prototypes(table.embeddings[known])
    ids = np.array(table.ids.to_pylist())[known]
    for name, row in found.items():
        assert row["images"] == (y == name).sum()
        cosines = loaded.cosines(loaded.decode(loaded.encode(X[y == name])), V).mean(axis=0)
        best = np.argsort(-cosines)[:3]
        np.testing.assert_allclose(row["most_cosine"], cosines[best], atol=1e-5)
        assert row["most_similar"] == ids[best].tolist()
        assert row["least_cosine"][0] == pytest.approx(cosines.min(), abs=1e-5)
        family = called[name].rsplit("_", 1)[-1]
        assert any(called[other].endswith(family) for other in row["most_similar"]), row
        assert called[row["most_similar"][0]] in done.stderr, "names, not class_ids"
    # Image by image: one line each, one file for each code file.
    done = CliRunner().invoke(main, [
        "infer-semantics", "--model", model, "--codes", codes, "--classes", partly,
        "--labels", unknown[0], "--output", str(birds.out / "images"), *ALONE,
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = [pq.read_table(path) for path in (birds.out / "images").glob("*.parquet")]
    assert sum(len(part) for part in lines) == (y == unknown[0]).sum()


def test_inference_refuses_what_is_not_there(birds: Birds) -> None:
    model = birds.trained("psr")
    given = ("infer-semantics", "--model", model, "--codes", birds.encoded(model), "--classes",
             birds.classes, "--output", str(birds.out / "none"))  # fmt: skip
    assert "an image labelled Dodo, found none" in birds.fails(*given, "--labels", "Dodo", *ALONE)
    other = birds.trained("eszsl")
    given = tuple(other if word == model else word for word in given)
    assert "codes made by model" in birds.fails(*given, *ALONE)


def test_classes_without_embedding_cannot_be_trained_on(birds: Birds) -> None:
    table = ClassTable.open(birds.classes)
    name = table.ids.to_pylist()[int(np.flatnonzero(seen_flags(birds))[0])]
    vectors = [
        None if key == name else row.tolist()
        for key, row in zip(table.ids.to_pylist(), table.embeddings, strict=True)
    ]
    partly = birds.table("one-less.parquet", embedding=pa.array(vectors, pa.list_(pa.float32())))
    said = birds.fails("train", "eszsl", "--features", str(birds.data / "train"), "--classes",
                       partly, "--output", str(birds.out / "less"), *ALONE)  # fmt: skip
    assert f"found class without embedding {name!r}" in said


def test_an_empty_unseen_set(birds: Birds) -> None:
    """Nothing to choose among; a table of seen classes alone is fine otherwise."""
    seen = birds.table("seen.parquet", seen_flags(birds))
    model = birds.trained("clusterable", classes=seen, to="clusterable-seen")
    codes = birds.encoded(birds.trained("clusterable"))
    given = ("classify", "--model", birds.trained("clusterable"), "--codes", codes, "--classes",
             seen, "--output", str(birds.out / "empty"))  # fmt: skip
    said = birds.fails(*given, "--candidates", "unseen", *ALONE)
    assert "at least one class in 'unseen', found none" in said
    layer = registry.load(model).layer
    assert layer is not None
    assert len(layer.ids) == seen_flags(birds).sum()


@pytest.mark.parametrize("method", SHORT)
def test_constant_attributes(birds: Birds, method: str) -> None:
    table = birds.table("alike.parquet", embedding=arrays.fixed_list(np.ones((100, 5), np.float32)))
    said = birds.fails("train", method, "--features", str(birds.data / "train"), "--classes", table,
                       "--set", "M=2", "--output", str(birds.out / "alike"), *ALONE)  # fmt: skip
    assert "class embeddings: expected classes that differ, found all of them alike" in said


def test_a_tau_without_dissimilar_classes(birds: Birds) -> None:
    said = birds.fails("train", "psr", "--features", str(birds.data / "train"), "--classes",
                       birds.classes, "--set", "tau=-0.9", "--output", str(birds.out / "tau"),
                       *ALONE)  # fmt: skip
    assert "tau: at -0.9 all training classes are similar (their cosines go from -0." in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("rate=1e9",), "diverged in phase 'cvae', epoch 0, step"),
        (("kl=1e6", "rate=0.01"), "step 52 of it: the KL term is 0.0"),
    ],
)
def test_a_generator_that_fails_stops(birds: Birds, settings: tuple[str, ...], says: str) -> None:
    said = birds.fails("train", "clusterable", "--features", str(birds.data / "train"), "--classes",
                       birds.classes, "--set", "hidden=16", "--set", "epochs=4", "--output",
                       str(birds.out / "broken"), *(f"--set={one}" for one in settings),
                       *ALONE)  # fmt: skip
    assert says in said


def test_few_examples(birds: Birds) -> None:
    """More examples help, fewer classes are easier, and codes cost little."""
    model = birds.trained("psr")
    given = ("--features", str(birds.data / "test_unseen"), "--classes", birds.classes)
    many = ("--episodes", "100", "--json", "-")
    raw = birds("evaluate", "fewshot", *given, *many)
    assert raw["space"] == "raw"
    assert 0.6 < raw["1-shot"]["accuracy"] < raw["5-shot"]["accuracy"] < 1
    assert 0 < raw["5-shot"]["interval"] < 0.05
    found = {}
    for space in ("mapped", "codes"):
        found[space] = birds("evaluate", "fewshot", "--model", model, "--space", space, *given,
                             *many)["5-shot"]["accuracy"]  # fmt: skip
    assert abs(found["mapped"] - found["codes"]) < 0.05
    two = birds("evaluate", "fewshot", *given, *many, "--ways", "2", "--shots", "1")
    assert two["1-shot"]["accuracy"] > raw["1-shot"]["accuracy"]
    said = birds.fails("evaluate", "fewshot", *given, "--ways", "40")
    assert "expected 40 classes with more than 1 images, found 27" in said
    assert "pass --model" in birds.fails("evaluate", "fewshot", *given, "--space", "codes")


def test_clusterability(birds: Birds) -> None:
    model = birds.trained("clusterable")
    given = ("--features", str(birds.data / "test_unseen"), "--restarts", "2", "--json", "-")
    raw = birds("evaluate", "clusterability", *given)
    assert raw["classes"] == 27
    assert raw["images"] == 1610
    assert 0.3 < raw["nmi"] < 0.9
    mapped = birds("evaluate", "clusterability", "--model", model, "--space", "codes", *given)
    assert 0.3 < mapped["nmi"] < 0.9
    assert 0 < raw["mi"] < np.log(27)
