"""Every kind of store in every format: the same rows, ids as they came, names of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import raypq
from raypq import api
from raypq.cli import main
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    DeduplicateJob,
    EncodeJob,
    ExportJob,
    SearchJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.errors import ConfigError, InputError

N, DX = 300, 12
ALONE = ClusterSettings(cluster="none", workers=1)
CLASSES = ["n01", "n02", "n03"]
NAMES = ["tench", "goldfish", "großer Hai"]


@pytest.fixture(scope="module", params=["int", "text"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """features/ in two shards, classes.parquet, model, codes, predictions, found and groups."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    E = rng.standard_normal((3, DX)).astype(np.float32)
    X = (E[np.arange(N) % 3] + 0.2 * rng.standard_normal((N, DX))).astype(np.float32)
    ids = [10**15 + i if request.param == "int" else f"a/ü {i}" for i in range(N)]
    labels = [CLASSES[i % 3] for i in range(N)]
    (root / "features").mkdir()
    for part in (slice(0, 170), slice(170, N)):
        table = {"id": ids[part], "feature": arrays.fixed_list(X[part]), "label": labels[part]}
        pq.write_table(pa.table(table), root / "features" / f"{part.start}.parquet")
    pq.write_table(
        pa.table({"class_id": CLASSES, "name": NAMES, "embedding": list(E)}),
        root / "classes.parquet",
    )
    features, model = [str(root / "features")], str(root / "model")
    raypq.train(TrainJob(method="opq", features=features, output=model, where=ALONE,
                         settings={"M": 4, "K": 16, "iterations": 2}))  # fmt: skip
    codes = str(root / "codes")
    raypq.encode(EncodeJob(model=model, features=features, output=codes, where=ALONE))
    raypq.classify(ClassifyJob(codes=codes, classes=str(root / "classes.parquet"), top_k=2,
                               output=str(root / "predictions"), where=ALONE))  # fmt: skip
    raypq.search(SearchJob(codes=codes, queries=features, output=str(root / "found"), top_k=3,
                           where=ALONE))  # fmt: skip
    raypq.deduplicate(DeduplicateJob(codes=codes, threshold=0.3, output=str(root / "groups"),
                                     where=ALONE))  # fmt: skip
    return root


def export(world: Path, kind: str, output: Path, **more: Any) -> dict[str, Any]:
    return api.export(ExportJob(store=str(world / kind), output=str(output), where=ALONE, **more))


def stored(world: Path, kind: str) -> pa.Table:
    from raypq.data.store import snapshot

    shards = snapshot.read(str(world / kind)).shards
    return pa.concat_tables([pq.read_table(world / kind / item.path) for item in shards])


