"""``raypq duplicates``: every pair, once, with one score, whatever the shards and workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from raypq import api
from raypq.cli import main
from raypq.config import ClusterSettings, DuplicatesJob, EncodeJob, Metric
from raypq.data import arrays
from raypq.data.storage import join
from raypq.data.store import snapshot
from raypq.errors import ConfigError, InputError, JobError, ModelError
from raypq.kernels import native
from raypq.kernels.join import CodeJoin, JoinChoice
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.retrieval.duplicates import pair_plan, pair_search

DX, M, K, N = 12, 4, 16, 260
Make = Callable[[str, int], str]


def where(workers: int = 1) -> ClusterSettings:
    return ClusterSettings(cluster="none", workers=workers)


def quantizer(seed: int) -> PQModel:
    C = np.random.default_rng(seed).standard_normal((M, K, DX // M)).astype(np.float32)
    return PQModel(settings=PQSettings(M=M, K=K), tensors={"C": C}, dx=DX)


MODEL = quantizer(0)
RNG = np.random.default_rng(1)
X = RNG.standard_normal((60, DX)).astype(np.float32)[RNG.integers(0, 60, N)]
X[N // 2 :] += 0.1 * RNG.standard_normal((N - N // 2, DX)).astype(np.float32)
IDS = [f"i{i}" for i in RNG.permutation(N)]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(name: str, parts: int) -> str:
        root = tmp_path / name
        (root / "features").mkdir(parents=True)
        rows = pa.table({"id": IDS, "feature": arrays.fixed_list(X)})
        for part, some in enumerate(np.array_split(np.arange(N), parts)):
            pq.write_table(rows.take(some), root / "features" / f"p{part:03d}.parquet")
        MODEL.save(str(root / "model"))
        api.encode(
            EncodeJob(
                model=str(root / "model"),
                features=[str(root / "features")],
                output=str(root / "codes"),
                where=where(),
            )
        )
        return str(root / "codes")

    return make


def run(codes: str, output: Path, workers: int = 1, **settings: Any) -> tuple[pa.Table, str]:
    job = DuplicatesJob(codes=codes, output=str(output), where=where(workers), **settings)
    (receipt,) = api.duplicates(job).shards
    left = [path.name for path in (output / "data").iterdir() if "partial" in path.name]
    assert not left
    return pq.read_table(join(str(output), receipt.path)), receipt.sha256


def by_definition(metric: Metric, threshold: float) -> dict[tuple[str, str], float]:
    q = MODEL.decode(MODEL.encode(X)).astype(np.float64)
    score = ((q[:, None] - q[None]) ** 2).sum(axis=2) if metric == "l2" else q @ q.T
    if metric == "cosine":
        length = np.sqrt(np.diagonal(score))
        score = score / np.outer(length, length)
    near = score <= threshold if metric == "l2" else score >= threshold
    pairs = ((i, j) for i, j in np.argwhere(near) if i < j)
    return {(min(IDS[i], IDS[j]), max(IDS[i], IDS[j])): score[i, j] for i, j in pairs}


@pytest.mark.parametrize(("metric", "threshold"), [("l2", 3.0), ("cosine", 0.9), ("dot", 6.0)])
def test_every_pair_once(make: Make, tmp_path: Path, metric: Metric, threshold: float) -> None:
    found, _ = run(make("s", 3), tmp_path / "out", metric=metric, threshold=threshold)
    wanted = by_definition(metric, threshold)
    pairs = list(zip(found["id_a"].to_pylist(), found["id_b"].to_pylist(), strict=True))
    assert pairs == sorted(wanted)
    assert 100 < len(pairs) < N * (N - 1) // 2
    score = [wanted[pair] for pair in pairs]
    np.testing.assert_allclose(found["score"], score, rtol=1e-6, atol=1e-6)


def test_equal_codes_are_at_distance_zero(make: Make, tmp_path: Path) -> None:
    found, _ = run(make("s", 2), tmp_path / "out", threshold=0.0)
    B = {name: code.tobytes() for name, code in zip(IDS, MODEL.encode(X), strict=True)}
    equal = sum(B[a] == B[b] for a in B for b in B if a < b)
    assert len(found) == equal > 0
    assert set(found["score"].to_pylist()) == {0.0}


def test_one_file_for_any_shards_and_workers(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for name, parts, workers, group, asking, asked in (
        ("a", 1, 1, 1 << 17, 512, 1 << 16),
        ("b", 30, 4, 20, 5, 7),
        ("c", 2, 2, 1, 64, 1 << 16),
    ):
        monkeypatch.setattr(pair_plan, "_SCANNED_ROWS", group)
        monkeypatch.setattr(pair_search, "_QUERY_ROWS", asking)
        monkeypatch.setattr(pair_search, "_STORED_ROWS", asked)
        seen.add(run(make(name, parts), tmp_path / f"{name}-out", workers, threshold=2.5)[1])
    assert len(seen) == 1


def test_bad_input(make: Make, tmp_path: Path) -> None:
    codes = make("s", 2)
    with pytest.raises(ConfigError, match="at least 0, found -1"):
        run(codes, tmp_path / "out", threshold=-1.0)
    with pytest.raises((JobError, InputError), match="at most 50 of"):
        run(codes, tmp_path / "out", threshold=1e9, max_pairs=50)
    assert not snapshot.versions(str(tmp_path / "out"))
    with pytest.raises(InputError, match="no such store"):
        run(str(tmp_path / "nothing"), tmp_path / "out", threshold=1.0)


def test_codes_of_two_models_are_refused(make: Make, tmp_path: Path) -> None:
    from raypq.stages.stores import model_store

    codes = make("s", 2)
    other = quantizer(7)
    model_store.save(codes, other)
    version = snapshot.read(codes)
    mixed = [
        receipt.model_copy(update={"model": other.fingerprint}) if at else receipt
        for at, receipt in enumerate(version.shards)
    ]
    snapshot.commit(
        codes, kind="codes", run_id="mixed", expected=[one.shard for one in mixed], receipts=mixed
    )
    with pytest.raises(ModelError, match="codes of one model"):
        run(codes, tmp_path / "out", threshold=1.0)


def test_the_command(make: Make, tmp_path: Path) -> None:
    arguments = ["--codes", make("s", 2), "--threshold", "1", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["duplicates", *arguments, "--cluster", "none"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pairs"] == len(by_definition("l2", 1.0))


@pytest.mark.parametrize("joined", [False, True])
def test_two_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool) -> None:
    """Each pair has an image of either store, whose ids may be of different types."""
    if joined:
        if not native.available():
            pytest.skip("the join is a native kernel")

        def choose(sample: Any, rows: int, C: Any, *way: Any, **more: Any) -> JoinChoice:
            join = CodeJoin.of(C, *way, parts=2)
            return JoinChoice(join=join, seconds=0.0, pairs=0.0)

        monkeypatch.setattr(pair_plan, "_FEW_ROWS", 0)
        monkeypatch.setattr(pair_plan, "choose", choose)
        monkeypatch.setattr(pair_plan, "_JOINED_ROWS", 50)
    MODEL.save(str(tmp_path / "model"))
    halves = {"train": (X[:150], IDS[:150]), "test": (X[150:], list(range(N - 150)))}
    for name, (rows, ids) in halves.items():
        for part in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            table = pa.table({"id": ids[part::2], "feature": arrays.fixed_list(rows[part::2])})
            pq.write_table(table, tmp_path / name / f"p{part}.parquet")
        api.encode(
            EncodeJob(
                model=str(tmp_path / "model"), features=[str(tmp_path / name)],
                output=str(tmp_path / f"{name}-codes"), where=where(),
            )
        )  # fmt: skip
    other = str(tmp_path / "test-codes")
    for workers in (1, 2):
        found, _ = run(
            str(tmp_path / "train-codes"), tmp_path / f"out{workers}", workers, threshold=1.5,
            against=other,
        )  # fmt: skip
        a, b = (MODEL.decode(MODEL.encode(rows)).astype(np.float64) for rows, _ in halves.values())
        near = ((a[:, None] - b[None]) ** 2).sum(axis=2) <= 1.5
        wanted = sorted((IDS[i], int(j)) for i, j in np.argwhere(near))
        assert (
            list(zip(*(found[name].to_pylist() for name in ("id_a", "id_b")), strict=True))
            == wanted
        )
        assert len(wanted) > 50
    with pytest.raises(ConfigError, match=r"against.*itself"):
        run(other, tmp_path / "same", threshold=1.0, against=f"{other}/")
