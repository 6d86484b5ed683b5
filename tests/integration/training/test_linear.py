"""`raypq train linear`: heads over the codes of every method, and what cannot be learned from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numpy.testing import assert_array_equal

from raypq import api
from raypq.cli import main
from raypq.config import ClassifyJob, ClusterSettings, EncodeJob, TrainJob
from raypq.data.codes import CodeFile
from raypq.data.store import snapshot
from raypq.errors import ConfigError, InputError, JobError, ModelError
from raypq.methods import registry
from raypq.methods.base import Model

ALONE = ClusterSettings(cluster="none", workers=1)
SIZES = {"iterations": 4, "epochs": 2, "batch": 50, "hidden": 32, "width": 40, "head_epochs": 2}


def sizes(method: str, **more: Any) -> dict[str, Any]:
    """Settings of a short training."""
    fields = registry.find(method).settings_class.model_fields
    chosen = {key: value for key, value in SIZES.items() if key in fields}
    M = {"M": 1} if method == "vq" else {"M": 4}
    return {"K": 16, "seed": 1, **M, **chosen, **more}


class Place:
    """The tiny data set, its stores, and a folder of outputs."""

    def __init__(self, world: Any, root: Path) -> None:
        self.world, self.root = world, root

    def codes(self, method: str) -> str:
        """A code store of the training rows; made once."""
        model, codes = str(self.root / method), str(self.root / f"{method}-codes")
        if not Path(codes).exists():
            unlabelled = [self.world.train] if registry.find(method).needs_unlabelled else []
            api.train(
                TrainJob(
                    method=method, features=[self.world.train], classes=self.world.classes,
                    unlabelled=unlabelled, output=model, settings=sizes(method), where=ALONE,
                )
            )  # fmt: skip
            api.encode(
                EncodeJob(model=model, features=[self.world.train], output=codes, where=ALONE)
            )
        return codes

    def job(self, store: str, to: str, **more: Any) -> TrainJob:
        values = {
            "method": "linear", "codes": store, "classes": self.world.classes, "where": ALONE,
            "output": str(self.root / to), "overwrite": True,
        }  # fmt: skip
        return TrainJob(**{**values, **more})

    def rewritten(self, codes: str, to: str, change: Callable[[pa.Table], pa.Table]) -> str:
        """A code store whose files have other labels."""
        output = self.root / to
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(codes, output)
        for path in (output / "snapshots").glob("*.json"):
            document = json.loads(path.read_text())
            for shard in document["shards"]:
                file = output / shard["path"]
                table = change(pq.read_table(file))
                pq.write_table(table, file, write_page_checksum=True)
                shard |= {"bytes": file.stat().st_size, "rows": len(table)}
            path.write_text(json.dumps(document))
        return str(output)


@pytest.fixture(scope="module")
def place(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(world, tmp_path_factory.mktemp("linear"))


def rows_of(codes: str, model: Model) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decoded rows [N, D], labels [N] and ids of the last version, in shard order."""
    parts = [
        batch
        for receipt in snapshot.read(codes).shards
        for batch in CodeFile.open(f"{codes}/{receipt.path}").batches(10**6)
    ]
    q = np.concatenate([model.decode(batch.B) for batch in parts]).astype(np.float64)
    labels = np.concatenate([np.array(batch.labels.to_pylist(), object) for batch in parts])
    return q, labels, [name for batch in parts for name in batch.ids.to_pylist()]


def predicted(codes: str, model: str, classes: str, output: Path, **more: Any) -> pa.Table:
    """The predictions of a head, in shard order."""
    job = ClassifyJob(codes=codes, model=model, classes=classes, candidates="seen",
                      output=str(output), where=ALONE, **more)  # fmt: skip
    version = api.classify(job)
    return pa.concat_tables(pq.read_table(output / item.path) for item in version.shards)


