"""gc beside runs, a restore and a night: however they interleave, every version is whole.

Both sides stop at chosen storage operations and let the other go on. gc takes whatever its age
allows (an age of −1 day: all that nothing protects), so only the protocol is in its way.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pytest

from raypq.data.storage import Listed, Shard, Storage, filesystem, join, list_names, use_storage
from raypq.data.store import journal, manifest_tree, runs, shard_writer, snapshot
from raypq.errors import ConflictError, InputError
from raypq.execution.local import LocalExecutor
from raypq.stages.stores import garbage, versions
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask

SCHEMA = pa.schema([pa.field("id", pa.string())])


class Writer:
    """Writes one row for each shard, as a stage would."""

    def __init__(self, store: str) -> None:
        self._store = store

    def write(self, task: ShardTask) -> shard_writer.Receipt:
        name = f"{task.shard.stem}/{task.shard.modified}"
        batch = pa.RecordBatch.from_arrays([pa.array([name])], schema=SCHEMA)
        return shard_writer.write_shard(
            self._store, task.shard, model="m", work=task.work, schema=SCHEMA, batches=[batch],
            options={},
        )  # fmt: skip


def shards(*states: str) -> list[ShardTask]:
    """Tasks a, b, c, ..., each in a state of its own."""
    return [
        ShardTask(
            shard=Shard(index=i, uri=f"/in/{name}", stem=name, size=1, modified=state), work="w"
        )
        for i, (name, state) in enumerate(zip("abcdef", states, strict=False))
    ]


def run(store: str, tasks: Sequence[ShardTask]) -> snapshot.Snapshot:
    planned = StoreRun.plan(kind="codes", store=store, tasks=tasks)
    if finished := planned.unchanged_version():
        return finished
    with LocalExecutor(1).start_workers(Writer, store, stage="write") as pool:
        return planned.execute(
            lambda tasks: pool.map(Writer.write, tasks),
            on_bad_shard="fail",
            on_result=lambda result: result,
            summarise=lambda _: {},
        )


def killed(store: str, tasks: Sequence[ShardTask]) -> None:
    """A run that ends just before its commit: its receipts are in the journal."""

    def stop(_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    planned = StoreRun.plan(kind="codes", store=store, tasks=tasks)
    with (
        LocalExecutor(1).start_workers(Writer, store, stage="write") as pool,
        pytest.raises(KeyboardInterrupt),
    ):
        planned.execute(
            lambda tasks: pool.map(Writer.write, tasks),
            on_bad_shard="fail",
            on_result=lambda result: result,
            summarise=stop,
        )


def prepared(store: str) -> None:
    """Two versions, the first with a file of its own, and a killed run with two more shards."""
    run(store, shards("1", "1"))
    run(store, shards("2", "1"))
    killed(store, shards("2", "1", "1", "1"))


def again(store: str) -> None:
    """Takes over what the killed run left, and does one shard more."""
    run(store, shards("2", "1", "1", "1", "1"))


def back(store: str) -> None:
    try:
        versions.restore(store, 1)
    except (InputError, ConflictError) as error:  # gc was first
        if not any(
            text in str(error) for text in ("found versions", "no such file", "gc is about")
        ):
            raise


def sweep(store: str) -> None:
    garbage.collect(store, keep=1, older_than_days=-1, remove=True)


def whole(store: str) -> None:
    """Every version that there is has all its files, byte by byte, and gc spares them."""
    for version in snapshot.versions(store):
        snapshot.verify_content(store, snapshot.read(store, version))
    sweep(store)
    snapshot.verify_content(store, snapshot.read(store))
    assert not list_names(join(store, runs.FOLDER)), "a mark is left"


class Turns(Storage):
    """Two sides take turns: each goes on for so many operations, then the other does.

    A side is known by how it spells the store: ``first`` starts.
    """

    def __init__(self, first: str, counts: Sequence[int]) -> None:
        self._first, self._counts = first, [*counts]
        self._now = True  # whether it is the turn of ``first``
        self._ended: set[bool] = set()
        self._changed = threading.Condition()
        self.done = 0

    @contextmanager
    def _turn(self, uri: str) -> Iterator[None]:
        side = uri.startswith(self._first)
        with self._changed:
            assert self._changed.wait_for(
                lambda: self._now is side or (not side) in self._ended, timeout=60
            )
            self.done += 1
            yield
            if self._counts:
                self._counts[0] -= 1
                if not self._counts[0]:
                    self._counts.pop(0)
                    self._now = not side
                    self._changed.notify_all()

    def end(self, side: bool) -> None:
        """A side has come to its end."""
        with self._changed:
            self._ended.add(side)
            self._now = not side
            self._changed.notify_all()

    def read_bytes(self, uri: str) -> bytes:
        with self._turn(uri):
            return super().read_bytes(uri)

    def list_files(self, uri: str) -> dict[str, Listed]:
        with self._turn(uri):
            return super().list_files(uri)

    def list_folders(self, uri: str) -> list[str]:
        with self._turn(uri):
            return super().list_folders(uri)

    @contextmanager
    def atomic_write(self, uri: str) -> Iterator[IO[bytes]]:
        with self._turn(uri):
            held = super().atomic_write(uri)
            file = held.__enter__()
        try:
            yield file
        except BaseException:
            held.__exit__(*sys.exc_info())
            raise
        with self._turn(uri):
            held.__exit__(None, None, None)

    def create(self, uri: str, content: bytes) -> None:
        with self._turn(uri):
            super().create(uri, content)

    def delete(self, uri: str) -> None:
        with self._turn(uri):
            super().delete(uri)


def together(one: Callable[[], None], other: Callable[[], None], turns: Turns) -> None:
    """Both at once, in turns; an error of either is raised."""
    errors: list[BaseException] = []

    def side(work: Callable[[], None], which: bool) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            turns.end(which)

    threads = [
        threading.Thread(target=side, args=(one, True)),
        threading.Thread(target=side, args=(other, False)),
    ]
    with use_storage(turns):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


@pytest.fixture(autouse=True, params=["inline", "manifests"])
def _receipts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions hold their receipts; or manifests do, of which small changes add one and larger ones
    replace all."""
    if request.param == "manifests":
        monkeypatch.setattr(snapshot, "MOST_INLINE", 0)
        monkeypatch.setattr(manifest_tree, "_SMALL", 0)
        monkeypatch.setattr(manifest_tree, "_SMALLER", 1)


