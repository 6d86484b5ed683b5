"""Every storage operation of a run fails once, before and after its effect; nothing is lost."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from storage import FAULTS, Dead, Fault, FaultyStorage

from raypq.data.storage import Shard, join, open_parquet, posix, use_storage
from raypq.data.store import journal, manifest_tree, shard_writer, snapshot
from raypq.errors import JobError
from raypq.execution.local import LocalExecutor
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask

SHARDS, ROWS = 2, 4
SCHEMA = pa.schema([pa.field("id", pa.string())])


class Writer:
    """Writes a few rows for each shard, as a stage would."""

    def __init__(self, store: str) -> None:
        self._store = store

    def write(self, task: ShardTask) -> shard_writer.Receipt:
        ids = [f"{task.shard.stem}-{row}-{task.shard.modified}" for row in range(ROWS)]
        batch = pa.RecordBatch.from_arrays([pa.array(ids)], schema=SCHEMA)
        return shard_writer.write_shard(
            self._store, task.shard, model="m", work=task.work, schema=SCHEMA,
            batches=[batch], options={},
        )  # fmt: skip


def shards(night: int) -> list[Shard]:
    """The input of a night: the last shard changes from one to the next."""
    return [
        Shard(
            index=index,
            uri=f"/in/part-{index}.parquet",
            stem=f"part-{index}",
            size=1,
            modified=str(night if index == SHARDS - 1 else 0),
        )
        for index in range(SHARDS)
    ]


def run(store: str, night: int) -> snapshot.Snapshot:
    planned = StoreRun.plan(
        kind="codes", store=store, tasks=[ShardTask(shard=one, work="w") for one in shards(night)]
    )
    if finished := planned.unchanged_version():
        return finished
    with LocalExecutor(1).start_workers(Writer, store, stage="write") as pool:
        return planned.execute(
            lambda tasks: pool.map(Writer.write, tasks),
            on_bad_shard="fail",
            on_result=lambda result: result,
            summarise=lambda _: {},
        )


def ids(store: str, version: int | None = None) -> list[str]:
    """The rows of a version, read from its files after they were checked byte by byte."""
    found = snapshot.read(store, version)
    snapshot.verify_content(store, found)
    rows: list[str] = []
    for receipt in found.shards:
        with open_parquet(join(store, receipt.path), size=receipt.bytes) as file:
            rows += file.read().column("id").to_pylist()
    return rows


def expected(night: int) -> list[str]:
    return [
        f"{shard.stem}-{row}-{shard.modified}" for shard in shards(night) for row in range(ROWS)
    ]


@pytest.fixture(autouse=True)
def _every_receipt_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_SECONDS", 0.0)


@pytest.fixture(params=["posix", "objects", "manifests"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Local files, or objects; ``manifests``: objects, with the receipts in manifests, of which the
    second night adds one."""
    if request.param == "manifests":
        monkeypatch.setattr(snapshot, "MOST_INLINE", 0)
        monkeypatch.setattr(manifest_tree, "_SMALL", 0)
        monkeypatch.setattr(manifest_tree, "_SMALLER", 1)
    if request.param == "posix":
        yield str(tmp_path)
        return
    root = f"memory://faults-{uuid.uuid4().hex}"
    yield root
    fsspec.filesystem("memory").store.clear()