@pytest.mark.parametrize("loss", ["softmax", "ridge"])
@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_a_head_over_the_codes_of_every_method(
    method: str, loss: str, place: Place, tmp_path: Path
) -> None:
    """Predictions are the arg-max of V·q + bias, in order; codes and fingerprint stay."""
    codes = place.codes(method)
    trained = api.train(place.job(codes, f"{method}-{loss}", settings={"loss": loss}))
    head = registry.load(trained.summary["model"])
    base = registry.load(str(place.root / method))
    assert head.fingerprint == base.fingerprint == trained.summary["fingerprint"]
    assert head.has_head
    assert head.class_metric == "dot"
    q, labels, ids = rows_of(codes, head)
    assert head.layer is not None
    scores = q @ head.layer.V.T.astype(np.float64) + head.layer.bias
    found = predicted(codes, trained.summary["model"], place.world.classes, tmp_path, top_k=3)
    assert found["id"].to_pylist() == ids
    order = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    listed = np.array(found["class_id"].to_pylist())
    gaps = np.diff(np.sort(-scores, axis=1)[:, :4], axis=1)
    clear = gaps.min(axis=1) > 1e-5  # closer scores may be equal in float32
    assert clear.mean() > 0.9
    assert_array_equal(listed[clear], np.array(head.layer.ids)[order][clear])
    best = np.array(head.layer.ids)[order[:, 0]]
    assert (best == labels).mean() == pytest.approx(trained.summary["accuracy"], abs=0.011)
    assert trained.summary["accuracy"] > 0.5
    assert trained.summary["images"] == 300


def test_the_record_and_the_summary_say_what_was_learned(place: Place) -> None:
    codes = place.codes("pq")
    trained = api.train(place.job(codes, "recorded", settings={"penalty": 0.01, "iterations": 7}))
    record = registry.load(trained.summary["model"]).record["head"]
    assert record["settings"] == {
        "loss": "softmax", "penalty": 0.01, "iterations": 7, "tolerance": 1e-4,
    }  # fmt: skip
    assert (record["images"], record["without_label"], record["classes"]) == (300, 0, 8)
    objective = [entry["objective"] for entry in record["history"]]
    assert min(objective) < objective[0]
    assert record["passes"] == len(objective) + 2  # the moments, and the figures of the result
    assert 0 < record["loss"] < objective[0]
    assert record["run"]["settings"]["method"] == "linear"
    assert record["accuracy"] == trained.summary["accuracy"]
    assert trained.summary["version"] == 1
    assert trained.summary["of"] == "pq"


@pytest.mark.parametrize("loss", ["softmax", "ridge"])
def test_workers_and_memory_do_not_change_a_bit(loss: str, place: Place) -> None:
    codes = place.codes("pq")
    heads = []
    for to, where, cache in (
        ("one", ALONE, None),
        ("three", ClusterSettings(cluster="none", workers=3), None),
        ("uncached", ClusterSettings(cluster="none", workers=2), 0),
    ):
        job = place.job(codes, to, settings={"loss": loss}, where=where, cache_bytes=cache)
        heads.append(api.train(job).model.layer)
    assert len({layer.digest for layer in heads if layer is not None}) == 1


def test_the_order_of_shards_hardly_matters(place: Place) -> None:
    """Sums are merged in shard order, so only their last bits differ."""
    codes = place.codes("pq")
    other = place.root / "reversed"
    shutil.copytree(codes, other)
    for path in (other / "snapshots").glob("*.json"):
        document = json.loads(path.read_text())
        document["shards"] = document["shards"][::-1]
        path.write_text(json.dumps(document))
    settings = {"loss": "ridge"}
    one, two = (
        api.train(place.job(store, f"order-{index}", settings=settings)).model.layer
        for index, store in enumerate((codes, str(other)))
    )
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(one.V, two.V, rtol=1e-4, atol=1e-6)


def test_rows_without_a_label_are_skipped_and_counted(place: Place) -> None:
    """As of a database of which a few rows are labelled."""
    codes = place.codes("pq")

    def half(table: pa.Table) -> pa.Table:
        labels = table["label"].to_pylist()
        kept = [name if row % 2 else None for row, name in enumerate(labels)]
        return table.set_column(
            table.column_names.index("label"), "label", pa.array(kept, pa.string())
        )

    trained = api.train(place.job(place.rewritten(codes, "half", half), "half-head"))
    assert (trained.summary["images"], trained.summary["without_label"]) == (150, 150)