@pytest.fixture(autouse=True)
def _every_receipt_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_SECONDS", 0.0)


def operations(store: str, work: Callable[[str], None]) -> int:
    """How many operations the work takes when nothing is beside it."""
    turns = Turns("", [])
    with use_storage(turns):
        work(store)
    return turns.done


def interleave(
    place: str, also: Callable[[str], str], work: Callable[[str], None], first: str, step: int
) -> None:
    """One side stops after i operations, the other after j, the first goes on to its end, then
    the other does.

    Args:
        also: the other way to spell a store, which gc uses. step: between values of i and of j.
    """
    template = join(place, "template")
    prepared(template)

    def copy(name: str) -> str:
        fs, source = filesystem(template)
        store = join(place, name)
        fs.copy(source, filesystem(store)[1], recursive=True)
        return store

    own = operations(copy("plain-run"), work)
    its = operations(copy("plain-gc"), sweep)
    for i in range(1, own + 1, step):
        for j in range(1, its + 1, step):
            store = copy(f"{i}-{j}")
            doing, sweeping = partial(work, store), partial(sweep, also(store))
            if first == "run":
                together(doing, sweeping, Turns(store, [i, j]))
            else:
                together(sweeping, doing, Turns(also(store), [j, i]))
            whole(store)
            fs, path = filesystem(store)
            fs.rm(path, recursive=True)  # a listing in memory goes through all files of all stores


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", [again, back])
@pytest.mark.parametrize("first", ["run", "gc"])
@pytest.mark.timeout(1500)
def test_ways_to_interleave(work: Callable[[str], None], first: str, step: int) -> None:
    place = f"memory://gc-{uuid.uuid4().hex}"
    try:
        interleave(place, lambda uri: uri.replace("://", ":///"), work, first, step)
    finally:
        fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("work", [again, back])