def lines(folder: Path) -> list[dict[str, Any]]:
    """All rows in the order of the files."""
    texts = [path.read_text("utf-8") for path in sorted(folder.glob("*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["codes", "predictions", "found"])
@pytest.mark.parametrize("format", ["jsonl", "parquet", "lance"])
def test_rows_are_those_of_the_store(world, tmp_path, kind, format):  # noqa: A002
    result = export(world, kind, tmp_path / "out", format=format)
    expected = stored(world, kind)
    assert (result["rows"], result["shards"]) == (N, 2)
    if format == "jsonl":
        found = pa.Table.from_pylist(lines(tmp_path / "out"))
    elif format == "parquet":
        found = pq.read_table(tmp_path / "out")
    else:
        lance = pytest.importorskip("lance")
        parts = sorted((tmp_path / "out").glob("*.lance"))
        found = pa.concat_tables([lance.dataset(str(part)).to_table() for part in parts])
    key = "query_id" if kind == "found" else "id"
    order = {name: at for at, name in enumerate(expected.column(key).to_pylist())}
    found = found.take([row for _, row in sorted(
        (order[name], row) for row, name in enumerate(found.column(key).to_pylist())
    )])  # fmt: skip
    for name in found.column_names:
        values = found.column(name).to_pylist()
        if name == "code":
            model = raypq.load_model(str(world / "model"))
            assert np.array(values).shape == (N, model.M)
            packed = np.array(values, np.uint8)
            wanted = np.frombuffer(b"".join(expected.column("code").to_pylist()), np.uint8)
            assert (packed[:, 0::2] | packed[:, 1::2] << 4).reshape(-1).tolist() == wanted.tolist()
        else:
            wanted = expected.column(name).to_pylist()
            if format == "jsonl" and name == "score":
                values = [[np.float32(x) for x in row] for row in values]
            assert values == wanted


@pytest.mark.parametrize("decode", [False, True])
def test_vectors_as_arrays_are_a_layout_that_raypq_reads(world, tmp_path, decode):
    export(world, "codes", tmp_path / "out", format="npy", decode=decode)
    model = raypq.load_model(str(world / "model"))
    arrays_ = sorted((tmp_path / "out").glob("*.npy"))
    X = np.concatenate([np.load(path) for path in arrays_])
    ids = pa.concat_tables([pq.read_table(path.with_suffix(".parquet")) for path in arrays_])
    assert X.dtype == (np.float32 if decode else np.uint8)
    assert set(ids.column_names) == {"id", "label"}
    B = np.stack([row for path in arrays_ for row in np.load(path)]) if not decode else None
    if decode:
        again = tmp_path / "again"
        raypq.train(TrainJob(method="pq", features=[str(tmp_path / "out")], output=str(again),
                             settings={"M": 2, "K": 4}, where=ALONE))  # fmt: skip
        export(world, "codes", tmp_path / "raw", format="npy")
        raw = np.concatenate([np.load(path) for path in sorted((tmp_path / "raw").glob("*.npy"))])
        np.testing.assert_array_equal(X, model.decode(raw))
    else:
        assert B is not None
        assert B.max() < model.K


def test_names_are_added_to_predictions(world, tmp_path):
    export(world, "predictions", tmp_path / "out", format="jsonl",
           classes=str(world / "classes.parquet"))  # fmt: skip
    names = dict(zip(CLASSES, NAMES, strict=True))
    found = lines(tmp_path / "out")
    assert len(found) == N
    for row in found:
        assert row["name"] == [names[name] for name in row["class_id"]]
        assert row["label_name"] == names[row["label"]]


def test_extracted_features(world, tmp_path):
    """A store of features, float16 too."""
    from raypq.data.features import feature_schema
    from raypq.data.storage import Shard
    from raypq.data.store import shard_writer, snapshot

    X = np.arange(12, dtype=np.float16).reshape(3, 4)
    schema = feature_schema(id_type=pa.string(), label=False, width=4, itemsize=2, version=True)
    stored_bytes = arrays.fixed_binary(X.view(np.uint8).reshape(3, -1))
    versions = pa.array([bytes(8)] * 3, pa.binary(8))
    batch = pa.RecordBatch.from_arrays(
        [pa.array(["a", "b", "c"]), stored_bytes, versions], schema=schema
    )
    shard = Shard(index=0, uri="/x", stem="x", size=1, modified="1")
    receipt = shard_writer.write_shard(
        str(tmp_path / "F"), shard, model="m", work="w", schema=schema, batches=[batch], options={}
    )
    snapshot.commit(str(tmp_path / "F"), kind="features", run_id="r", expected=["x"],
                    receipts=[receipt], quarantined=[], summary={})  # fmt: skip
    export(tmp_path, "F", tmp_path / "out", format="npy")
    found = np.load(next((tmp_path / "out").glob("*.npy")))
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, X)


@pytest.mark.parametrize(
    ("kind", "more", "text"),
    [
        ("predictions", {"format": "npy"}, "holds vectors, which a store of predictions"),
        ("groups", {"format": "npy"}, "holds vectors, which a store of groups"),
        ("predictions", {"decode": True}, "decode: for a store of codes"),
        ("codes", {"classes": "classes.parquet"}, "classes: for a store of predictions"),
    ],
)
def test_settings_that_do_not_fit_are_refused(world, tmp_path, kind, more, text):
    more = {key: str(world / value) if key == "classes" else value for key, value in more.items()}
    with pytest.raises(ConfigError, match=text):
        export(world, kind, tmp_path / "out", **more)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_groups(world, tmp_path, format):  # noqa: A002
    result = export(world, "groups", tmp_path / "out", format=format)
    expected = stored(world, "groups").to_pylist()
    assert (result["kind"], result["rows"]) == ("groups", len(expected))
    assert {row["kept"] for row in expected} == {True, False}
    found = (
        lines(tmp_path / "out")
        if format == "jsonl"
        else pq.read_table(tmp_path / "out").to_pylist()
    )
    values = [
        {name: np.float32(x) if isinstance(x, float) else x for name, x in row.items()}
        for row in found
    ]
    assert values == expected


def test_a_null_is_null(tmp_path):
    from raypq.data.storage import Shard
    from raypq.data.store import shard_writer, snapshot

    schema = pa.schema([("id", pa.string()), ("score", pa.float32())])
    batch = pa.RecordBatch.from_pydict({"id": ["a", "b"], "score": [None, 0.1]}, schema=schema)
    shard = Shard(index=0, uri="/x", stem="x", size=1, modified="1")
    receipt = shard_writer.write_shard(
        str(tmp_path / "G"), shard, model="m", work="w", schema=schema, batches=[batch], options={}
    )
    snapshot.commit(str(tmp_path / "G"), kind="groups", run_id="r", expected=["x"],
                    receipts=[receipt], quarantined=[], summary={})  # fmt: skip
    export(tmp_path, "G", tmp_path / "out", format="jsonl")
    assert lines(tmp_path / "out") == [{"id": "a", "score": None}, {"id": "b", "score": 0.1}]


def test_a_folder_with_files_is_refused(world, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.jsonl").touch()
    with pytest.raises(ConfigError, match=r"expected an empty folder, found 1 .* x\.jsonl"):
        export(world, "codes", tmp_path / "out", format="jsonl")


def shown(*words: str) -> str:
    done = CliRunner().invoke(main, ["predictions", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_predictions_are_shown_by_name(world):
    output = shown(str(world / "predictions"), "--classes", str(world / "classes.parquet"),
                   "--limit", "3")  # fmt: skip
    assert len(output.splitlines()) == 3
    assert "(label: " in output
    assert any(name in output for name in NAMES)
    first = stored(world, "predictions").column("id")[200].as_py()
    output = shown(str(world / "predictions"), "--id", str(first))
    assert output.startswith(f"{first}: n0")
    with pytest.raises(InputError, match="1 that it lacks, such as 'nobody'"):
        list(api.predictions(_settings(world, id=["nobody"])))


def _settings(world: Path, **more: Any) -> Any:
    from raypq.config import PredictionsSettings

    return PredictionsSettings(store=str(world / "predictions"), **more)
