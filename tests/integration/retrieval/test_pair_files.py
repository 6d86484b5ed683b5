"""Pairs of near-duplicates in any number: several files, a rerun after a crash, and originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClusterSettings, DeduplicateJob, DuplicatesJob, EncodeJob
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, JobError
from raypq.kernels import native
from raypq.kernels.join import CodeJoin, JoinChoice
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.retrieval import code_blocks
from raypq.stages.retrieval.duplicates import near_duplicates, pair_originals, pair_plan
from raypq.stages.retrieval.duplicates.near_duplicates import PairWorker
from raypq.stages.stores import garbage

DX, M, K, N = 12, 4, 16, 240
RNG = np.random.default_rng(7)
C = RNG.standard_normal((M, K, DX // M)).astype(np.float32)
MODEL = PQModel(settings=PQSettings(M=M, K=K), tensors={"C": C}, dx=DX)
X = RNG.standard_normal((60, DX)).astype(np.float32)[RNG.integers(0, 60, N)]
X += 0.15 * RNG.standard_normal((N, DX)).astype(np.float32)
IDS = [f"i{i}" for i in RNG.permutation(N)]


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("store")
    (root / "features").mkdir()
    rows = pa.table({"id": IDS, "feature": arrays.fixed_list(X)})
    for part, some in enumerate(np.array_split(np.arange(N), 4)):
        pq.write_table(rows.take(some), root / "features" / f"p{part}.parquet", row_group_size=11)
    MODEL.save(str(root / "model"))
    job = EncodeJob(
        model=str(root / "model"), features=[str(root / "features")], output=str(root / "codes"),
        where=ClusterSettings(cluster="none"),
    )  # fmt: skip
    api.encode(job)
    return str(root / "codes")


@pytest.fixture(params=["scan", "join"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How pairs are found, in several tasks."""
    if request.param == "join":
        if not native.available():
            pytest.skip("the join is a native kernel")

        def joined(sample: Any, rows: int, C: Any, *way: Any, **more: Any) -> JoinChoice:
            return JoinChoice(join=CodeJoin.of(C, *way, parts=2), seconds=0.0, pairs=0.0)

        monkeypatch.setattr(pair_plan, "_FEW_ROWS", 0)
        monkeypatch.setattr(pair_plan, "choose", joined)
    monkeypatch.setattr(pair_plan, "_JOINED_ROWS", 70)
    monkeypatch.setattr(pair_plan, "_SCANNED_ROWS", 70)
    return str(request.param)


