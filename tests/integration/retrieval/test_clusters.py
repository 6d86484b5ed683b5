"""``raypq cluster``: k-means of stored codes, the same however they are divided."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.numpy import save as save_tensors

from raypq import api
from raypq.cli import main
from raypq.config import (
    ClusterJob,
    ClusterSettings,
    EncodeJob,
    ExportJob,
    Metric,
    TrainJob,
    WorkerSettings,
)
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, JobError, ModelError
from raypq.methods.pq import PQModel, PQSettings
from raypq.methods.support.kmeans import CodeRows
from raypq.stages.retrieval import cluster as stage
from raypq.stages.retrieval.cluster_worker import ClusterWorker
from raypq.stages.stores import garbage, model_store, versions

DX, M, K, N = 12, 4, 16, 400
RNG = np.random.default_rng(2)


def quantizer(seed: int, metric: Metric = "l2") -> PQModel:
    C = np.random.default_rng(seed).standard_normal((M, K, DX // M)).astype(np.float32)
    return PQModel(settings=PQSettings(M=M, K=K, metric=metric), tensors={"C": C}, dx=DX)


MODEL = quantizer(2)
X = 2 * RNG.standard_normal((9, DX)).astype(np.float32)[RNG.integers(0, 9, N)]
X += 0.4 * RNG.standard_normal((N, DX)).astype(np.float32)
IDS = [f"i{i}" for i in RNG.permutation(N)]


def where(workers: int = 1, threads: int = 1) -> ClusterSettings:
    return ClusterSettings(cluster="none", workers=workers, threads=threads)


def encode(root: Path, model: PQModel = MODEL) -> str:
    model.save(str(root / "model"))
    job = EncodeJob(
        model=str(root / "model"), features=[str(root / "features")], output=str(root / "codes"),
        where=where(),
    )  # fmt: skip
    api.encode(job)
    return str(root / "codes")


def store(
    root: Path,
    parts: int,
    rows: Sequence[int] | np.ndarray = range(N),
    model: PQModel = MODEL,
) -> str:
    """Codes of these rows in several shards."""
    for part, some in enumerate(np.array_split(np.asarray(rows), parts)):
        write(root, f"p{part:03d}", some)
    return encode(root, model)


def write(root: Path, name: str, rows: np.ndarray) -> None:
    (root / "features").mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": [IDS[i] for i in rows], "feature": arrays.fixed_list(X[rows])})
    pq.write_table(table, root / "features" / f"{name}.parquet")


def run(codes: str, output: Path, **settings: Any) -> Snapshot:
    settings = {"k": 9, "where": where()} | settings
    return api.cluster(ClusterJob(codes=codes, output=str(output), **settings))


def images(output: Path, version: Snapshot) -> dict[str, tuple[int, float]]:
    """Cluster and score by id."""
    tables = [pq.read_table(output / receipt.path) for receipt in version.shards]
    rows = pa.concat_tables(tables).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == version.rows
    return {row["id"]: (row["cluster"], row["score"]) for row in rows}


def table(output: Path, version: Snapshot) -> pa.Table:
    """The table of clusters."""
    ((sidecar,),) = version.sidecars(str(output)).values()
    return pq.read_table(output / sidecar.path)


def centres(output: Path, version: Snapshot) -> np.ndarray:
    return np.array(table(output, version)["centre"].to_pylist(), np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_clusters_are_the_same_however_codes_are_divided(tmp_path: Path, metric: str) -> None:
    divisions = [
        (1, range(N), where()),
        (1, range(N), where(threads=3)),
        (7, RNG.permutation(N), where(workers=3)),
        (60, RNG.permutation(N), where(workers=2, threads=2)),
    ]
    first = None
    for number, (parts, rows, place) in enumerate(divisions):
        codes = store(tmp_path / str(number), parts, rows)
        out = tmp_path / f"out{number}"
        version = run(codes, out, metric=metric, where=place)
        found = centres(out, version).tobytes(), images(out, version)
        first = first or found
        assert found == first
        assert version.summary["centres"]["mean_distance"] > 0
    C = centres(out, version).astype(np.float64)
    q = MODEL.decode(MODEL.encode(X)).astype(np.float64)
    if metric == "cosine":
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        np.testing.assert_allclose(np.linalg.norm(C, axis=1), 1, atol=1e-6)
    distance = ((q[:, None] - C[None]) ** 2).sum(axis=2)
    cluster, score = np.array([found[1][one] for one in IDS]).T
    np.testing.assert_array_equal(cluster, distance.argmin(axis=1))
    value = 1 - distance.min(axis=1) / 2 if metric == "cosine" else distance.min(axis=1)
    np.testing.assert_allclose(score, value, atol=1e-5)
    rows = table(out, version)
    size = np.bincount(cluster.astype(int), minlength=9)
    assert rows["size"].to_pylist() == size.tolist()
    mean = np.bincount(cluster.astype(int), score, minlength=9) / size
    np.testing.assert_allclose(rows["mean_score"].to_numpy(), mean, rtol=1e-6)
    assert version.summary["mean_score"] == pytest.approx(score.mean())
    other = run(codes, tmp_path / "seed", metric=metric, seed=1)
    assert centres(tmp_path / "seed", other).tobytes() != first[0]


def test_more_passes_are_better_until_they_help_no_more(tmp_path: Path) -> None:
    codes = store(tmp_path, 3)
    found = [run(codes, tmp_path / str(n), iterations=n).summary for n in (1, 2, 100)]
    scores = [summary["mean_score"] for summary in found]
    assert scores == sorted(scores, reverse=True)
    assert [summary["centres"]["iterations"] for summary in found[:2]] == [1, 2]
    assert 2 < found[2]["centres"]["iterations"] < 50


def test_the_second_night_assigns_new_shards_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "raypq")
    codes, out = store(tmp_path, 4, range(300)), tmp_path / "out"
    first = run(codes, out)
    assert run(codes, out) == first
    assert run(codes, out, refit=True) == first  # of the same codes
    write(tmp_path, "q", np.arange(300, N))
    (tmp_path / "features" / "p001.parquet").unlink()
    encode(tmp_path)
    second = run(codes, out)
    assert "are used again (--refit, refit: true" in caplog.text
    kept = {receipt.path for receipt in first.shards} & {item.path for item in second.shards}
    assert len(kept) == 3
    assert second.summary["worked"] == second.summary["worked"] | {"shards": 1, "images": 100}
    np.testing.assert_array_equal(centres(out, first), centres(out, second))
    assert sum(table(out, second)["size"].to_pylist()) == second.rows == 325
    assert second.summary["centres"] == first.summary["centres"]
    third = run(codes, out, refit=True)
    assert not kept & {receipt.path for receipt in third.shards}
    assert third.summary["centres"]["codes_version"] == 2
    fresh = run(codes, tmp_path / "fresh")
    np.testing.assert_array_equal(centres(out, third), centres(tmp_path / "fresh", fresh))
    assert run(codes, out).version == 3
    assert run(codes, out, k=8).summary["k"] == 8  # other settings, other centres


def test_a_fit_goes_on_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, out = store(tmp_path, 4), tmp_path / "out"
    expected = run(codes, tmp_path / "whole")
    passes = expected.summary["centres"]["iterations"]
    moved, calls = CodeRows.moved, []

    def counted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return moved(*args)

    monkeypatch.setattr(CodeRows, "moved", counted)
    with pytest.raises(KeyboardInterrupt):
        run(codes, out)
    assert not snapshot.versions(str(out))
    version = run(codes, out)
    assert len(calls) == passes + 1
    assert centres(out, version).tobytes() == centres(tmp_path / "whole", expected).tobytes()
    assert [path.name[:8] for path in (out / "sidecars").iterdir()] == ["clusters"]


def test_files_are_kept_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, out = store(tmp_path, 4), tmp_path / "out"
    write_shard = ClusterWorker.write

    def broken(worker: Any, task: Any, centres: Any) -> Any:
        if "p002" in task.name:
            raise InputError(task.name, expected="a disk", found="none")
        return write_shard(worker, task, centres)

    with monkeypatch.context() as patched:
        patched.setattr(ClusterWorker, "write", broken)
        with pytest.raises(JobError, match="p002"):
            run(codes, out)
    kept = {path.name for path in (out / "data").iterdir()}
    assert len(kept) == 3
    monkeypatch.setattr(stage, "sample_size", None)  # centres are not sought again
    version = run(codes, out)
    assert kept < {path.name for path in (out / "data").iterdir()}
    assert version.summary["worked"]["shards"] == 1
    assert sum(table(out, version)["size"].to_pylist()) == N


def test_lost_centres_are_found_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    codes, out = store(tmp_path, 2), tmp_path / "out"
    first = run(codes, out)
    before = centres(out, first)
    ((sidecar,),) = first.sidecars(str(out)).values()
    (out / sidecar.path).unlink()
    with pytest.raises(InputError, match="no such file"):
        versions.verify(str(out))
    second = run(codes, out)
    assert "cannot be used again" in caplog.text
    np.testing.assert_array_equal(before, centres(out, second))
    assert second.shards == first.shards


def test_centres_of_an_earlier_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    codes, out = store(tmp_path, 4, range(300)), tmp_path / "out"
    first = run(codes, out)
    write(tmp_path, "q", np.arange(300, N))
    encode(tmp_path)
    second = run(codes, out)
    ((sidecar,),) = second.sidecars(str(out)).values()
    (out / sidecar.path).unlink()
    third = run(codes, out)
    assert "cannot be used again" in caplog.text
    np.testing.assert_array_equal(centres(out, first), centres(out, third))
    assert third.shards == second.shards
    assert third.version == 3  # with a table again


def test_a_state_of_something_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    codes, out = store(tmp_path, 2), tmp_path / "out"
    expected = run(codes, tmp_path / "whole")
    fit = expected.summary["centres"]["fit"]
    (out / "sidecars").mkdir(parents=True)
    right = centres(tmp_path / "whole", expected)
    for C in (np.zeros((3, 4), np.float32), np.full_like(right, np.nan)):
        state = {"C": C, "errors": np.array([5.0])}
        (out / "sidecars" / f"fit-{fit}.safetensors").write_bytes(save_tensors(state))
        version = run(codes, out)
        assert "not a state to go on from" in caplog.text
        assert centres(out, version).tobytes() == right.tobytes()
        shutil.rmtree(out)
        (out / "sidecars").mkdir(parents=True)


def test_a_store_like_any_other(tmp_path: Path) -> None:
    codes, out = store(tmp_path, 3), tmp_path / "out"
    version = run(codes, out)
    assert versions.verify(str(out), sha256=True)["files"] == 3
    (line,) = versions.listing(str(out))
    assert (line["kind"], line["images"]) == ("clusters", N)
    (out / "sidecars" / f"fit-{'0' * 32}.safetensors").write_bytes(b"of a crash")
    future = {"older_than_days": -1.0, "keep": 1}
    found = garbage.collect(str(out), **future)
    assert [path for path in found.files if path.startswith("sidecars")] == [
        f"sidecars/fit-{'0' * 32}.safetensors"
    ]
    both: dict[str, Any] = {"store": str(out), "where": WorkerSettings(cluster="none")}
    api.export(ExportJob(output=str(tmp_path / "lines"), format="jsonl", **both))
    lines = [
        json.loads(line)
        for path in (tmp_path / "lines").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {line["id"]: line["cluster"] for line in lines} == {
        one: cluster for one, (cluster, _) in images(out, version).items()
    }
    with pytest.raises(ConfigError, match="a store of clusters has none of"):
        api.export(ExportJob(output=str(tmp_path / "npy"), format="npy", **both))
    damaged = out / version.shards[0].path
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(InputError, match="then run raypq cluster again"):
        versions.verify(str(out))


def test_the_command(tmp_path: Path) -> None:
    arguments = ["--codes", store(tmp_path, 2), "--k", "5", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["cluster", *arguments, "--cluster", "none"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["k"], result["images"], result["empty"]) == (5, N, 0)


def test_what_cannot_be_clustered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, out = store(tmp_path, 2), tmp_path / "out"
    distinct = len(np.unique(MODEL.encode(X), axis=0))
    with pytest.raises(InputError, match=rf"{distinct + 1} \(--k, k\), found {distinct} distinct"):
        run(codes, out, k=distinct + 1)
    with pytest.raises(
        ConfigError, match="key 'k': expected a whole number greater than or equal to 2"
    ):
        run(codes, out, k=1)
    for metric in ("manhattan", "dot"):
        with pytest.raises(ConfigError, match="key 'metric': expected"):
            run(codes, out, metric=metric)
    with pytest.raises(InputError, match="no such store"):
        run(str(tmp_path / "none"), out)
    with pytest.raises(InputError, match="a store of clusters, found one of codes"):
        run(codes, Path(store(tmp_path / "other", 1)))
    run(codes, tmp_path / "clusters")
    with pytest.raises(InputError, match="a code store, found a store of clusters"):
        run(str(tmp_path / "clusters"), out)
    with monkeypatch.context() as patched:
        patched.setattr(PQModel, "stores_classes", True)
        with pytest.raises(ModelError, match="class probabilities"):
            run(codes, out)
    (tmp_path / "empty" / "features").mkdir(parents=True)
    write(tmp_path / "empty", "p", np.arange(0))
    with pytest.raises(InputError, match="an empty store"):
        run(encode(tmp_path / "empty"), out)
    by_dot = store(tmp_path / "dot", 1, model=quantizer(2, "dot"))
    with pytest.raises(ConfigError, match=r"the model's metric is dot; name one of them"):
        run(by_dot, out)
    assert run(by_dot, tmp_path / "l2", metric="l2").rows == N
    other = quantizer(7)
    model_store.save(codes, other)
    shards = snapshot.read(codes).shards
    mixed = [shards[0], shards[1].model_copy(update={"model": other.fingerprint})]
    snapshot.commit(
        codes, kind="codes", run_id="mixed", expected=[one.shard for one in mixed], receipts=mixed
    )
    with pytest.raises(ModelError, match="codes of one model"):
        run(codes, out)
    assert not snapshot.versions(str(out))


def test_as_many_clusters_as_codes(tmp_path: Path) -> None:
    codes = store(tmp_path, 2, range(60))
    B = MODEL.encode(X[:60])
    distinct = len(np.unique(B, axis=0))
    version = run(codes, tmp_path / "out", k=distinct)
    assert version.summary["empty"] == 0
    assert version.summary["mean_score"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cifar10(data_root: Path, tmp_path: Path) -> None:
    """Real features, in clusters without labels: the most frequent label of each cluster is that
    of 69% of the images by l2, and of 78% by cosine; chance is 10%."""
    features, place = [str(data_root / "cifar10" / "features" / "train")], where(workers=2)
    both: dict[str, Any] = {"features": features, "where": place}
    api.train(TrainJob(method="opq", output=str(tmp_path / "model"), settings={"M": 16}, **both))
    api.encode(EncodeJob(model=str(tmp_path / "model"), output=str(tmp_path / "codes"), **both))
    labels = pq.read_table(features[0], columns=["id", "label"]).to_pylist()
    purity = {}
    for metric in ("l2", "cosine"):
        start = time.monotonic()
        out = tmp_path / metric
        found = images(out, run(str(tmp_path / "codes"), out, k=10, metric=metric, where=place))
        seconds = time.monotonic() - start
        counts = np.zeros((10, 10), int)
        names = {name: i for i, name in enumerate(sorted({row["label"] for row in labels}))}
        for row in labels:
            counts[found[row["id"]][0], names[row["label"]]] += 1
        purity[metric] = counts.max(axis=1).sum() / counts.sum()
        print(metric, purity[metric], f"{seconds:.1f} s")
    assert purity["l2"] == pytest.approx(0.69, abs=0.03)
    assert purity["cosine"] == pytest.approx(0.78, abs=0.03)
