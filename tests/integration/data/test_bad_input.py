"""Bad input through the command line: the exit code, and a message that says what and where.

Each row of the table breaks one thing. Nothing may end in a traceback, and nothing may be dropped
in silence.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken import Place, Table, check, raypq

from raypq.data import arrays
from raypq.data.storage import stem_of
from raypq.data.store import snapshot

TABLE = Table()
case = TABLE.case


# ---- features ------------------------------------------------------------------------------


@case(1, "part-1.parquet", "expected a column 'feature'", "found columns id, label")
def feature_column_missing(place):
    place.drop("test/part-1.parquet", "feature")
    return place.encode()


@case(1, "part-1.parquet", "expected a column 'id'", "found columns feature, label")
def id_column_missing(place):
    place.drop("test/part-1.parquet", "id")
    return place.encode()


@case(1, "part-0.parquet", "expected a column 'vec'", "found columns id, feature, label")
def feature_column_named_wrongly(place):
    return place.encode("--feature-column", "vec")


@case(1, "part-0.parquet", "part-1.parquet", "width 16", "found 12")
def features_of_another_width_than_the_model(place):
    place.widen("test/part-0.parquet", 12)
    place.widen("test/part-1.parquet", 12)
    return place.encode()


@case(1, "part-0.parquet", "row 0", "expected 16 values", "found 12")
def lists_of_another_width_than_the_model(place):
    for part in ("test/part-0.parquet", "test/part-1.parquet"):
        X = place.vectors(part)[:, :12]
        place.set(part, "feature", pa.array(X.tolist(), pa.list_(pa.float32())))
    return place.encode()


@case(1, "part-1.parquet", "expected width 16 as in", "part-0.parquet", "found width 8")
def mixed_widths_across_shards(place):
    place.widen("train/part-1.parquet", 8)
    return place.fit()


@case(1, "part-1.parquet", "row 7", "expected 16 values", "found 1 ")
def mixed_widths_inside_a_shard(place):
    rows = place.vectors("train/part-1.parquet").tolist()
    rows[7] = [1.0]
    place.set("train/part-1.parquet", "feature", pa.array(rows, pa.list_(pa.float32())))
    return place.fit()


@case(1, "part-1.parquet", "row 5 (id 'test-1-5')", "finite values", "NaN or Inf")
def nan_when_encoding(place):
    place.put("test/part-1.parquet", 5, np.nan)
    return place.encode()


@case(1, "part-0.parquet", "row 9 (id 'test-0-9')", "finite values", "NaN or Inf")
def inf_when_encoding(place):
    place.put("test/part-0.parquet", 9, -np.inf)
    return place.encode()


@case(1, "part-2.parquet", "row 5 (id 'train-2-5')", "NaN or Inf")
def nan_when_training(place):
    place.put("train/part-2.parquet", 5, np.nan)
    return place.fit()


@case(1, "part-2.parquet", "row 5", "NaN or Inf")
def nan_when_classifying_features(place):
    shutil.copy(place.train / "part-2.parquet", place.test / "part-2.parquet")
    place.put("test/part-2.parquet", 5, np.nan)
    return [word for word in place.classify("--features", str(place.test))
            if word not in ("--codes", place("codes"))]  # fmt: skip


@case(1, "part-0.parquet", "row 3", "a null")
def a_null_vector(place):
    rows: list[Any] = place.vectors("test/part-0.parquet").tolist()
    rows[3] = None
    place.set("test/part-0.parquet", "feature", pa.array(rows, pa.list_(pa.float32(), 16)))
    return place.encode()


@case(1, "part-0.parquet", "column 'id'", "row 2", "no nulls")
def a_null_id(place):
    place.set("test/part-0.parquet", "id", pa.array(["a", "b", None, *["c"] * 57]))
    return place.encode()


@case(1, "part-0.parquet", "column 'feature'", "vector column", "found string")
def features_of_another_type(place):
    place.set("test/part-0.parquet", "feature", pa.array(["x"] * 60))
    return place.encode()


@case(1, "part-0.parquet", "32 or 64 bytes", "[20]")
def binary_of_another_width(place):
    place.set("test/part-0.parquet", "feature", pa.array([b"x" * 20] * 60, pa.binary(20)))
    return place.encode()


@case(1, "part-0.parquet", "width")
def binary_without_a_width(place):
    for part in ("part-0", "part-1", "part-2"):
        X = place.vectors(f"train/{part}.parquet")
        binary = arrays.fixed_binary(X.view(np.uint8).reshape(len(X), -1))
        place.set(f"train/{part}.parquet", "feature", binary)
    return place.fit("pq")


@case(1, "nothing-here", "a folder of them", "no such file or folder")
def no_features(place):
    return [*place.encode(), "--features", place("nothing-here")]


@case(1, "part-1.parquet", "complete Parquet file")
def a_truncated_shard(place):
    path = place.test / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    return place.encode()


@case(1, "part-1.parquet", "empty file (0 bytes)")
def an_empty_file(place):
    (place.test / "part-1.parquet").write_bytes(b"")
    return place.encode()


@case(1, "part-1.parquet", "complete Parquet file", "not a parquet file")
def a_file_that_is_not_parquet(place):
    (place.test / "part-1.parquet").write_text("id,feature\n" * 100)
    return place.encode()


@case(1, "part-1.parquet", "empty file (0 bytes)")
def an_empty_training_file(place):
    (place.train / "part-1.parquet").write_bytes(b"")
    return place.fit()


@case(1, "part-0.parquet", "at least one row", "empty shards only")
def only_empty_shards_to_train_on(place):
    for part in place.train.iterdir():
        place.change(f"train/{part.name}", lambda table: table.slice(0, 0))
    return place.fit()


# ---- labels and classes --------------------------------------------------------------------


@case(
    1, "part-1.parquet", "row 4", "'unheard-of'", "12 class_ids of", "classes.parquet",
    "add the class to the table, or take it out",
)  # fmt: skip
def an_unknown_label_in_training(place):
    labels = pq.read_table(place.train / "part-1.parquet").column("label").to_pylist()
    labels[4] = "unheard-of"
    place.set("train/part-1.parquet", "label", pa.array(labels))
    return place.fit()


@case(
    1, "part-1.parquet", "row 4", "label of a seen class", "unseen class 'c09'", "leave such rows"
)
def the_label_of_an_unseen_class_in_training(place):
    labels = pq.read_table(place.train / "part-1.parquet").column("label").to_pylist()
    labels[4] = "c09"
    place.set("train/part-1.parquet", "label", pa.array(labels))
    return place.fit()


@case(1, "part-1.parquet", "row 4", "label of a seen class", "no label")
def a_null_label_in_training(place):
    labels = pq.read_table(place.train / "part-1.parquet").column("label").to_pylist()
    labels[4] = None
    place.set("train/part-1.parquet", "label", pa.array(labels))
    return place.fit()


@case(1, "part-1.parquet", "label column", "none")
def no_labels_in_training(place):
    place.drop("train/part-1.parquet", "label")
    return place.fit()


@case(1, "row 4", "'unheard-of'", "12 class_ids of", "unknown_labels: report")
def an_unknown_label_that_is_refused_when_classifying(place):
    labels = pq.read_table(place.test / "part-1.parquet").column("label").to_pylist()
    labels[4] = "unheard-of"
    place.set("test/part-1.parquet", "label", pa.array(labels))
    place.run(*place.encode())
    return [*place.classify(), "--unknown-labels", "refuse"]


@case(1, "classes.parquet", "column 'embedding'", "none")
def no_embeddings(place):
    place.drop("classes.parquet", "embedding")
    return place.fit()


@case(1, "classes.parquet", "column 'embedding'", "none")
def no_embeddings_when_classifying(place):
    place.run(*place.encode())
    place.drop("classes.parquet", "embedding")
    return place.classify()


@case(1, "classes.parquet", "unique class_ids", "1 repeated", "'c01'")
def class_ids_that_repeat(place):
    names = ["c01", "c01", *[f"c{t:02d}" for t in range(2, 12)]]
    place.set("classes.parquet", "class_id", pa.array(names))
    return place.fit()


@case(1, "classes.parquet", "column 'class_id'", "found columns")
def no_class_ids(place):
    place.drop("classes.parquet", "class_id")
    return place.fit()


@case(1, "embedding", "row 2", "finite", "'c02'")
def nan_in_an_embedding(place):
    E = np.ones((12, 6), np.float32)
    E[2, 1] = np.nan
    place.set("classes.parquet", "embedding", arrays.fixed_list(E))
    return place.fit()


@case(1, "class embeddings of width 6", "found 5")
def embeddings_of_another_width(place):
    place.run(*place.encode())
    place.set("classes.parquet", "embedding", arrays.fixed_list(np.ones((12, 5), np.float32)))
    return place.classify()


@case(1, "no-classes.parquet", "no such file")
def no_class_table(place):
    return [*place.fit(), "--classes", place("no-classes.parquet")]


@case(1, "classes.parquet", "complete Parquet file")
def a_truncated_class_table(place):
    place.classes.write_bytes(place.classes.read_bytes()[:500])
    return place.fit()


@case(1, "training classes", "at least one image of each seen class", "c09")
def a_seen_class_without_images(place):
    place.set("classes.parquet", "seen", pa.array([t < 10 for t in range(12)]))
    return place.fit()


@case(2, "pqzsl", "--classes")
def pqzsl_without_classes(place):
    return ["train", "pqzsl", "--features", str(place.train), "--output", place("new")]


@case(2, "unknown split 'best'", "2-hops")
def an_unknown_split(place):
    place.run(*place.encode())
    return place.classify("--candidates", "best")


@case(1, "wanted.txt", "line 2", "'c99'", "unknown_labels: report")
def a_candidate_list_with_an_unknown_class(place):
    place.run(*place.encode())
    Path(place("wanted.txt")).write_text("c01\nc99\n")
    refuse = ("--unknown-labels", "refuse")
    return place.classify("--candidates", place("wanted.txt"), *refuse)


@case(1, "expected predictions with labels", "no labelled image")
def evaluation_without_labels(place):
    for part in ("part-0", "part-1"):
        place.drop(f"test/{part}.parquet", "label")
    place.run(*place.encode())
    place.run(*place.classify())
    return place.evaluate()


# ---- sizes that do not fit -----------------------------------------------------------------


@case(2, "K: 256 codewords", "found 100")
def fewer_rows_than_codewords(place):
    for part in ("part-1", "part-2"):
        (place.train / f"{part}.parquet").unlink()
    return place.fit("pq", "--set", "K=256")


@case(2, "M: 5 sub-codebooks", "feature width 16")
def m_that_does_not_divide_the_width(place):
    return place.fit("pq", "--set", "M=5")


@case(2, "16", "M = 5")
def m_that_does_not_divide_the_rotated_width(place):
    return place.fit("opq", "--set", "M=5")


@case(2, "M: 9 sub-codebooks", "8 training classes")
def more_sub_codebooks_than_classes(place):
    return place.fit("pqzsl", "--set", "M=9")


@case(2, "vq settings", "'M'", "found 4")
def vq_with_sub_codebooks(place):
    return place.fit("vq")


# ---- models, codes and stores --------------------------------------------------------------


@case(1, "no-model", "model.json")
def no_model(place):
    place.model = place("no-model")
    return place.encode()


@case(1, "changed after training")
def a_model_that_was_changed(place):
    place.model = shutil.copytree(place.model, place("copy"))
    file = Path(place.model) / "model.json"
    file.write_text(file.read_text().replace('"metric": "cosine"', '"metric": "dot"'))
    return place.encode()


@case(1, "expected a method among", "found other")
def a_model_of_an_unknown_method(place):
    from raypq.data.model_files import ModelFiles

    known = ModelFiles.load(place.model)
    content = {**known.content, "method": "other"}
    ModelFiles(content=content, tensors=known.tensors, record={}).save(place("other"))
    place.model = place("other")
    return place.encode()


@case(1, "expected codes made by model", "found codes made by model")
def codes_by_another_model(place):
    place.run(*place.encode())
    place.run(*place.fit("pqzsl", "--set", "seed=9", "--set", "polish=1"))
    place.model = place("new")
    return place.classify()


@case(1, "codes", "store with a snapshot", "no such store")
def no_codes(place):
    return place.classify()


@case(1, "version 7", "[1]")
def a_version_that_is_not_there(place):
    place.run(*place.encode())
    return place.classify("--version", "7")


@case(1, "no such file")
def a_code_file_that_is_gone(place):
    place.run(*place.encode())
    next(Path(place("codes"), "data").iterdir()).unlink()
    return place.classify()


@case(1, "complete Parquet file")
def a_truncated_code_file(place):
    place.run(*place.encode())
    file = next(Path(place("codes"), "data").iterdir())
    file.write_bytes(file.read_bytes()[:-50])
    return place.classify()


@case(1, "paths inside the store", "../../train/part-0.parquet")
def a_snapshot_that_points_outside(place):
    place.run(*place.encode())
    file = next(Path(place("codes"), "snapshots").iterdir())
    document = json.loads(file.read_text())
    document["shards"][0]["path"] = "../../train/part-0.parquet"
    file.write_text(json.dumps(document))
    return place.classify()


@case(1, "expected a store of codes", "found one of predictions")
def predictions_taken_for_codes(place):
    place.run(*place.encode())
    place.run(*place.classify())
    return [*place.classify(), "--codes", place("predictions"), "--output", place("more")]


@case(1, "expected a prediction store", "found codes")
def codes_taken_for_predictions(place):
    place.run(*place.encode())
    return [*place.evaluate(), "--predictions", place("codes")]


# ---- usage ---------------------------------------------------------------------------------


@case(2, "'nearest'", "opq, pq, pqzsl, psr, sae, vq")
def an_unknown_method(place):
    return place.fit("nearest")


@case(2, "pqzsl settings: unknown key 'k'", "allowed: ", "K", "lam")
def an_unknown_setting(place):
    return place.fit("pqzsl", "--set", "k=16")


@case(2, "key 'K'", "less than or equal to 256", "found 999")
def a_setting_out_of_range(place):
    return place.fit("pqzsl", "--set", "K=999")


@case(2, "key 'alpha'", "found 'large'")
def a_setting_of_another_type(place):
    return place.fit("pqzsl", "--set", "alpha=large")


@case(2, "--set 'K'", "key=value")
def a_setting_without_a_value(place):
    return place.fit("pqzsl", "--set", "K")


@case(2, "unknown key 'weight'", "allowed: ")
def an_unknown_key_in_a_config_file(place):
    Path(place("c.yaml")).write_text("M: 4\nweight: 2\n")
    return place.fit("pqzsl", "--config", place("c.yaml"))


@case(2, "c.yaml", "expected a mapping")
def a_config_file_of_another_kind(place):
    Path(place("c.yaml")).write_text("- M\n")
    return place.fit("pqzsl", "--config", place("c.yaml"))


@case(2, "none.yaml", "cannot read the config")
def a_config_file_that_is_not_there(place):
    return place.fit("pqzsl", "--config", place("none.yaml"))


@case(2, "--on-bad-shard")
def an_unknown_option_value(place):
    return place.encode("--on-bad-shard", "ignore")


@case(2, "codes or features")
def codes_and_features_at_once(place):
    return place.classify("--features", str(place.test))


@case(1, "calibration")
def a_calibration_that_the_model_has_not(place):
    place.run(*place.fit("pqzsl", "--no-calibrate"))
    place.run(*place.encode("--model", place("new")))
    return place.classify("--model", place("new"), "--calibration", "model")


@case(2, "calibration")
def a_calibration_that_is_no_number(place):
    place.run(*place.encode())
    return place.classify("--calibration", "lots")


@pytest.mark.parametrize(("broken", "exit_code", "says"), TABLE.rows)
def test_bad_input_is_named(place, broken, exit_code, says):
    check(place, broken, exit_code, says)


# ---- good shards beside bad ones -----------------------------------------------------------


def rows_of(store: str) -> int:
    """Rows in the files of the latest version, counted in the files."""
    return sum(
        pq.read_metadata(Path(store) / item.path).num_rows for item in snapshot.read(store).shards
    )


def break_two_of_five(place: Place) -> None:
    """Five shards of 60 rows: part-1 has a NaN, part-3 is truncated."""
    for part in (2, 3, 4):
        shutil.copy(place.test / "part-0.parquet", place.test / f"part-{part}.parquet")
    place.put("test/part-1.parquet", 8, np.nan)
    path = place.test / "part-3.parquet"
    path.write_bytes(path.read_bytes()[:-10])


def stems(place, *parts):
    """What a store calls the shards of these numbers."""
    return [stem_of(str(place.test / f"part-{part}.parquet")) for part in parts]


def test_bad_shards_among_good_ones_are_all_listed(place):
    break_two_of_five(place)
    result = raypq(*place.encode())
    assert result.exit_code == 1
    assert "2 shard(s) failed, 3 finished" in result.stderr
    for part in ("part-1.parquet", "row 8", "part-3.parquet", "complete Parquet file"):
        assert part in result.stderr
    assert "part-2.parquet" not in result.stderr
    assert snapshot.versions(place("codes")) == [], "no version without every shard"
    finished = {path.name.split(".")[0] for path in Path(place("codes"), "data").iterdir()}
    assert finished >= set(stems(place, 0, 2, 4)), "every good shard is finished"


def test_quarantine_records_what_is_left_out(place):
    break_two_of_five(place)
    result = place.run(*place.encode("--on-bad-shard", "quarantine"))
    told = json.loads(result.stdout)
    assert told["images"] == 3 * 60
    assert told["shards"] == 3
    assert len(told["quarantined"]) == 2
    assert "part-1.parquet" in told["quarantined"][0]
    assert "row 8" in told["quarantined"][0]
    assert "part-3.parquet" in told["quarantined"][1]
    assert result.stderr.count("quarantined") == 2, "warned of each once"
    version = snapshot.read(place("codes"))
    assert [item.shard for item in version.shards] == stems(place, 0, 2, 4)
    assert [item.shard for item in version.quarantined] == stems(place, 1, 3)
    assert version.rows == rows_of(place("codes")) == 180


def test_quarantine_of_every_shard_is_a_failure(place):
    for part in ("part-0", "part-1"):
        place.put(f"test/{part}.parquet", 0, np.nan)
    result = raypq(*place.encode("--on-bad-shard", "quarantine"))
    assert result.exit_code == 1
    assert "2 shard(s) failed, 0 finished" in result.stderr
    assert snapshot.versions(place("codes")) == []


def test_quarantine_when_classifying(place):
    place.run(*place.encode())
    bad = next(Path(place("codes"), "data").glob(f"{stems(place, 1)[0]}.*"))
    bad.write_bytes(bad.read_bytes()[:-10])
    assert raypq(*place.classify()).exit_code == 1
    told = json.loads(place.run(*place.classify("--on-bad-shard", "quarantine")).stdout)
    assert told["images"] == 60 == rows_of(place("predictions"))
    assert len(told["quarantined"]) == 1
    assert bad.name in told["quarantined"][0]


@pytest.mark.parametrize("method", ["pq", "opq", "pqzsl"])
def test_quarantine_when_training(place, method):
    """The model is that of the good shards, whether the footer or a row is bad."""
    place.put("train/part-0.parquet", 8, np.nan)
    shutil.copy(place.train / "part-1.parquet", place.train / "part-3.parquet")
    path = place.train / "part-3.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    result = place.run(*place.fit(method, "--on-bad-shard", "quarantine"))
    told = json.loads(result.stdout)
    assert told["images"] == 200
    assert [("part-0" in text, "part-3" in text) for text in sorted(told["quarantined"])] == [
        (True, False),
        (False, True),
    ]
    assert result.stderr.count("quarantined") == 2, "warned of each once"


def test_too_little_is_left_to_train_on(place):
    for part in ("part-0", "part-1"):
        place.put(f"train/{part}.parquet", 8, np.nan)
    result = raypq(*place.fit("pq", "--on-bad-shard", "quarantine", "--set", "K=128"))
    assert result.exit_code == 2
    assert "K: 128 codewords need at least as many training rows, found 100" in result.stderr


def test_a_failed_training_writes_no_model(place):
    place.put("train/part-2.parquet", 5, np.nan)
    assert raypq(*place.fit()).exit_code == 1
    assert not Path(place("new")).exists()


def test_nothing_is_dropped(place):
    """Rows in are rows out, in their order, through every step."""
    place.run(*place.encode())
    place.run(*place.classify())
    names = stems(place, 0, 1)
    for store in ("codes", "predictions"):
        version = snapshot.read(place(store))
        assert [item.shard for item in version.shards] == names
        assert version.rows == rows_of(place(store)) == 120
        for part, item in enumerate(version.shards):
            found = pq.read_table(Path(place(store)) / item.path)
            wanted = pq.read_table(place.test / f"part-{part}.parquet")
            assert found.column("id").to_pylist() == wanted.column("id").to_pylist()
            assert found.column("label").to_pylist() == wanted.column("label").to_pylist()
    told = json.loads(place.run(*place.evaluate("--json", "-")).stdout)
    assert told["images"] == told["top1"]["images"] == 120


def test_an_empty_shard_gives_an_empty_output(place):
    place.change("test/part-1.parquet", lambda table: table.slice(0, 0))
    told = json.loads(place.run(*place.encode()).stdout)
    assert (told["images"], told["shards"], told["quarantined"]) == (60, 2, [])
    told = json.loads(place.run(*place.classify()).stdout)
    assert (told["images"], told["shards"]) == (60, 2)
    assert [item.rows for item in snapshot.read(place("predictions")).shards] == [60, 0]
    place.run(*place.evaluate())


def test_an_empty_shard_in_training(place):
    place.change("train/part-1.parquet", lambda table: table.slice(0, 0))
    assert json.loads(place.run(*place.fit("pq")).stdout)["images"] == 200


def test_a_store_of_empty_shards_only(place):
    for part in ("part-0", "part-1"):
        place.change(f"test/{part}.parquet", lambda table: table.slice(0, 0))
    assert json.loads(place.run(*place.encode()).stdout)["images"] == 0
    assert json.loads(place.run(*place.classify()).stdout)["images"] == 0
    result = raypq(*place.evaluate())
    assert result.exit_code == 1
    assert "no labelled image" in result.stderr


def test_images_without_labels(place):
    """Labels are needed to train and to evaluate, and for nothing else."""
    place.drop("test/part-0.parquet", "label")
    labels = pq.read_table(place.test / "part-1.parquet").column("label").to_pylist()
    place.set("test/part-1.parquet", "label", pa.array([*labels[:10], *[None] * 50]))
    place.run(*place.encode())
    place.run(*place.classify())
    told = json.loads(place.run(*place.evaluate("--json", "-")).stdout)
    assert told["images"] == 120
    assert told["top1"]["images"] == 10


def test_spaces_and_unicode_in_every_path(place, tmp_path):
    root = tmp_path / "ein Ordner [图像]"
    shutil.copytree(place.root, root)
    other = Place(root, shutil.copytree(place.model, root / "das Modell"), place.patch)
    other.run(*other.fit("pq"))
    other.run(*other.encode())
    other.run(*other.classify())
    other.run(*other.evaluate())
