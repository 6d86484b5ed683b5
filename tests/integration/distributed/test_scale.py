"""What must not grow: a worker's memory with the shard, Ray's cost with the number of shards."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypq
from raypq.config import ClusterSettings, EncodeJob, TrainJob
from raypq.data import arrays
from raypq.data.store.sources import open_sources
from raypq.execution.executor import WorkerPool
from raypq.execution.local import LocalExecutor
from raypq.stages.encoding import encode as stage
from raypq.stages.stores.shard_task import ShardTask

pytestmark = pytest.mark.slow
ALONE = ClusterSettings(cluster="none", workers=1)
TWO = ClusterSettings(cluster="local", workers=2)
BLOCK = 4000  # rows that repeat, so that a store of any size is made in little memory


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Shows a measured figure whether the test passes or not."""

    def tell(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return tell


def write(path: Path, rows: int, width: int, layout: str = "list", group: int = 1 << 16) -> None:
    X = np.random.default_rng(0).standard_normal((min(rows, BLOCK), width)).astype(np.float32)
    binary = layout == "binary"
    block = arrays.fixed_binary(X.view(np.uint8)) if binary else arrays.fixed_list(X)
    column = pa.chunked_array([block] * (rows // len(X)))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"id": pa.array(np.arange(rows)), "feature": column}), path, row_group_size=group
    )


def fitted(folder: Path, width: int, M: int) -> str:
    """A model, as good as any for this."""
    write(folder / "train" / "part.parquet", 512, width)
    job = TrainJob(
        method="pq",
        features=[str(folder / "train")],
        output=str(folder / "model"),
        settings={"M": M, "K": 256, "iterations": 1},
        where=ALONE,
    )
    raypq.train(job)
    return job.output


def job(model: str, features: Path, output: Path, where: ClusterSettings = ALONE) -> EncodeJob:
    return EncodeJob(model=model, features=[str(features)], output=str(output), where=where)


# Peak memory ------------------------------------------------------------------------------

_ENCODE = """
import re, sys
from pathlib import Path
import pyarrow.parquet, torch
import raypq.api, raypq.stages.encoding.encode
from raypq.methods import registry
from raypq.config import EncodeJob

def peak():
    # Not ru_maxrss, which starts with the memory of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

job = EncodeJob.model_validate_json(sys.argv[1])
registry.load(job.model)
imports = peak()
version = raypq.encode(job)
print(version.rows, peak() - imports)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("layout", "group"), [("list", 1 << 16), ("list", 500_000), ("binary", 500_000)]
)
def test_memory_does_not_grow_with_the_shard(
    tmp_path: Path, tell: Callable[[str], None], layout: str, group: int
) -> None:
    """500,000 × 1,024 float32 are 2 GB, in row groups of 270 MB or in one of all, which the default
    bound of a row group would refuse."""
    if shutil.disk_usage(tmp_path).free < 5 << 30:
        pytest.skip("needs 5 GB of disk")
    model = fitted(tmp_path, 1024, 64)
    shard = tmp_path / "features" / "part.parquet"
    write(shard, 500_000, 1024, layout, group)
    try:
        assert shard.stat().st_size > 2_000_000_000
        work = job(model, shard.parent, tmp_path / "codes").model_dump_json()
        done = subprocess.run(
            [sys.executable, "-c", _ENCODE, work],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "RAYPQ_STORAGE_ROW_GROUP_MIB": "4096"},
        )
    finally:
        shutil.rmtree(tmp_path / "features")
    rows, grown = map(int, done.stdout.split())
    tell(f"{layout}, row groups of {group:,}: peak {grown / 1e6:.0f} MB above the imports")
    assert rows == 500_000
    assert grown < 1.2e9


# Ray's cost -------------------------------------------------------------------------------

_HALF = """
import sys
from pathlib import Path
import raypq
from raypq.config import EncodeJob

jobs = [EncodeJob.model_validate_json(text) for text in sys.argv[1:]]
raypq.encode(jobs[0])  # imports, and whatever a first call costs
print("ready", flush=True)
sys.stdin.readline()
raypq.encode(jobs[1])
print("done", flush=True)
"""


def two_processes(warm: EncodeJob, halves: list[EncodeJob]) -> float:
    """Seconds that two plain processes take, each with half of the shards, once they are up."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _HALF, warm.model_dump_json(), half.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for half in halves
    ]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "done\n"
    seconds = time.monotonic() - start
    for process in running:
        process.communicate()
    return seconds


class Ready:
    """A Ray executor whose pool is handed over once both workers have done a shard."""

    def __init__(self, executor: Any, warm: Path) -> None:
        self.n_workers = executor.n_workers
        self.worker_memory = executor.worker_memory
        self._executor, self._warm = executor, warm
        self.since = 0.0

    @contextmanager
    def start_workers(
        self, make: Callable[..., Any], *args: Any, **how: Any
    ) -> Iterator[WorkerPool[Any]]:
        shards = open_sources([str(self._warm)]).shards
        tasks = [
            ShardTask(shard=replace(shard, stem=f"{shard.stem}-{i}"))
            for shard in shards
            for i in range(4)
        ]
        with self._executor.start_workers(make, *args, **how) as pool:
            while len(pool.ready) < self._executor.n_workers:
                list(pool.map(make.encode, tasks))
            list(pool.map(make.encode, tasks))
            self.since = time.monotonic()
            yield pool


@pytest.mark.ray
def test_64_shards_cost_little_more_than_on_two_plain_processes(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    from raypq.distributed.cluster import connect

    model = fitted(tmp_path, 512, 128)
    write(tmp_path / "warm" / "part.parquet", 200, 512)
    write(tmp_path / "one.parquet", 32_000, 512)
    halves = [tmp_path / "all" / name for name in ("left", "right")]
    for part in range(64):  # one file under 64 names: the same reading for both sides
        place = halves[part % 2] / f"part-{part:02d}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "one.parquet", place)
    plain, on_ray = [], []
    with connect(TWO) as executor:
        for turn in range(3):
            out = tmp_path / f"out-{turn}"
            plain.append(
                two_processes(
                    job(model, tmp_path / "warm", out / "warm"),
                    [job(model, half, out / half.name) for half in halves],
                )
            )
            ready = Ready(executor, tmp_path / "warm")
            stage.encode(job(model, tmp_path / "all", out / "ray", TWO), ready)
            on_ray.append(time.monotonic() - ready.since)
            shutil.rmtree(out)
    ratio = statistics.median(ray / alone for ray, alone in zip(on_ray, plain, strict=True))
    times = [[round(seconds, 1) for seconds in side] for side in (plain, on_ray)]
    tell(f"64 shards: two processes {times[0]} s, Ray {times[1]} s: {ratio:.2f} times")
    assert ratio < 1.25


@pytest.mark.ray
def test_2000_tiny_shards_have_the_codes_of_a_plain_loop(tmp_path: Path) -> None:
    """What they cost beyond it: ``raypq bench pipeline``."""
    from raypq.distributed.cluster import connect

    model = fitted(tmp_path, 32, 8)
    for part in range(2000):
        write(tmp_path / "tiny" / f"part-{part:04d}.parquet", 64, 32)
    plain = stage.encode(job(model, tmp_path / "tiny", tmp_path / "plain"), LocalExecutor(1))
    with connect(TWO) as executor:
        there = stage.encode(job(model, tmp_path / "tiny", tmp_path / "ray", TWO), executor)
    assert [one.sha256 for one in there.shards] == [one.sha256 for one in plain.shards]
