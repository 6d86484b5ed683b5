"""A run of a store commits what is there, once for each shard, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raypq.data.storage import Shard
from raypq.data.store import shard_writer, snapshot
from raypq.data.store.journal import Journal
from raypq.data.store.shard_writer import Receipt, Source
from raypq.errors import ConflictError, RaypqError
from raypq.execution.local import LocalExecutor
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask

SCHEMA = pa.schema([pa.field("id", pa.string())])


class Writer:
    def __init__(self, store: str) -> None:
        self._store = store

    def write(self, task: ShardTask) -> Receipt:
        batch = pa.RecordBatch.from_arrays([pa.array([task.name])], schema=SCHEMA)
        return shard_writer.write_shard(
            self._store, task.shard, model="m", work=task.work, schema=SCHEMA, batches=[batch],
            options={},
        )  # fmt: skip


def planned(store: Path, names: str) -> StoreRun:
    tasks = [
        ShardTask(shard=Shard(index=i, uri=f"/in/{n}", stem=n, size=1, modified="1"), work="w")
        for i, n in enumerate(names)
    ]
    return StoreRun.plan(kind="codes", store=str(store), tasks=tasks)


def execute(run: StoreRun, before_commit: Any = lambda: None) -> snapshot.Snapshot:
    def summarise(_: Any) -> dict[str, Any]:
        before_commit()
        return {}

    with LocalExecutor(1).start_workers(Writer, run.store, stage="write") as pool:
        return run.execute(
            lambda tasks: pool.map(Writer.write, tasks),
            on_bad_shard="fail",
            on_result=lambda result: result,
            summarise=summarise,
        )


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_file_that_is_gone_is_never_committed(tmp_path: Path, damage: str) -> None:
    execute(planned(tmp_path, "ab"))
    kept = tmp_path / snapshot.read(str(tmp_path)).shards[0].path

    def harm() -> None:
        kept.unlink() if damage == "gone" else kept.write_bytes(b"PAR1")

    with pytest.raises(ConflictError, match=f"1 of 3 files .* such as data/{kept.name}"):
        execute(planned(tmp_path, "abc"), harm)
    assert snapshot.versions(str(tmp_path)) == [1]
    made = execute(planned(tmp_path, "abc"))
    assert made.version == 2
    snapshot.verify_content(str(tmp_path), made)
    assert made.summary["worked"]["shards"] == 1, "a rerun does what is gone anew, and no more"


def test_what_goes_between_plan_and_run_is_done_anew(tmp_path: Path) -> None:
    execute(planned(tmp_path, "ab"))
    run = planned(tmp_path, "abc")
    (tmp_path / snapshot.read(str(tmp_path)).shards[0].path).unlink()
    made = execute(run)
    snapshot.verify_content(str(tmp_path), made)
    assert made.summary["worked"]["shards"] == 2


@pytest.mark.parametrize(
    ("receipts", "says"),
    [("a", "1 without a receipt, such as 'b'"), ("abb", "such as 'b'"), ("abc", "such as 'c'")],
)
def test_one_receipt_for_each_shard(tmp_path: Path, receipts: str, says: str) -> None:
    """No assertion that ``python -O`` takes away."""
    held = [
        Receipt(
            shard=name, path=f"data/{name}.{i}.parquet", bytes=1, rows=1, sha256="0", model="m",
            work="w", source=Source(uri="u", size=1, modified="1"),
        )
        for i, name in enumerate(receipts)
    ]  # fmt: skip
    with pytest.raises(RaypqError, match=says):
        snapshot.commit(str(tmp_path), kind="codes", run_id="r", expected=["a", "b"], receipts=held)
    assert snapshot.versions(str(tmp_path)) == []


def test_a_file_that_a_journal_gives_to_two_shards_is_made_anew(tmp_path: Path) -> None:
    execute(planned(tmp_path, "a"))
    (held,) = snapshot.read(str(tmp_path)).shards
    source = Source(uri="/in/b", size=1, modified="1")
    journal = Journal(str(tmp_path), "w")
    journal.add(held.model_copy(update={"shard": "b", "source": source}))
    journal.flush()
    made = execute(planned(tmp_path, "ab"))
    assert len({receipt.path for receipt in made.shards}) == 2
    assert snapshot.read(str(tmp_path)) == made
