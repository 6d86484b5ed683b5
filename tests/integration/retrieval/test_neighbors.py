"""``raypq neighbors``: the exact neighbours of every stored image, itself left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClusterSettings, EncodeJob, NeighborsJob
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.errors import InputError
from raypq.execution.local import LocalExecutor
from raypq.kernels import native
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.retrieval import neighbors

DX, M, K, N = 12, 4, 16, 150
RNG = np.random.default_rng(3)
MODEL = PQModel(
    settings=PQSettings(M=M, K=K),
    tensors={"C": RNG.standard_normal((M, K, DX // M)).astype(np.float32)},
    dx=DX,
)
X = RNG.standard_normal((60, DX)).astype(np.float32)[RNG.integers(0, 60, N)]  # many equal codes
IDS = [f"i{i}" for i in RNG.permutation(N)]


def where(workers: int = 1) -> ClusterSettings:
    return ClusterSettings(cluster="none", workers=workers)


def store(root: Path, parts: int, rows: int = N) -> str:
    return store_of(root, parts, IDS[:rows], X[:rows])


def store_of(root: Path, parts: int, ids: list[str], features: np.ndarray[Any, Any]) -> str:
    (root / "features").mkdir(parents=True)
    table = pa.table({"id": ids, "feature": arrays.fixed_list(features)})
    for part, some in enumerate(np.array_split(np.arange(len(ids)), parts)):
        pq.write_table(table.take(some), root / "features" / f"p{part:03d}.parquet")
    MODEL.save(str(root / "model"))
    job = EncodeJob(
        model=str(root / "model"), features=[str(root / "features")], output=str(root / "codes"),
        where=where(),
    )  # fmt: skip
    api.encode(job)
    return str(root / "codes")


def run(codes: str, output: Path, workers: int = 1, **settings: Any) -> dict[str, Any]:
    """Ids and scores by the id of the image."""
    job = NeighborsJob(codes=codes, output=str(output), where=where(workers), **settings)
    version = api.neighbors(job)
    tables = [pq.read_table(output / receipt.path) for receipt in version.shards]
    rows = pa.concat_tables(tables).to_pylist()
    assert len({row["query_id"] for row in rows}) == len(rows) == version.rows
    return {row["query_id"]: (row["id"], row["score"]) for row in rows}


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_the_nearest_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    B = MODEL.encode(X)
    q = MODEL.decode(B).astype(np.float64)
    score = -((q[:, None] - q[None]) ** 2).sum(axis=2) if metric == "l2" else q @ q.T
    if metric == "cosine":
        length = np.sqrt((q * q).sum(axis=1))
        score = score / np.outer(length, length)
    score = np.round(score, 4)
    monkeypatch.setattr(neighbors, "_QUERIES", 7)
    for name, parts, workers in (("a", 1, 1), ("b", 4, 3)):
        codes = store(tmp_path / name, parts)
        found = run(codes, tmp_path / f"{name}-graph", workers, metric=metric, top_k=5)
        for i, own in enumerate(IDS):
            ids, values = found[own]
            assert own not in ids
            assert len(set(ids)) == 5
            others = [j for j in range(N) if j != i]
            others.sort(key=lambda j: (-score[i, j], IDS[j]))
            wanted = [abs(score[i, j]) if metric == "l2" else score[i, j] for j in others[:5]]
            np.testing.assert_allclose(values, wanted, atol=2e-4)
            equal = [IDS[j] for j in others if (B[j] == B[i]).all()]
            if metric == "l2":  # equal codes come first, by id
                assert ids[: len(equal)] == sorted(equal)[:5]


def test_small_stores_and_reruns(tmp_path: Path) -> None:
    codes = store(tmp_path, 2, rows=4)
    found = run(codes, tmp_path / "graph", top_k=10)
    assert {len(ids) for ids, _ in found.values()} == {3}
    run(codes, tmp_path / "graph", top_k=10)
    assert len(snapshot.versions(str(tmp_path / "graph"))) == 1
    with pytest.raises(InputError, match="two images or more"):
        run(store(tmp_path / "one", 1, rows=1), tmp_path / "none")


def test_all_images_are_searched_at_once_where_the_results_fit_memory() -> None:
    executor = LocalExecutor(memory=1 << 30)
    rows = (1 << 30) // (12 * 101)
    assert neighbors.fits(rows // 3, 100, executor)
    assert not neighbors.fits(rows, 100, executor)


@pytest.mark.skipif(not native.available(), reason="the index is a native kernel")
@pytest.mark.parametrize("top_k", [1, 10, 400])
def test_an_index_finds_what_a_scan_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, top_k: int
) -> None:
    rng = np.random.default_rng(top_k)
    near = rng.standard_normal((80, DX)).astype(np.float32)[rng.integers(0, 80, 4000)]
    near += 0.3 * rng.standard_normal(near.shape).astype(np.float32)
    ids = [f"i{i}" for i in rng.permutation(4000)]
    codes = store_of(tmp_path, 5, ids, near)
    scanned = run(codes, tmp_path / "scanned", metric="l2", top_k=top_k)
    monkeypatch.setattr(neighbors, "_FEW_ROWS", 0)
    monkeypatch.setattr(neighbors, "_INDEXED_QUERIES", 300)
    monkeypatch.setattr(neighbors, "worthwhile", lambda *_: True)
    monkeypatch.setattr(neighbors, "topk", None)  # nothing is scanned
    for workers in (1, 3):
        assert run(codes, tmp_path / f"{workers}", workers, metric="l2", top_k=top_k) == scanned
    monkeypatch.setattr(neighbors, "_MOST", 1.0)  # not for all images at once
    assert run(codes, tmp_path / "each", 2, metric="l2", top_k=top_k) == scanned
    monkeypatch.undo()
    monkeypatch.setattr(neighbors, "_FEW_ROWS", 0)
    monkeypatch.setattr(neighbors, "worthwhile", lambda *_: False)
    with caplog.at_level("INFO"):
        assert run(codes, tmp_path / "again", metric="l2", top_k=top_k) == scanned
    assert "all pairs are compared" in caplog.text