@pytest.mark.parametrize("first", ["run", "gc"])
def test_on_local_files(tmp_path: Path, work: Callable[[str], None], first: str) -> None:
    interleave(str(tmp_path), lambda uri: f"file://{uri}", work, first, step=9)


def test_on_s3(bucket: str) -> None:
    interleave(bucket, lambda uri: uri.replace("s3:", "s3a:"), again, "run", step=26)


class Asleep(Storage):
    """A gc falls asleep as it removes its first file; ``meanwhile`` happens, and it goes on."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile
        self._slept = False

    def delete(self, uri: str) -> None:
        if not self._slept and f"/{snapshot.FOLDER}/" in uri:
            self._slept = True
            self._meanwhile()
        super().delete(uri)


@pytest.mark.parametrize("wakes", ["silent", "with a heartbeat"])
def test_a_gc_that_slept_removes_nothing_that_was_restored(
    tmp_path: Path, wakes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path)
    prepared(store)
    gcs = list[runs.OwnMark]()
    write = runs.OwnMark.write
    monkeypatch.setattr(runs.OwnMark, "write", lambda mine: (gcs.append(mine), write(mine)))

    def asleep() -> None:
        with pytest.raises(ConflictError, match=r"gc is about to remove .* after 15 minutes"):
            versions.restore(store, 1)
        for path in (tmp_path / runs.FOLDER).iterdir():
            age(path, runs.GONE + 1)
        versions.restore(store, 1)
        gcs[0]._last_beat -= runs.GONE
        if wakes != "silent":
            gcs[0].beat()

    with use_storage(Asleep(asleep)), pytest.raises(ConflictError, match="gc wrote no heartbeat"):
        sweep(store)
    whole(store)


@pytest.mark.parametrize("silent", [0.0, runs.GONE / 2, runs.GONE + 1, 30 * runs.GONE])
def test_a_gc_that_was_cut_off_hinders_nobody_for_long(tmp_path: Path, silent: float) -> None:
    store = str(tmp_path)
    prepared(store)
    files = sorted(snapshot.read(store, 1).files(store))
    mark = runs.OwnMark(store, "gc")
    mark.write()
    mark.announce([snapshot.path_of(1), *files])
    mark.beat()
    for path in (tmp_path / runs.FOLDER).iterdir():
        age(path, silent)
    if silent <= runs.GONE:
        assert runs.removed_by_gc(store) == {snapshot.path_of(1), *files}
        with pytest.raises(ConflictError, match="gc is about to remove version 1"):
            versions.restore(store, 1)
        return
    assert runs.removed_by_gc(store) == frozenset()
    assert versions.restore(store, 1).version == 3
    assert run(store, shards("1", "1")).version == 3, "nothing to do"


def test_a_gc_whose_old_sign_of_life_was_read_late_is_at_work(tmp_path: Path) -> None:
    """Between the listing and the question of the time, this process may sleep."""
    store = str(tmp_path)
    prepared(store)
    mark = runs.OwnMark(store, "gc")
    mark.write()
    mark.announce(["data/a"])
    for path in (tmp_path / runs.FOLDER).iterdir():
        age(path, runs.GONE + 1)

    class Late(Storage):
        def create(self, uri: str, content: bytes) -> None:
            super().create(uri, content)
            mark.beat()

    with use_storage(Late()):
        assert runs.removed_by_gc(store) == {"data/a"}


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
