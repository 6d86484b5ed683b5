"""The job of the kill tests: a store of small shards, half of which change every night.

Plan, worker pool, actors, shard files, journal and commit are the real ones; only the computation
is replaced by a short sleep. Run as a script, this is one of the test's processes:
``night.py drivers|keeper|reader ...``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from raypq.config import ClusterSettings
from raypq.data.storage import Shard, join, open_parquet
from raypq.data.store import journal, manifest_tree, shard_writer, snapshot
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask

SHARDS, ROWS = 40, 20
SECONDS = 0.1  # of work for a shard
SCHEMA = pa.schema([pa.field("id", pa.string())])


def shards(night: int) -> list[Shard]:
    """The input of a night: shards of the night's parity have changed, the others have not."""
    return [
        Shard(
            index=index,
            uri=f"/in/part-{index:03d}.parquet",
            stem=f"part-{index:03d}",
            size=1,
            modified=str(night if index % 2 == night % 2 else night - 1),
        )
        for index in range(SHARDS)
    ]


def expected(night: int) -> list[str]:
    return [f"{one.stem}/{row}/{one.modified}" for one in shards(night) for row in range(ROWS)]


class Writer:
    def __init__(self, store: str) -> None:
        self._store = store

    def write(self, task: ShardTask) -> shard_writer.Receipt:
        def batches() -> Any:
            for half in range(2):  # a kill may come between two parts of one file
                rows = range(half * ROWS // 2, (half + 1) * ROWS // 2)
                ids = [f"{task.shard.stem}/{row}/{task.shard.modified}" for row in rows]
                time.sleep(SECONDS / 2)
                yield pa.RecordBatch.from_arrays([pa.array(ids)], schema=SCHEMA)

        return shard_writer.write_shard(
            self._store, task.shard, model="m", work=task.work, schema=SCHEMA, batches=batches(),
            options={},
        )  # fmt: skip


def run(store: str, night: int, address: str) -> None:
    from raypq.distributed.cluster import connect

    journal._SECONDS = 0.2
    # Manifests hold the receipts: some nights add one, every fourth writes them anew as one.
    snapshot.MOST_INLINE, manifest_tree._SMALL = 0, 0
    manifest_tree._SMALLER = 1 if night % 4 else 4
    planned = StoreRun.plan(
        kind="codes", store=store, tasks=[ShardTask(shard=one, work="w") for one in shards(night)]
    )
    if planned.unchanged_version():
        return
    where = ClusterSettings(cluster=address, workers=2)
    with connect(where) as executor, executor.start_workers(Writer, store, stage="write") as pool:
        planned.execute(
            lambda tasks: pool.map(Writer.write, tasks),
            on_bad_shard="fail",
            on_result=lambda result: result,
            summarise=lambda _: {},
        )


def drivers(store: str, address: str, folder: str) -> None:
    """Forks a driver for each requested night, which then need not import anything."""
    import ray  # noqa: F401
    import s3fs  # noqa: F401

    import raypq.distributed.cluster  # noqa: F401

    for line in sys.stdin:
        night, attempt = line.split()
        if pid := os.fork():
            print(pid, flush=True)
            os.waitpid(pid, 0)
            print("gone", flush=True)
            continue
        try:
            sys.stdout = sys.stderr  # the pipe is its parent's
            run(store, int(night), address)
            Path(folder, attempt).write_text("finished")
        except BaseException as error:
            Path(folder, attempt).write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)


def keeper() -> None:
    """Holds a cluster of a head without CPUs and one node, which it kills and replaces."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    node = cluster.add_node(num_cpus=2)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(node, allow_graceful=False)
        node = cluster.add_node(num_cpus=2)
        print("replaced", flush=True)
    cluster.shutdown()


def rows_of(store: str, found: snapshot.Snapshot) -> list[str]:
    rows: list[str] = []
    for receipt in found.shards:
        with open_parquet(join(store, receipt.path), size=receipt.bytes) as file:
            rows += file.read().column("id").to_pylist()
    return rows


def reader(store: str, report: str) -> None:
    """Polls till the end of its input; every version that it sees must be complete."""
    import threading

    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    looks, whole, latest, wrong = 0, 0, 0, []
    dice = random.Random(1)
    while not over.is_set():
        try:
            known = snapshot.versions(store)
            if not known:
                time.sleep(0.05)
                continue
            found = snapshot.read(store)
            if found.version < latest or known != list(range(1, known[-1] + 1)):
                wrong.append(f"versions {known[-3:]} after {latest}")
            snapshot.verify_sizes(store, found)
            if found.version != latest or dice.random() < 0.02:
                if rows_of(store, found) != expected(found.version):
                    wrong.append(f"version {found.version} has other rows")
                whole += 1
            looks, latest = looks + 1, found.version
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
        time.sleep(0.02)
    Path(report).write_text("\n".join([f"{looks} {whole}", *wrong]))


def speak_alone() -> None:
    """What Ray prints goes nowhere; stdout is for the test alone."""
    mouth, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    sys.stdout = os.fdopen(mouth, "w")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    speak_alone()
    {"drivers": drivers, "keeper": keeper, "reader": reader}[sys.argv[1]](*sys.argv[2:])