def operations(store: str, night: int) -> list[str]:
    """What a run that nothing disturbs asks of storage."""
    counting = FaultyStorage()
    with use_storage(counting):
        run(store, night)
    return counting.done


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_fails_once(place: str, fault: Fault) -> None:
    """The second night breaks at operation n, for every n; a third run finishes it."""
    plain = join(place, "plain")
    run(plain, night=1)
    asked = operations(plain, night=2)
    assert {"read", "list", "open", "write", "close", "create", "delete"} <= set(asked)
    broken = 0
    for at in range(len(asked)):
        store = join(place, f"store-{at}")
        run(store, night=1)
        with use_storage(FaultyStorage(at, fault)):
            try:
                run(store, night=2)
            except (OSError, JobError, Dead):
                broken += 1
        seen = snapshot.versions(store)
        assert seen in ([1], [1, 2]), f"{asked[at]} ({at}) {fault}"
        for version in seen:
            assert ids(store, version) == expected(version), "a version that is not complete"
        made = run(store, night=2)
        assert made.version == 2, "the work of one night is one version"
        assert snapshot.versions(store) == [1, 2]
        assert ids(store) == expected(2), f"{asked[at]} ({at}) {fault}"
        assert run(store, night=2) == made, "a finished run does nothing"
    assert broken, "no fault was felt"


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_version_of_a_store(place: str, fault: Fault) -> None:
    """The same from nothing: there is no store, or one complete version."""
    asked = operations(join(place, "plain"), night=1)
    for at in range(len(asked)):
        store = join(place, f"store-{at}")
        with use_storage(FaultyStorage(at, fault)), suppress(OSError, JobError, Dead):
            run(store, night=1)
        seen = snapshot.versions(store)
        assert seen in ([], [1])
        if seen:
            assert ids(store) == expected(1)
        assert run(store, night=1).version == 1
        assert snapshot.versions(store) == [1]
        assert ids(store) == expected(1), f"{asked[at]} ({at}) {fault}"


def test_a_finished_shard_is_not_done_again(place: str) -> None:
    """The fault at the commit itself: all shards are kept from the journal."""
    store = join(place, "store")
    asked = operations(join(place, "plain"), night=1)
    at = max(index for index, name in enumerate(asked) if name == "create")
    with use_storage(FaultyStorage(at, "dies before")), pytest.raises(Dead):
        run(store, night=1)
    counting = FaultyStorage()
    with use_storage(counting):
        run(store, night=1)
    manifests = len(snapshot.read(store).shards.manifests)
    assert counting.done.count("open") == manifests, "a shard was written again"


class Faulty:
    """The ``os`` of the local storage, one call of which fails."""

    def __init__(self, at: int | None, after: bool) -> None:
        self._at, self._after = at, after
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("fsync", "link", "replace", "scandir", "open"):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            number = len(self.done)
            self.done.append(name)
            if number != self._at:
                return real(*args, **kwargs)
            if self._after:
                real(*args, **kwargs)
            raise OSError(5, f"injected: {name}")

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.filterwarnings("ignore:unclosed scandir:ResourceWarning")
def test_every_system_call_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """One level below: what a create or a write is made of on a local disk."""

    def asked(store: str, at: int | None) -> Sequence[str]:
        faulty = Faulty(at, after)
        with monkeypatch.context() as patch:
            patch.setattr(posix, "os", faulty)
            try:
                run(store, night=2)
            except (OSError, JobError):
                assert at is not None
        return faulty.done

    run(str(tmp_path / "plain"), night=1)
    calls = asked(str(tmp_path / "plain"), None)
    assert {"fsync", "link", "replace", "scandir", "open"} <= set(calls)
    for at in range(len(calls)):
        store = str(tmp_path / f"store-{at}")
        run(store, night=1)
        asked(store, at)
        for version in snapshot.versions(store):
            assert ids(store, version) == expected(version)
        assert run(store, night=2).version == 2
        assert ids(store) == expected(2), f"{calls[at]} ({at})"
        assert not list(Path(store).rglob("*.part")), "a temporary file is left"


def test_what_faults_leave_behind_is_found_by_gc(tmp_path: Path) -> None:
    from raypq.stages.stores import garbage

    store = str(tmp_path / "store")
    run(store, night=1)
    run(str(tmp_path / "plain"), night=1)
    asked = operations(str(tmp_path / "plain"), night=3)
    killed = FaultyStorage(asked.index("write"), "dies before")
    with use_storage(killed), pytest.raises(Dead):
        run(store, night=3)
    left = list(Path(store, "data").glob(".*.part"))
    assert len(left) == 1, "a killed process leaves its temporary file"
    found = garbage.collect(store, older_than_days=-1)
    assert f"data/{left[0].name}" in found.files
    garbage.collect(store, older_than_days=-1, remove=True)
    assert not left[0].exists()
    assert ids(store) == expected(1)
    assert np.unique(ids(store)).size == SHARDS * ROWS
    assert sum(pq.read_metadata(path).num_rows for path in Path(store, "data").iterdir()) == 8