def test_labels_of_a_file_count_instead(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    codes = place.codes("pq")
    _, labels, ids = rows_of(codes, registry.load(str(place.root / "pq")))
    chosen = np.arange(0, 300, 3)
    path = place.root / "labels.parquet"
    swapped = {"c00": "c01", "c01": "c00"}
    given = [swapped.get(labels[row], labels[row]) for row in chosen]
    columns = {"id": [*(ids[row] for row in chosen), "gone", "gone too"],
               "label": [*given, "c03", None]}  # fmt: skip
    pq.write_table(pa.table(columns), path)
    trained = api.train(place.job(codes, "by-file", labels=str(path)))
    assert (trained.summary["images"], trained.summary["without_label"]) == (100, 200)
    assert trained.summary["unknown_ids"] == 2
    assert "2 of 102 ids are not in" in caplog.text
    assert "'gone', 'gone too'" in caplog.text
    layer = trained.model.layer
    assert layer is not None
    q, _, _ = rows_of(codes, trained.model)
    best = np.array(layer.ids)[(q @ layer.V.T + layer.bias).argmax(axis=1)]
    assert (best[labels == "c00"] == "c01").mean() > 0.7, "it learned the labels of the file"


def test_a_store_of_two_models(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    codes = place.root / "mixed"
    shutil.copytree(place.codes("pq"), codes)
    place.codes("opq")
    more = place.root / "more"
    more.mkdir()
    shutil.copy(Path(place.world.train) / "part-0.parquet", more / "late.parquet")
    opq = str(place.root / "opq")
    where = {"output": str(codes), "where": ALONE, "append": True, "duplicate_ids": "ignore"}
    api.encode(EncodeJob(model=opq, features=[str(more)], **where))
    with pytest.raises(ModelError, match=r"codes of 2 models, .* name the one to learn for"):
        api.train(place.job(str(codes), "mixed-head"))
    trained = api.train(place.job(str(codes), "mixed-head", model=opq))
    assert trained.summary["images"] == 100
    assert trained.summary["shards_of_other_models"] == 3
    assert "3 of 4 shards are of other models" in caplog.text
    place.codes("vq")
    with pytest.raises(ModelError, match=r"expected codes made by model .*vq, found codes made"):
        api.train(place.job(str(codes), "mixed-head", model=str(place.root / "vq")))


def with_labels(place: Place, to: str, labels: Callable[[list[str]], list[Any]]) -> str:
    def change(table: pa.Table) -> pa.Table:
        column = pa.array(labels(table["label"].to_pylist()), pa.string())
        return table.set_column(table.column_names.index("label"), "label", column)

    return place.rewritten(place.codes("pq"), to, change)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (lambda names: ["c09", *names[1:]],
         r"label of a seen class, found unseen class 'c09' \(1 such row.*; learn from other rows"),
        (lambda names: ["dodo", *names[1:]],
         r"row 0: expected a label among the 12 class_ids.*name the rows to learn from.*--labels"),
        (lambda names: [None if name == "c02" else name for name in names],
         "expected at least one labelled row of each training class, found none of c02 .1 in all"),
        (lambda names: [None] * len(names), "expected rows with labels, found no row with a label"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_learned_from(
    labels: Callable[[list[str]], list[Any]], says: str, place: Place
) -> None:
    codes = with_labels(place, "wrong", labels)
    with pytest.raises((InputError, JobError), match=says):
        api.train(place.job(codes, "never"))
    assert not (place.root / "never").exists()


def test_a_bad_shard_may_be_left_out(place: Place) -> None:
    codes = with_labels(place, "one-bad", lambda names: names)
    broken = next((Path(codes) / "data").rglob("*.parquet"))
    content = bytearray(broken.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    broken.write_bytes(content)
    with pytest.raises(JobError, match=broken.name):
        api.train(place.job(codes, "never"))
    trained = api.train(place.job(codes, "quarantined", on_bad_shard="quarantine"))
    assert trained.summary["images"] == 200
    assert len(trained.summary["quarantined"]) == 1
    assert broken.name in trained.model.record["head"]["quarantined"][0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features": ["f"]}, r"features \(--features\): linear learns from codes; encode the"),
        ({"unlabelled": ["f"]}, r"unlabelled \(--unlabelled\): linear learns from codes"),
        ({"codes": None}, r"codes: linear needs a code store; name it \(--codes\)"),
        ({"classes": None}, r"classes: linear needs a class table; name it \(--classes\)"),
        ({"tune": True}, r"tune \(--tune\): linear has no settings to tune"),
        ({"columns": {"feature": "x"}}, "columns.feature: linear reads code stores"),
        ({"columns": {"id": "x"}}, "columns.id: linear reads code stores"),
        ({"settings": {"M": 4}}, "unknown key 'M'; allowed: iterations, loss, penalty, tolerance"),
        ({"where": ClusterSettings(cluster="none", device="cuda")}, "linear computes on CPUs"),
        ({"method": "pq"}, r"codes \(--codes\): pq learns from features"),
        ({"method": "pq", "codes": None}, r"features: pq learns from features; name a feature"),
        ({"method": "pq", "codes": None, "labels": "x"}, r"labels \(--labels\): pq learns from"),
        ({"method": "liner"}, "unknown method 'liner'; expected one of clusterable, .*, linear,"),
        ({"overwrite": False, "output": "{root}/pq"}, "holds a model already"),
        ({"codes": "{root}/pq"}, "found a model, not a store"),
        ({"labels": "{root}/none.parquet"}, r"none\.parquet"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], says: str, place: Place) -> None:
    codes = place.codes("pq")
    changes = {
        key: value.format(root=place.root) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises((ConfigError, InputError), match=says):
        api.train(place.job(codes, "never", **changes))


def test_a_head_needs_two_classes(place: Place) -> None:
    path = place.root / "one-class.parquet"
    pq.write_table(pa.table({"class_id": ["c00", "c01"], "seen": [True, False]}), path)
    with pytest.raises(ConfigError, match="at least two training classes, found 1 in"):
        api.train(place.job(place.codes("pq"), "never", classes=str(path)))


def test_a_class_table_needs_no_embeddings(place: Place, tmp_path: Path) -> None:
    path = str(place.root / "plain.parquet")
    pq.write_table(pa.table({"class_id": [f"c{t:02d}" for t in range(8)]}), path)
    codes = place.codes("pqzsl")
    trained = api.train(place.job(codes, "plain", classes=path))
    job = ClassifyJob(codes=codes, model=trained.summary["model"], classes=path,
                      output=str(tmp_path / "p"), where=ALONE)  # fmt: skip
    assert api.classify(job).rows == 300


def test_the_command(place: Place) -> None:
    codes = place.codes("pq")
    words = ["train", "linear", "--codes", codes, "--classes", place.world.classes, "--output",
             str(place.root / "cli"), "--set", "loss=ridge", "--cluster", "none"]  # fmt: skip
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    trained = json.loads(done.stdout)
    assert trained["method"] == "linear"
    assert trained["settings"]["loss"] == "ridge"
    done = CliRunner().invoke(main, [*words[:2], "--features", "f", *words[4:]])
    assert done.exit_code == 2
    assert "raypq encode" in done.output


def test_settings_alone_may_be_the_config(place: Place) -> None:
    path = place.root / "head.yaml"
    path.write_text("loss: ridge\npenalty: 0.5\n")
    words = ["train", "linear", "--codes", place.codes("pq"), "--classes", place.world.classes,
             "--output", str(place.root / "by-config"), "--cluster", "none", "--config",
             str(path)]  # fmt: skip
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["settings"]["penalty"] == 0.5
