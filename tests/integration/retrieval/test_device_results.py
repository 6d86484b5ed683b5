"""Classification, search, duplicates and evaluation on a device: the results of the CPU, bit for
bit, for a store and tables of every metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from devices import DEVICE

from raypq import api
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    DuplicatesJob,
    EncodeJob,
    Metric,
    RetrievalJob,
    SearchJob,
)
from raypq.data import arrays
from raypq.data.store.snapshot import Snapshot
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings

DX, M, K, D, DA, T = 40, 6, 16, 24, 8, 60
METRICS: tuple[Metric, ...] = ("l2", "cosine", "dot")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, codes of three shards, classes with one and with several prototypes, queries."""
    root = tmp_path_factory.mktemp("scoring")
    rng = np.random.default_rng(0)
    tensors = {
        "C": 0.3 * rng.standard_normal((M, K, D // M), dtype=np.float32),
        "P": rng.standard_normal((D, DX), dtype=np.float32) / 6,
        "Q": rng.standard_normal((D, DA), dtype=np.float32) / 3,
    }
    settings = PQZSLSettings(M=M, K=K, normalise="unit", attributes="none")
    PQZSLModel(settings=settings, tensors=tensors, dx=DX, da=DA).save(str(root / "model"))
    names = np.array([f"c{t}" for t in range(T)])
    for part in range(3):
        X = rng.standard_normal((200 + 50 * part, DX), dtype=np.float32)
        X[20:40] = X[:20]  # equal codes
        columns = {"id": np.arange(len(X)) + 1000 * part, "feature": arrays.fixed_list(X)}
        table = pa.table(columns | {"label": names[rng.integers(0, T, len(X))]})
        (root / "rows").mkdir(exist_ok=True)
        pq.write_table(table, root / "rows" / f"{part}.parquet")
    pq.write_table(table.slice(0, 37), root / "queries.parquet")
    E = rng.standard_normal((T, DA), dtype=np.float32)
    several = pa.array(rng.standard_normal((T, 3, DA)).astype(np.float32).tolist())
    for name, column in (
        ("classes", {"embedding": arrays.fixed_list(E)}),
        ("prototypes", {"prototypes": several}),
    ):
        seen = pa.array(np.arange(T) % 3 > 0)
        table = pa.table({"class_id": names, "seen": seen, **column})
        pq.write_table(table, root / f"{name}.parquet")
    job = EncodeJob(
        model=str(root / "model"), features=[str(root / "rows")], output=str(root / "codes"),
        where=where("cpu"),
    )  # fmt: skip
    api.encode(job)
    return root


def where(device: str) -> ClusterSettings:
    """One worker without Ray."""
    settings = ClusterSettings(cluster="none", workers=1)
    return settings.model_copy(update={"device": device})


def rows(store: Path, snapshot: Snapshot) -> list[dict[str, Any]]:
    """All rows of a version, in the order of its shards."""
    return [
        row for shard in snapshot.shards for row in pq.read_table(store / shard.path).to_pylist()
    ]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("table", ["classes", "prototypes"])
@pytest.mark.parametrize("source", ["codes", "features"])
def test_classify(root: Path, tmp_path: Path, source: str, table: str, metric: Metric) -> None:
    given: dict[str, Any] = {"codes": str(root / "codes")}
    if source == "features":
        given = {"features": [str(root / "rows")], "model": str(root / "model")}
    if metric != "l2":
        given |= {"logit_scale": 20.0, "threshold": 0.05}
    results = {}
    for device in (DEVICE, "cpu"):
        output = tmp_path / device.replace(":", "-")
        job = ClassifyJob(
            classes=str(root / f"{table}.parquet"), output=str(output), metric=metric,
            calibration=0.1, top_k=7, where=where(device), **given,
        )  # fmt: skip
        results[device] = rows(output, api.classify(job))
    assert len(results["cpu"]) == 750
    for ours, theirs in zip(results[DEVICE], results["cpu"], strict=True):
        probability = ours.pop("probability", None), theirs.pop("probability", None)
        if probability[0] is not None:  # of float32 products, unlike scores
            np.testing.assert_allclose(*probability, rtol=1e-4)
        accepted = ours.pop("accepted", None), theirs.pop("accepted", None)
        assert str(accepted[0])[:20] == str(accepted[1])[:20]
        assert ours == theirs


@pytest.mark.parametrize("metric", METRICS)
def test_search(root: Path, tmp_path: Path, metric: Metric) -> None:
    results = {}
    for device in (DEVICE, "cpu"):
        output = tmp_path / device.replace(":", "-")
        job = SearchJob(
            codes=str(root / "codes"), queries=[str(root / "queries.parquet")], top_k=30,
            metric=metric, output=str(output), where=where(device),
        )  # fmt: skip
        results[device] = rows(output, api.search(job))
    assert len(results["cpu"]) == 37
    assert results[DEVICE] == results["cpu"]


@pytest.mark.parametrize(("metric", "threshold"), [("l2", 0.6), ("cosine", 0.8), ("dot", 1.0)])
def test_duplicates(root: Path, tmp_path: Path, metric: Metric, threshold: float) -> None:
    results = {}
    for device in (DEVICE, "cpu"):
        output = tmp_path / device.replace(":", "-")
        job = DuplicatesJob(
            codes=str(root / "codes"), threshold=threshold, metric=metric, output=str(output),
            where=where(device),
        )  # fmt: skip
        results[device] = rows(output, api.duplicates(job))
    assert len(results["cpu"]) > 60
    assert results[DEVICE] == results["cpu"]


@pytest.mark.parametrize("metric", METRICS)
def test_evaluate_retrieval(root: Path, metric: Metric) -> None:
    results = []
    for device in (DEVICE, "cpu"):
        job = RetrievalJob(
            codes=str(root / "codes"), queries=[str(root / "queries.parquet")], metric=metric,
            at=(5, 50), where=where(device),
        )  # fmt: skip
        figures = api.evaluate_retrieval(job)
        del figures["run"]
        results.append(figures)
    assert results[0] == results[1]
