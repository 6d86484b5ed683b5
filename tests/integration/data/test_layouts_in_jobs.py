"""Jobs on stores of arrays and Lance datasets give what they give on plain Parquet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypq
from raypq import api
from raypq.config import (
    ClusterSettings,
    EncodeJob,
    ReindexJob,
    RepackJob,
    RetrievalJob,
    SearchJob,
    SplitJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.data.codes import CodeFile
from raypq.data.store import snapshot

ROWS, WIDTH, SHARDS = 300, 16, 3
ALONE = ClusterSettings(cluster="none", workers=1)
Put = Callable[[Path, str, np.ndarray, np.ndarray, np.ndarray], None]


def parquet(folder: Path, name: str, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
    columns = {"id": ids, "feature": arrays.fixed_list(X), "label": labels}
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def npy(folder: Path, name: str, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", X)
    pq.write_table(pa.table({"id": ids, "label": labels}), folder / f"{name}.parquet")


def npz(folder: Path, name: str, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
    np.savez_compressed(folder / f"{name}.npz", feature=X, id=ids, label=labels)


def lance(folder: Path, name: str, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
    columns = {"id": ids, "feature": arrays.fixed_list(X), "label": labels}
    package = pytest.importorskip("lance")
    package.write_dataset(pa.table(columns), str(folder / f"{name}.lance"), mode="overwrite")


def shard(part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(part)
    X = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    labels = rng.integers(0, 4, ROWS)
    X[:, :4] += 3 * np.eye(4, dtype=np.float32)[labels]
    return X, np.arange(ROWS) + 1000 * part, np.array([f"c{label}" for label in labels])


def fill(folder: Path, put: Put) -> Path:
    folder.mkdir()
    for part in range(SHARDS):
        put(folder, f"part-{part}", *shard(part))
    return folder


def codes_by_id(store: Path) -> dict[int, bytes]:
    found = {}
    for receipt in snapshot.read(str(store)).shards:
        for batch in CodeFile.open(str(store / receipt.path)).batches(100):
            found |= {
                i: row.tobytes() for i, row in zip(batch.ids.to_pylist(), batch.B, strict=True)
            }
    return found


def train(features: Path, output: Path) -> str:
    job = TrainJob(
        method="opq",
        features=[str(features)],
        output=str(output),
        settings={"M": 4, "K": 16, "iterations": 2},
        where=ALONE,
    )
    raypq.train(job)
    return job.output


def night(root: Path, model: str, **more: Any) -> ReindexJob:
    """The nightly job of the store ``root/features``."""
    return ReindexJob(
        model=model,
        features=[str(root / "features")],
        codes=str(root / "codes"),
        where=ALONE,
        **more,
    )


@pytest.mark.parametrize("put", [npy, npz, lance])
def test_every_job_reads_it(tmp_path: Path, put: Put) -> None:
    found: dict[str, Any] = {}
    for name, writer in (("plain", parquet), ("other", put)):
        root = tmp_path / name
        root.mkdir()
        features = fill(root / "features", writer)
        model = train(features, root / "model")
        raypq.encode(
            EncodeJob(
                model=model, features=[str(features)], output=str(root / "codes"), where=ALONE
            )
        )
        version = raypq.search(
            SearchJob(
                codes=str(root / "codes"),
                queries=[str(features)],
                top_k=5,
                rerank=20,
                features=[str(features)],
                output=str(root / "near"),
                where=ALONE,
            )
        )
        near = [pq.read_table(root / "near" / receipt.path) for receipt in version.shards]
        figures = api.evaluate_retrieval(
            RetrievalJob(
                codes=str(root / "codes"),
                queries=[str(features)],
                features=[str(features)],
                where=ALONE,
            )
        )
        api.split(
            SplitJob(
                protocol=1,
                features=[str(features)],
                output=str(root / "parts"),
                labelled=5,
                queries=20,
                where=ALONE,
            )
        )
        parts = {
            part: sorted(pq.read_table(root / "parts" / part).column("id").to_pylist())
            for part in ("labelled", "queries", "unlabelled")
        }
        api.repack(RepackJob(features=[str(features)], output=str(root / "fast"), where=ALONE))
        fast = pq.read_table(root / "fast").sort_by("id")
        found[name] = (
            registry_fingerprint(model),
            codes_by_id(root / "codes"),
            pa.concat_tables(near).select(["query_id", "id", "score"]).sort_by("query_id"),
            {key: value for key, value in figures.items() if "map" in key.lower()},
            parts,
            fast.select(["id", "feature", "label"]),
        )
    for plain, other in zip(found["plain"], found["other"], strict=True):
        assert plain == other


def registry_fingerprint(model: str) -> str:
    from raypq.methods import registry

    return registry.load(model).fingerprint


@pytest.mark.parametrize("put", [npy, npz, lance])
def test_a_night_does_what_changed(tmp_path: Path, put: Put) -> None:
    features = fill(tmp_path / "features", put)
    model = train(features, tmp_path / "model")
    job = night(tmp_path, model, max_removed=1)
    assert raypq.reindex(job)["shards"]["new"] == SHARDS
    assert raypq.reindex(job)["shards"]["kept"] == SHARDS
    X, ids, labels = shard(1)
    put(features, "part-1", X[::-1].copy(), ids, labels)
    for path in features.glob("part-2.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    put(features, "part-9", *shard(9))
    counts = raypq.reindex(job)["shards"]
    if put is lance:  # another data file is another shard
        assert (counts["new"], counts["removed"], counts["kept"]) == (2, 2, 1)
    else:
        assert (counts["new"], counts["changed"], counts["removed"], counts["kept"]) == (1, 1, 1, 1)
    raypq.encode(
        EncodeJob(
            model=model, features=[str(features)], output=str(tmp_path / "again"), where=ALONE
        )
    )
    assert codes_by_id(tmp_path / "codes") == codes_by_id(tmp_path / "again")


def test_rows_deleted_from_a_lance_dataset_are_gone_on_the_next_night(tmp_path: Path) -> None:
    package = pytest.importorskip("lance")
    features = fill(tmp_path / "features", lance)
    model = train(features, tmp_path / "model")
    job = night(tmp_path, model)
    raypq.reindex(job)
    before = codes_by_id(tmp_path / "codes")
    package.dataset(str(features / "part-1.lance")).delete("id = 1005")
    assert raypq.reindex(job)["shards"]["changed"] == 1
    del before[1005]
    assert codes_by_id(tmp_path / "codes") == before


@pytest.mark.parametrize("put", [npy, npz])
def test_arrays_on_an_object_store(tmp_path: Path, bucket: str, put: Put) -> None:
    import fsspec

    features = fill(tmp_path / "features", put)
    model = train(features, tmp_path / "model")
    fs = fsspec.filesystem("s3")
    fs.put(str(features), f"{bucket}/features", recursive=True)
    for source, output in ((str(features), "here"), (f"{bucket}/features", "there")):
        raypq.encode(
            EncodeJob(model=model, features=[source], output=str(tmp_path / output), where=ALONE)
        )
    assert codes_by_id(tmp_path / "here") == codes_by_id(tmp_path / "there")


@pytest.mark.parametrize("change", ["metadata", "deleted rows"])
def test_content_is_that_of_all_files(tmp_path: Path, change: str) -> None:
    put = npy if change == "metadata" else lance
    features = fill(tmp_path / "features", put)
    model = train(features, tmp_path / "model")
    job = night(tmp_path, model, compare="content")
    raypq.reindex(job)
    _, ids, labels = shard(1)
    if put is npy:
        table = pa.table({"id": ids + 10_000, "label": labels})
        pq.write_table(table, features / "part-1.parquet")
        expected = set(ids + 10_000)
    else:
        package = pytest.importorskip("lance")
        package.dataset(str(features / "part-1.lance")).delete("id = 1005")
        expected = set(ids) - {1005}
    raypq.reindex(job)
    found = codes_by_id(tmp_path / "codes")
    assert {i for i in found if i >= 1000 and i not in range(2000, 3000)} == expected
    for path in features.glob("part-1.*"):  # other times, the same content
        os.utime(path)
    counts = raypq.reindex(job)["shards"]
    assert counts.get("changed", 0) == 0
    assert codes_by_id(tmp_path / "codes") == found
