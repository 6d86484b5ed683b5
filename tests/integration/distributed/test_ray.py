"""The stages on Ray give what they give without it, and say what is wrong."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypq
from raypq import api
from raypq.config import (
    ClassifyJob,
    ClusterJob,
    ClusterSettings,
    Columns,
    DeduplicateJob,
    DuplicatesJob,
    EncodeJob,
    NeighborsJob,
    RepackJob,
    SearchJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.data.storage import stem_of
from raypq.data.store import snapshot
from raypq.data.store.sources import open_sources
from raypq.data.survey import survey
from raypq.errors import JobError, ShardFailure
from raypq.methods import registry
from raypq.methods.base import TrainingSetInfo
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.training.dataset import TrainTask
from raypq.stages.training.shard_groups import ShardGroup
from raypq.stages.training.train import TrainWorker, run_pass

pytestmark = pytest.mark.ray
ALONE = ClusterSettings(cluster="none", workers=1)
TWO = ClusterSettings(cluster="local", workers=2)
DX, SEEN, CLASSES = 24, 16, 20
ROWS = (310, 40, 1, 180, 0, 260, 90)  # of the shards
SETTINGS = {
    "pqzsl": {"M": 8, "K": 16, "iterations": 3, "polish": 1, "seed": 3},
    "opq": {"M": 4, "K": 32, "iterations": 4, "seed": 3},
}


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """One Ray for all of these; it has room for four workers, the machine may have fewer CPUs."""
    from raypq.distributed.cluster import connect

    with connect(ClusterSettings(cluster="local", workers=4)):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ray")
    rng = np.random.default_rng(1)
    E = rng.standard_normal((CLASSES, 10)).astype(np.float32)
    centres = E @ rng.standard_normal((10, DX))
    names = np.array([f"c{i:02d}" for i in range(CLASSES)])
    columns = {
        "class_id": names,
        "name": names,
        "embedding": arrays.fixed_list(E),
        "seen": np.arange(CLASSES) < SEEN,
    }
    pq.write_table(pa.table(columns), root / "classes.parquet")
    (root / "features").mkdir()
    for part, n in enumerate(ROWS):
        y = np.arange(n) % SEEN
        X = (centres[y] + rng.standard_normal((n, DX))).astype(np.float32)
        write(root / "features" / f"part-{part}.parquet", X, [f"{part}-{i}" for i in range(n)], y)
    return root


def write(path: Path, X: np.ndarray, ids: list[str], y: np.ndarray) -> None:
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "feature": arrays.fixed_list(X),
            "label": pa.array([f"c{i:02d}" for i in y], pa.string()),
        }
    )
    pq.write_table(table, path, row_group_size=128)


def training(data: Path, method: str, output: Path, where: ClusterSettings) -> TrainJob:
    return TrainJob(
        method=method,
        features=[str(data / "features")],
        classes=str(data / "classes.parquet") if method == "pqzsl" else None,
        output=str(output),
        settings=SETTINGS[method],
        where=where,
    )


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("model") / "m"
    raypq.train(training(data, "pqzsl", output, ALONE))
    return str(output)


@pytest.mark.parametrize("method", SETTINGS)
def test_one_fingerprint_for_any_number_of_workers(data: Path, tmp_path: Path, method: str) -> None:
    found = {}
    for workers in (0, 1, 2, 4):
        where = ClusterSettings(cluster="local" if workers else "none", workers=workers or 2)
        trained = raypq.train(training(data, method, tmp_path / str(workers), where))
        found[workers] = trained.summary["fingerprint"]
    assert len(set(found.values())) == 1, found


def hashes(version: snapshot.Snapshot) -> list[tuple[str, int, str]]:
    return [(receipt.shard, receipt.rows, receipt.sha256) for receipt in version.shards]


def test_codes_and_predictions_equal_those_without_ray(
    data: Path, model: str, tmp_path: Path
) -> None:
    features = [str(data / "features")]
    made = {}
    for name, where in (("none", ALONE), ("ray", TWO)):
        codes, out = str(tmp_path / name / "codes"), str(tmp_path / name / "predictions")
        encoded = raypq.encode(EncodeJob(model=model, features=features, output=codes, where=where))
        classified = raypq.classify(
            ClassifyJob(
                model=model,
                codes=codes,
                classes=str(data / "classes.parquet"),
                top_k=3,
                output=out,
                where=where,
            )
        )
        assert [receipt.rows for receipt in encoded.shards] == list(ROWS)
        made[name] = hashes(encoded), hashes(classified), classified.summary["result"]
    assert made["none"] == made["ray"]


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    """The store with two bad shards among the good ones."""
    folder = tmp_path / "damaged"
    shutil.copytree(data / "features", folder)
    (folder / "part-1b.parquet").write_bytes(b"PAR1 and nothing else")
    X = np.full((5, DX), np.nan, np.float32)
    write(folder / "part-3b.parquet", X, list("abcde"), np.zeros(5, int))
    return folder


def test_relative_paths_are_those_of_the_driver(
    data: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers were started in another folder, as those of a cluster are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "features").symlink_to(data / "features")
    encode = EncodeJob(model="model", features=["features"], output="codes", where=TWO)
    assert raypq.encode(encode).rows == sum(ROWS)
    api.repack(RepackJob(features=["features"], output="repacked", where=TWO))
    assert sum(survey(open_sources(["repacked"])).rows) == sum(ROWS)
    classes = str(data / "classes.parquet")
    raypq.classify(ClassifyJob(codes="codes", classes=classes, output="predictions", where=TWO))
    assert snapshot.read("predictions").rows == sum(ROWS)


def test_bad_shards_fail_after_the_good_ones_and_all_are_named(
    damaged: Path, model: str, tmp_path: Path
) -> None:
    output = tmp_path / "codes"
    job = EncodeJob(model=model, features=[str(damaged)], output=str(output), where=TWO)
    with pytest.raises(JobError) as caught:
        raypq.encode(job)
    assert caught.value.done == len(ROWS)
    named = sorted(Path(failure.shard).name for failure in caught.value.failures)
    assert named == ["part-1b.parquet", "part-3b.parquet"]
    assert all(failure.bad_input for failure in caught.value.failures)
    assert "NaN or Inf" in str(caught.value)
    assert not snapshot.versions(str(output)), "a failed job made a version"
    good = {path.name.split(".")[0] for path in (output / "data").glob("*.parquet")}
    assert good == {stem_of(str(damaged / f"part-{part}.parquet")) for part in range(len(ROWS))}


def test_bad_shards_can_be_set_aside(damaged: Path, model: str, tmp_path: Path) -> None:
    job = EncodeJob(
        model=model,
        features=[str(damaged)],
        output=str(tmp_path / "codes"),
        where=TWO,
        on_bad_shard="quarantine",
    )
    version = raypq.encode(job)
    assert version.rows == sum(ROWS)
    bad = [Path(item.uri).name for item in version.quarantined]
    assert bad == ["part-1b.parquet", "part-3b.parquet"]
    assert "part-3b.parquet" in version.quarantined[1].reason


Pass = Callable[[], tuple[list[Any], list[Any]]]


@contextmanager
def two_trainers(folder: Path, cache_bytes: int) -> Iterator[Pass]:
    """Two Ray workers, both there; each call is a pass: the rows it samples, and failures."""
    from raypq.distributed.cluster import RayExecutor

    found = survey(open_sources([str(folder)]))
    method = registry.create("pq", {"M": 4, "K": 16})
    starts = [0, *accumulate(found.rows)]
    state = method.begin(TrainingSetInfo(N=starts[-1], dx=DX))
    tasks = [
        TrainTask(shard=shard, row=row, rows=rows)
        for shard, row, rows in zip(found.shards, starts, found.rows, strict=False)
    ]
    groups = [ShardGroup(tasks=(task,)) for task in tasks]
    with RayExecutor(TWO).start_workers(
        TrainWorker, method, Columns(), DX, None, cache_bytes, stage="train"
    ) as pool:
        decoy = replace(tasks[0], shard=replace(tasks[0].shard, uri=f"{folder}-decoy.parquet"))
        while len(pool.ready) < 2:  # or the first one might do all of a pass
            list(pool.map(TrainWorker.accumulate, [ShardGroup(tasks=(decoy,))], state))

        def run() -> tuple[list[Any], list[Any]]:
            failures: list[ShardFailure] = []
            stats = run_pass(
                pool, groups, state, "pass", on_bad_shard="quarantine", failures=failures
            )
            return [part.tolist() for part in stats.rows.get("sample", [])], failures

        yield run


@pytest.fixture
def four_shards(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "four"
    folder.mkdir()
    for part in (0, 1, 3, 5):
        shutil.copy(data / "features" / f"part-{part}.parquet", folder)
    return folder


def test_features_that_fit_are_read_once(four_shards: Path) -> None:
    with two_trainers(four_shards, cache_bytes=1 << 20) as run:
        first, failures = run()
        assert sum(map(len, first)) == sum(ROWS[part] for part in (0, 1, 3, 5))
        shutil.rmtree(four_shards)  # whoever opens a shard again now fails
        for _ in range(3):
            assert run() == (first, failures) == (first, [])


def test_features_that_do_not_fit_are_read_again(four_shards: Path) -> None:
    with two_trainers(four_shards, cache_bytes=0) as run:
        first = run()
        assert run() == first
        shutil.rmtree(four_shards)
        with pytest.raises(JobError, match=r"4 shard\(s\) failed, 0 finished"):
            run()


def test_a_small_cache_gives_the_same_model(data: Path, tmp_path: Path) -> None:
    job = training(data, "opq", tmp_path / "large", ALONE)
    large = raypq.train(job)
    job = training(data, "opq", tmp_path / "small", TWO)
    small = raypq.train(job.model_copy(update={"cache_bytes": 20_000}))
    assert small.summary["fingerprint"] == large.summary["fingerprint"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"gpus_per_worker": 1.0}, "1 CPU and 1 GPU"),
        ({"threads": 4096}, "4096 CPU"),
        ({"memory_per_worker": 5000}, "1 CPU and 5000 GiB of memory"),
    ],
)
def test_what_no_node_has_is_said_at_once(asked: dict[str, Any], told: str) -> None:
    from raypq.distributed.cluster import ClusterError, RayExecutor

    start = time.monotonic()
    settings = ClusterSettings(cluster="local", workers=1, **asked)
    executor = RayExecutor(settings)
    with (
        pytest.raises(ClusterError, match=f"needs {told}, but no node has that"),
        executor.start_workers(dict, stage="idle"),
    ):
        pass
    assert time.monotonic() - start < settings.start_timeout / 2


TASK = SimpleNamespace(name="a task")
IDLE = partial, isinstance  # makes a worker that every process can import


def idle(worker: Any, task: Any) -> None:
    """Does nothing."""


def test_memory_is_kept_for_workers_and_all_of_them_fit() -> None:
    """By default as much as all workers of the node can have; more for a cache, on request."""
    import ray

    from raypq.distributed.cluster import RayExecutor

    (node,) = (node["Resources"] for node in ray.nodes() if node["Alive"])
    all_of_them = RayExecutor(ClusterSettings(cluster="local", workers=4))
    assert 0 < 4 * all_of_them.worker_memory <= node["memory"]
    one = RayExecutor(ClusterSettings(cluster="auto", workers=1))
    own = RayExecutor(ClusterSettings(cluster="local", workers=1, memory_per_worker=0.25))
    for executor, cache, least in (
        (own, 0, 1 << 28),
        (one, 6 << 30, min(6 << 30, node["memory"] / 2)),
    ):
        with executor.start_workers(*IDLE, stage="idle", cache=cache) as pool:
            list(pool.map(idle, [TASK]))
            kept = node["memory"] - ray.available_resources()["memory"]
        assert kept >= least * 0.99


def test_the_wait_for_a_first_worker_is_a_setting_and_says_what_for() -> None:
    from raypq.distributed.cluster import ClusterError, RayExecutor

    full = RayExecutor(ClusterSettings(cluster="local", workers=1, threads=4))
    late = RayExecutor(ClusterSettings(cluster="local", workers=2, threads=2, start_timeout=3))
    with full.start_workers(*IDLE, stage="idle") as pool:
        list(pool.map(idle, [TASK]))
        with (
            pytest.raises(ClusterError) as caught,
            late.start_workers(*IDLE, stage="idle") as waiting,
        ):
            list(waiting.map(idle, [TASK]))
    said = str(caught.value)
    assert "no worker started within 3 s. Each of 2 needs 2 CPU and " in said
    assert "the cluster has 4 CPU and 0 GPU and " in said
    assert "of which 0 CPU" in said
    assert "--start-timeout" in said


def test_an_address_where_nothing_listens_is_told_within_seconds() -> None:
    from raypq.distributed.cluster import ClusterError, check_address

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"no-such-host.invalid:{port}"):
        start = time.monotonic()
        with pytest.raises(ClusterError, match="cannot reach the Ray cluster") as caught:
            check_address(address)
        assert address in str(caught.value)
        assert "ray status --address" in str(caught.value)
        assert time.monotonic() - start < 10


def test_an_address_that_is_not_ray_is_told_within_seconds() -> None:
    from raypq.distributed.cluster import ClusterError, check_address

    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="not a Ray head"):
            check_address(address)
    assert time.monotonic() - start < 15


def test_a_cluster_that_answers_passes(local_ray: None) -> None:
    import ray

    from raypq.distributed.cluster import check_address

    check_address(ray.get_runtime_context().gcs_address)


# The numbers of shards, and the workers that hold them.
LAYOUTS = ((2, ALONE), (60, TWO), (2, TWO.model_copy(update={"workers": 4})))


def coded_layouts(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """One set of 600 codes in shards of every layout: its folder, and what its jobs share."""
    rng = np.random.default_rng(6)
    C = np.round(rng.standard_normal((4, 16, 3)) * 2).astype(np.float32) / 2  # ties abound
    model = PQModel(settings=PQSettings(M=4, K=16), tensors={"C": C}, dx=12)
    model.save(str(tmp_path / "model"))
    X = rng.standard_normal((600, 12)).astype(np.float32)
    rows = pa.table({"id": rng.permutation(600), "feature": arrays.fixed_list(X)})
    for parts, where in LAYOUTS:
        root = tmp_path / f"{parts}-{where.workers}"
        (root / "features").mkdir(parents=True)
        for part, some in enumerate(np.array_split(np.arange(600), parts)):
            pq.write_table(rows.take(some), root / "features" / f"p{part:03d}.parquet")
        raypq.encode(
            EncodeJob(
                model=str(tmp_path / "model"),
                features=[str(root / "features")],
                output=str(root / "codes"),
                where=ALONE,
            )
        )
        yield root, {"codes": str(root / "codes"), "where": where}


def test_search_and_duplicates_are_the_same_on_ray(tmp_path: Path) -> None:
    Q = np.random.default_rng(7).standard_normal((20, 12)).astype(np.float32)
    queries = {"id": np.arange(20), "feature": arrays.fixed_list(Q)}
    pq.write_table(pa.table(queries), tmp_path / "q.parquet")
    seen = set()
    for root, both in coded_layouts(tmp_path):
        search = SearchJob(
            queries=[str(tmp_path / "q.parquet")], top_k=30, output=str(root / "found"), **both
        )
        pairs = DuplicatesJob(threshold=1.0, output=str(root / "pairs"), **both)
        graph = NeighborsJob(top_k=5, output=str(root / "graph"), **both)
        versions = raypq.search(search), raypq.duplicates(pairs)
        raypq.neighbors(graph)
        clusters = raypq.cluster(ClusterJob(k=20, output=str(root / "clusters"), **both))
        ((centres,),) = clusters.sidecars(str(root / "clusters")).values()
        files = [receipt for version in versions for receipt in version.shards]
        seen.add(tuple(file.sha256 for file in (*files, centres)))
    assert len(seen) == 1


def test_groups_by_nights_are_the_same_on_ray(tmp_path: Path) -> None:
    seen = {groups_by_nights(root, both) for root, both in coded_layouts(tmp_path)}
    assert len(seen) == 1


def groups_by_nights(root: Path, both: dict[str, Any]) -> tuple[Any, ...]:
    """Groups of all codes, by a run on the half of the shards and another on all."""
    codes = str(root / "codes")
    whole = snapshot.read(codes)
    some = whole.shards[: -(-len(whole.shards) // 2)]
    snapshot.commit(
        codes, kind="codes", run_id="less", expected=[item.shard for item in some], receipts=some
    )
    for version in (2, 1):
        job = DeduplicateJob(
            threshold=1.0, version=version, output=str(root / "groups"),
            drop_list=str(root / "drop.txt"), **both,
        )  # fmt: skip
        done = raypq.deduplicate(job)
    (receipt,) = done.shards
    table = pq.read_table(root / "groups" / receipt.path)
    same = table.select(["group_id", "id", "size", "kept", "score"]).to_pydict()
    assert len(table) > 50
    drop = sorted((root / "drop.txt").read_text().split())
    return *(tuple(values) for values in same.values()), tuple(drop), str(done.summary["sizes"])
