"""A linear head in the place of class embeddings: classify, reindex, and the model store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import AddClassesJob, InferSemanticsJob, ReindexJob, TrainJob
from raypq.data.codes import CodeFile
from raypq.data.store import snapshot
from raypq.errors import ConfigError, ModelError
from raypq.methods import registry
from raypq.stages.stores import model_store


def learn(home: Any, to: str = "head", **more: Any) -> str:
    """A head of all 20 classes over the codes of the model ``old``."""
    table = pq.read_table(home("classes.parquet"))
    pq.write_table(table.select(["class_id", "name"]), home("plain.parquet"))
    values = {"codes": home("codes"), "classes": home("plain.parquet"), "output": home(to)}
    api.train(TrainJob(method="linear", where=home.where, **values | more))
    return home(to)


def best_of_head(home: Any, head: str) -> dict[str, str]:
    """The best class of every image, by float64 scores of decoded codes."""
    model = registry.load(head)
    assert model.layer is not None
    found = {}
    for receipt in snapshot.read(home("codes")).shards:
        for batch in CodeFile.open(f"{home('codes')}/{receipt.path}").batches(10**6):
            q = model.decode(batch.B).astype(np.float64)
            scores = q @ model.layer.V.T + model.layer.bias
            names = np.array(model.layer.ids)[scores.argmax(axis=1)]
            found |= dict(zip(batch.ids.to_pylist(), names.tolist(), strict=True))
    return found


def predicted(home: Any, store: str = "predictions") -> dict[str, str]:
    version = snapshot.read(home(store))
    tables = [pq.read_table(f"{home(store)}/{item.path}") for item in version.shards]
    return {
        name: classes[0]
        for table in tables
        for name, classes in zip(
            table["id"].to_pylist(), table["class_id"].to_pylist(), strict=True
        )
    }


def night(home: Any, model: str) -> dict[str, Any]:
    return api.reindex(
        ReindexJob.parse(
            {
                "model": home(model), "features": [home("features")], "codes": home("codes"),
                "classify": {"classes": home("classes.parquet"), "output": home("predictions")},
                "where": home.where, "lease_seconds": 2,
            }
        )
    )  # fmt: skip


def poison(home: Any) -> None:
    """Feature files of the same size and time, which nobody can read."""
    for path in Path(home("features")).iterdir():
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_store_is_relabelled_from_its_codes_alone(home: Any) -> None:
    night(home, "old")
    plain = predicted(home)
    head = learn(home)
    poison(home)
    summary = night(home, "head")
    assert not summary["codes"]["new"]
    assert summary["predictions"][0]["new"]
    expected = best_of_head(home, head)
    assert predicted(home) == expected
    assert sum(expected[name] != plain[name] for name in plain) > 20
    assert night(home, "head")["nothing_to_do"]
    # Another head is another version; the same one again is not.
    learn(home, overwrite=True, settings={"penalty": 0.5})
    assert night(home, "head")["predictions"][0]["version"] == 3
    assert predicted(home) == best_of_head(home, head)


def test_the_model_that_a_night_names_counts(home: Any) -> None:
    """The store keeps the head, for classify without --model; the plain model scores as before."""
    night(home, "old")
    plain = predicted(home)
    learn(home)
    night(home, "head")
    assert night(home, "old")["predictions"][0]["new"]
    assert predicted(home) == plain
    fingerprint = registry.load(home("old")).fingerprint
    assert registry.load(model_store.folder_of(home("codes"), fingerprint)).has_head
    home.classify("by-store")
    assert predicted(home, "by-store") == best_of_head(home, home("head"))
    home.classify("by-name", model=home("old"))
    assert predicted(home, "by-name") == plain


def test_a_store_carries_the_head_that_encodes_it(home: Any) -> None:
    home.encode("old")
    head = learn(home)
    home.encode("head", "again")
    home.classify("of-again", codes=home("again"))
    assert predicted(home, "of-again") == best_of_head(home, head)
    record = registry.load(
        model_store.folder_of(home("again"), registry.load(head).fingerprint)
    ).record
    assert record["head"]["images"] == 600


def test_added_classes_take_the_place_of_a_stored_head(home: Any) -> None:
    home.encode("old")
    learn(home)
    home.encode("head")
    api.add_classes(AddClassesJob(model=home("old"), classes=home("classes.parquet"),
                                  output=home("added")))  # fmt: skip
    added = registry.load(home("added"))
    model_store.save(home("codes"), added)
    stored = registry.load(model_store.folder_of(home("codes"), added.fingerprint))
    assert stored.layer is not None
    assert not stored.has_head
    assert "head" not in stored.record


def test_features_are_scored_without_compression(home: Any) -> None:
    home.encode("old")
    head = learn(home)
    home.classify("exact", codes=None, features=[home("features")], model=head)
    codes = best_of_head(home, head)
    same = [codes[name] == best for name, best in predicted(home, "exact").items()]
    assert np.mean(same) > 0.3, "far above chance: codes of 2.5 bytes are coarse"


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_other_metrics_are_refused(metric: str, home: Any) -> None:
    home.encode("old")
    head = learn(home)
    with pytest.raises(ConfigError, match=rf"metric: .*has a linear head.*, found '{metric}'"):
        home.classify(model=head, metric=metric)
    home.classify(model=head, metric="dot")
    assert predicted(home) == best_of_head(home, head)


def test_a_class_that_the_head_lacks_is_named(home: Any) -> None:
    home.encode("old")
    table = pq.read_table(home("classes.parquet"))
    seen = table.filter(table["seen"])["class_id"].to_pylist()
    known = registry.load(home("old"))
    rng = np.random.default_rng(0)
    V = rng.standard_normal((len(seen), known.D)).astype(np.float32)
    known.with_head(seen, V, np.zeros(len(seen))).save(home("few"))
    with pytest.raises(ModelError) as caught:
        home.classify(model=home("few"))
    unseen = next(name for name in table["class_id"].to_pylist() if name not in seen)
    assert str(caught.value) == (
        f"{home('classes.parquet')}, for a head of the pqzsl model: expected classes among the "
        f"{len(seen)} that it was trained on, "
        f"found {unseen!r} ({20 - len(seen)} such class(es)); restrict the candidates "
        "(--candidates, candidates), or train a head with these classes (raypq train linear)"
    )
    home.classify(model=home("few"), candidates="seen")
    assert set(predicted(home).values()) <= set(seen)


def test_commands_of_class_embeddings_refuse_a_head(home: Any) -> None:
    home.encode("old")
    head = learn(home)
    with pytest.raises(ModelError, match=f"{re.escape(head)}: expected a model without a linear"):
        api.add_classes(AddClassesJob(model=head, classes=home("classes.parquet"),
                                      output=home("never")))  # fmt: skip
    with pytest.raises(ModelError, match="to compare images with class embeddings, found a head"):
        api.infer_semantics(
            InferSemanticsJob(model=head, codes=home("codes"), classes=home("classes.parquet"),
                              output=home("never"), where=home.where)
        )  # fmt: skip
    assert not Path(home("never")).exists()


def test_the_calibration_of_other_scores_is_left_out(home: Any) -> None:
    tuned = registry.load(home("old"))
    tuned.with_record({**tuned.record, "calibration": 0.5}, None).save(home("old"))
    home.encode("old")
    head = learn(home)
    assert "calibration" not in registry.load(head).record
    with pytest.raises(ModelError, match="expected a calibration from raypq train"):
        home.classify(model=head, calibration="model")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda V, bias: (V[:, :-1], bias), "array 'V' of the classes beside it"),
        (lambda V, bias: (V, bias[:-1]), "array 'bias' of the classes beside it"),
        (lambda V, bias: (np.full_like(V, np.nan), bias), "expected finite numbers"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(change: Any, says: str, home: Any) -> None:
    home.encode("old")
    head = learn(home)
    model = registry.load(head)
    assert model.layer is not None
    V, bias = change(model.layer.V, model.layer.bias)
    type(model.layer).of_head(model.layer.ids, V.astype(np.float32), bias).save(head)
    with pytest.raises(ModelError, match=says):
        registry.load(head)