def run(codes: str, output: Path, **settings: Any) -> tuple[pa.Table, Snapshot]:
    job = DuplicatesJob(
        codes=codes, output=str(output), where=ClusterSettings(cluster="none"), **settings
    )
    version = api.duplicates(job)
    return pa.concat_tables([pq.read_table(output / item.path) for item in version.shards]), version


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def test_several_files(codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(codes, tmp_path / "one", threshold=3.0)
    monkeypatch.setattr(near_duplicates, "_FILE_PAIRS", 50)
    many, version = run(codes, tmp_path / "many", threshold=3.0)
    assert 4 <= len(version.shards) == -(-len(whole) // 50)
    assert sorted(rows_of(many)) == rows_of(whole)
    homes: dict[str, set[str]] = {}
    for receipt in version.shards:
        pairs = rows_of(pq.read_table(tmp_path / "many" / receipt.path))
        assert pairs == sorted(pairs)
        for a, _, _ in pairs:
            homes.setdefault(a, set()).add(receipt.shard)
    assert all(len(files) == 1 for files in homes.values())
    assert run(codes, tmp_path / "many", threshold=3.0)[1].version == version.version


def test_a_rerun_goes_on(codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare, done = PairWorker.compare, []

    def failing(self: PairWorker, task: Any, groups: Any) -> Any:
        if len(done) >= 3:
            raise OSError("the disk is gone")
        part = compare(self, task, groups)
        done.append(task.key)
        return part

    monkeypatch.setattr(PairWorker, "compare", failing)
    with pytest.raises(JobError):
        run(codes, tmp_path / "out", threshold=3.0)
    first = list(done)
    garbage_of = tmp_path / "out" / "data"
    assert len([*garbage_of.iterdir()]) >= 3

    def counting(self: PairWorker, task: Any, groups: Any) -> Any:
        done.append(task.key)
        return compare(self, task, groups)

    monkeypatch.setattr(PairWorker, "compare", counting)
    found, version = run(codes, tmp_path / "out", threshold=3.0)
    assert len({*done}) == len(done) > len(first) >= 3
    monkeypatch.setattr(PairWorker, "compare", compare)
    assert found.equals(run(codes, tmp_path / "fresh", threshold=3.0)[0])
    left = {path.name for path in garbage_of.iterdir()}
    assert left == {Path(item.path).name for item in version.shards}
    assert not garbage.collect(tmp_path / "out", older_than_days=0).files


def test_the_number_of_pairs(codes: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"at most 100 of the .*max_pairs") as raised:
        run(codes, tmp_path / "out", threshold=30.0, max_pairs=100)
    assert "part-" not in str(raised.value)
    assert not snapshot.versions(str(tmp_path / "out"))
    everything, _ = run(codes, tmp_path / "all", threshold=1e9)
    assert len(everything) == N * (N - 1) // 2
    assert "are many" in caplog.text


def test_a_sample_refuses_before_the_search(
    codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def choose(sample: Any, rows: int, C: Any, *way: Any, **more: Any) -> JoinChoice:
        return JoinChoice(join=None, seconds=0.0, pairs=1e6)

    monkeypatch.setattr(pair_plan, "choose", choose)
    monkeypatch.setattr(pair_plan, "_FEW_ROWS", 0)
    monkeypatch.setattr(pair_plan, "_FEW_PAIRS", 100)
    monkeypatch.setattr(PairWorker, "compare", None)
    with pytest.raises(InputError, match=r"about 1e\+06 by a sample"):
        run(codes, tmp_path / "out", threshold=3.0)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_originals_decide(
    codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    threshold = {"l2": 1.2, "cosine": 0.95, "dot": 9.0}[metric]
    features = [str(Path(codes).parent / "features")]
    settings: dict[str, Any] = {"threshold": threshold, "metric": metric}
    by_codes, _ = run(codes, tmp_path / "codes", **settings)
    found, version = run(codes, tmp_path / "out", rerank=True, features=features, **settings)
    x = dict(zip(IDS, X.astype(np.float64), strict=True))

    def score(a: str, b: str) -> float:
        if metric == "l2":
            return float(((x[a] - x[b]) ** 2).sum())
        length = np.sqrt((x[a] @ x[a]) * (x[b] @ x[b])) if metric == "cosine" else 1.0
        return float(x[a] @ x[b] / length)

    wanted = [(a, b, score(a, b)) for a, b, _ in rows_of(by_codes)]
    wanted = [w for w in wanted if (w[2] <= threshold if metric == "l2" else w[2] >= threshold)]
    assert [row[:2] for row in rows_of(found)] == [row[:2] for row in wanted]
    np.testing.assert_allclose(found["score"], [row[2] for row in wanted], rtol=1e-6)
    assert 10 < len(found) < len(by_codes)
    told = version.summary["rerank"]
    assert told["candidates"] == len(by_codes)
    assert told["precision"] == pytest.approx(len(found) / len(by_codes))
    monkeypatch.setattr(pair_originals, "_IN_MEMORY", 0)
    monkeypatch.setattr(pair_originals, "_PAIRS", 7)
    disk, _ = run(codes, tmp_path / "disk", rerank=True, features=features, **settings)
    assert disk.equals(found)
    job = DeduplicateJob(
        codes=codes, output=str(tmp_path / "groups"), rerank=True, features=features,
        where=ClusterSettings(cluster="none"), **settings,
    )  # fmt: skip
    groups = api.deduplicate(job)
    table = pq.read_table(tmp_path / "groups" / groups.shards[0].path)
    assert {*table["id"].to_pylist()} == {name for row in wanted for name in row[:2]}
    links = table["link_score"].drop_null().to_numpy()
    assert (links <= threshold).all() if metric == "l2" else (links >= threshold).all()


def test_originals_that_are_missing(codes: str, tmp_path: Path) -> None:
    features = tmp_path / "features"
    features.mkdir()
    for path in (Path(codes).parent / "features").iterdir():
        if path.stem != "p2":
            pq.write_table(pq.read_table(path), features / path.name)
    with pytest.raises(InputError, match="p2"):
        run(codes, tmp_path / "out", threshold=1.0, rerank=True, features=[str(features)])
    with pytest.raises(ConfigError, match="features"):
        run(codes, tmp_path / "out", threshold=1.0, rerank=True)
    with pytest.raises(ConfigError, match="two stores"):
        run(codes, tmp_path / "out", threshold=1.0, rerank=True, features=["x"], against="y")


def test_ids_of_more_than_an_array_holds(
    codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strings of more than 2 GiB are of another type in memory, and none in the result."""
    monkeypatch.setattr(pair_plan, "_JOINED_ROWS", 1 << 20)
    monkeypatch.setattr(pair_plan, "_SCANNED_ROWS", 1 << 20)
    wanted, _ = run(codes, tmp_path / "a", threshold=3.0)
    monkeypatch.setattr(code_blocks, "_STRING_BYTES", 100)
    found, _ = run(codes, tmp_path / "b", threshold=3.0)
    assert found.equals(wanted)
    assert found.schema.field("id_a").type == pa.string()
