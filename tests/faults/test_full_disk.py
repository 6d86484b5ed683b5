"""A disk that is full, and a folder that may not be written: a clear error, nothing half there."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from tinystore import ALONE, shard, vectors
from tinystore import encode as encode_tiny

from raypq import api
from raypq.cli import main
from raypq.config import RepackJob, SearchJob, SplitJob
from raypq.data import result_file
from raypq.data.storage import Storage, atomic_write, create, use_storage, write_bytes
from raypq.data.store import runs, snapshot
from raypq.data.store.journal import Journal
from raypq.errors import InputError, JobError, WriteError
from raypq.methods import registry
from raypq.stages.stores import garbage, model_store, versions


def raypq(*words: str, prefix: Sequence[str] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", "from raypq.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


def here(*words: str) -> None:
    """In this process, where it must succeed."""
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output


def encode(world: Any, model: str, store: Path) -> list[str]:
    return [
        "encode", "--model", model, "--features", world.test, "--features", world.train,
        "--output", str(store), "--cluster", "none", "--workers", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model(world: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("models") / "m")
    here(
        "train", "pq", "--features", world.train, "--output", place, "--set", "M=8",
        "--set", "K=16", "--set", "iterations=1", "--cluster", "none",
    )  # fmt: skip
    return place


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 96 KiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small filesystem: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def check_nothing_partial(store: Path) -> None:
    """What has a final name is whole; the rest has none."""
    for path in (store / "data").glob("*.parquet"):
        assert pq.ParquetFile(path).read().num_rows in (60, 100)
    assert not list(store.rglob("*.part"))
    for path in (store / "journal").rglob("*.json"):
        json.loads(path.read_text())


def test_a_full_disk(world: Any, model: str, small_disk: Path) -> None:
    store = small_disk / "store"
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (72 << 10))
    done = raypq(*encode(world, model, store))
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot.versions(str(store)) == []
    check_nothing_partial(store)
    finished = set((store / "data").glob("*.parquet"))
    assert finished, "the disk held some of the five shards"
    filler.unlink()
    here(*encode(world, model, store))
    version = snapshot.read(str(store))
    assert (len(version.shards), version.rows) == (5, 420)
    assert versions.verify(str(store), sha256=True)["files"] == 5
    assert not list((store / "journal").rglob("*.json"))


def test_a_file_beyond_the_limit(world: Any, model: str, tmp_path: Path) -> None:
    """RLIMIT_FSIZE: as a quota would, and without rights to mount."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    store = tmp_path / "store"
    done = raypq(*encode(world, model, store), preexec_fn=limit)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert str(store / "models") in done.stderr, "the model comes first, and is named"
    model_store.save(str(store), registry.load(model))
    done = raypq(*encode(world, model, store), preexec_fn=limit)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "part-0.parquet: cannot write" in done.stderr, "the shard is named, after one try"
    assert "Traceback" not in done.stderr
    assert not list((store / "data").iterdir())
    here(*encode(world, model, store))


@pytest.mark.parametrize(
    "folder",
    [
        "data",
        pytest.param("journal", marks=pytest.mark.slow),
        pytest.param("snapshots", marks=pytest.mark.slow),
    ],
)
def test_a_folder_that_may_not_be_written(
    world: Any, model: str, tmp_path: Path, folder: str
) -> None:
    """What is finished stays, and the rerun completes."""
    store = tmp_path / "store"
    (store / folder).mkdir(parents=True)
    (store / folder).chmod(0o555)
    done = raypq(*encode(world, model, store), prefix=ordinary_rights())
    assert done.returncode == 1, done.stderr
    assert "Permission denied" in done.stderr
    assert f"{store}/{folder}" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot.versions(str(store)) == []
    check_nothing_partial(store)
    (store / folder).chmod(0o755)
    here(*encode(world, model, store))
    assert snapshot.read(str(store)).rows == 420


def ordinary_rights() -> list[str]:
    """Root may write anywhere; without these two rights it is as any user."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: permissions cannot be tried")
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", "--"]


def test_a_journal_that_cannot_be_written_is_an_error_and_stays_whole(tmp_path: Path) -> None:
    from storage import FaultyStorage

    from raypq.data.storage import use_storage
    from raypq.data.store.shard_writer import Receipt, Source

    def receipt(name: str) -> Receipt:
        return Receipt(
            shard=name, path=f"data/{name}.parquet", bytes=1, rows=1, sha256="0" * 64, model="m",
            work="w", source=Source(uri="/in", size=1, modified="now"),
        )  # fmt: skip

    journal = Journal(str(tmp_path), "w")
    journal.add(receipt("a"))
    journal.flush()
    journal.add(receipt("b"))
    with use_storage(FaultyStorage(0)), pytest.raises(OSError, match="injected") as caught:
        journal.flush()
    assert caught.value.errno == errno.EIO
    assert [item.shard for item in Journal(str(tmp_path), "w").read()] == ["a"]
    journal.flush()
    assert [item.shard for item in Journal(str(tmp_path), "w").read()] == ["a", "b"]


# ---- errors of writing ---------------------------------------------------------------------


def _failure(number: int) -> OSError:
    if number:
        return OSError(number, os.strerror(number))
    return OSError("the server says no")  # as s3fs does, without a number


class _FullFile:
    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, data: bytes) -> int:
        raise _failure(self._number)

    closed = False

    def flush(self) -> None:
        pass


class FullStorage(Storage):
    """A storage whose writes fail: every one, or those of content until a file is removed."""

    def __init__(self, number: int = errno.ENOSPC, *, until_removed: bool = False) -> None:
        self._number, self._until_removed, self.full = number, until_removed, True

    @contextmanager
    def atomic_write(self, uri: str) -> Iterator[IO[bytes]]:
        if self.full:
            yield _FullFile(self._number)  # type: ignore[misc]  # write is all that is used
        else:
            with super().atomic_write(uri) as file:
                yield file

    def create(self, uri: str, content: bytes) -> None:
        if self.full and content:
            raise _failure(self._number)
        super().create(uri, content)

    def delete(self, uri: str) -> None:
        self.full &= not self._until_removed or "/data/" not in uri
        super().delete(uri)


def run_repack(root: Path) -> None:
    job = RepackJob(features=[str(root / "f")], output=str(root / "o"), where=ALONE,
                    on_bad_shard="quarantine")  # fmt: skip
    api.repack(job)


def run_split(root: Path) -> None:
    job = SplitJob(features=[str(root / "f")], output=str(root / "o"), where=ALONE, protocol=1,
                   queries=2)  # fmt: skip
    api.split(job)


def run_encode(root: Path) -> None:
    encode_tiny(root, str(root / "f"), "o", on_bad_shard="quarantine")


def run_search(root: Path) -> None:
    job = SearchJob(codes=str(root / "codes"), queries=[str(root / "f")], output=str(root / "o"),
                    where=ALONE)  # fmt: skip
    api.search(job)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL, 0])
@pytest.mark.parametrize("run", [run_repack, run_split, run_encode, run_search])
def test_an_error_of_writing_names_the_output(tmp_path: Path, run: Any, number: int) -> None:
    """And is never bad input, with or without a number."""
    labels = pa.array(["x", "y"] * 4)
    for name in "ab":
        ids = pa.array([f"{name}{row}" for row in range(8)])
        shard(tmp_path / "f" / f"{name}.parquet", vectors(8), ids, labels)
    encode_tiny(tmp_path, str(tmp_path / "f"))
    with use_storage(FullStorage(number)), pytest.raises((WriteError, JobError)) as caught:
        run(tmp_path)
    assert f"cannot write {tmp_path / 'o'}" in str(caught.value)
    text = os.strerror(number) if number else "the server says no"
    assert text in str(caught.value)
    if isinstance(caught.value, JobError):
        assert not any(failure.bad_input for failure in caught.value.failures)


def test_every_write_names_its_path(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.json")
    with use_storage(FullStorage()):
        for write in (write_bytes, create):
            with pytest.raises(WriteError, match=r"cannot write .*x\.json: No space .*free space"):
                write(uri, b"x")
    with pytest.raises(WriteError, match=r"/dev/full: No space left"):
        result_file.write("/dev/full", {"a": "x" * 100_000})


def test_an_error_of_reading_is_not_one_of_writing(tmp_path: Path) -> None:
    for place in (str(tmp_path / "x"), "memory://out/x"):
        with pytest.raises(OSError, match="of the input") as caught, atomic_write(place):
            raise OSError(errno.EIO, "of the input")
        assert not isinstance(caught.value, WriteError)
        assert caught.value.filename is None
    assert not list(tmp_path.iterdir())


def test_an_error_of_writing_survives_pickling() -> None:
    error = WriteError.of(OSError(errno.ENOSPC, "full"), "/out/x")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.errno) == (WriteError, str(error), errno.ENOSPC)


def aged(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 5000)
    os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def versions_of_store(tmp_path: Path) -> Path:
    """A store of two versions."""
    for seed in (0, 1):
        shard(tmp_path / "f" / "a.parquet", vectors(8, seed), pa.array(range(8)))
        os.utime(tmp_path / "f" / "a.parquet", (seed, seed))
        encode_tiny(tmp_path, str(tmp_path / "f"))
    return tmp_path / "codes"


def test_gc_on_a_full_disk_first_removes_what_nothing_can_need(versions_of_store: Path) -> None:
    store = versions_of_store
    orphan = aged(store / "data" / "orphan.parquet")
    journaled = aged(store / "data" / "journaled.parquet")
    entry = aged(store / "journal" / ("0" * 32) / f"{1:020d}-{1:08x}.json")
    entry.write_text(json.dumps([{"path": "data/journaled.parquet"}]))
    os.utime(entry, (1e9, 1e9))
    with use_storage(FullStorage()), pytest.raises(InputError, match="Move any file") as caught:
        garbage.collect(store, keep=1, older_than_days=1, remove=True)
    assert str(store / "runs") in str(caught.value)
    assert "1 files that nothing can need are removed" in str(caught.value)
    assert not orphan.exists()
    assert journaled.exists(), "a run may take it over, so it needs the mark"
    assert snapshot.versions(str(store)) == [1, 2]
    aged(orphan)
    with use_storage(FullStorage(until_removed=True)):
        report = garbage.collect(store, keep=1, older_than_days=1, remove=True)
    assert {"data/orphan.parquet", "data/journaled.parquet"} <= {*report.files}
    assert snapshot.versions(str(store)) == [2]
    assert not list((store / "runs").iterdir())


def test_gc_on_a_full_disk_removes_nothing_beside_a_run(versions_of_store: Path) -> None:
    orphan = aged(versions_of_store / "data" / "orphan.parquet")
    with (
        runs.active(str(versions_of_store), "encode"),
        use_storage(FullStorage()),
        pytest.raises(InputError, match="No space left"),
    ):
        garbage.collect(versions_of_store, older_than_days=1, remove=True)
    assert orphan.exists()


def test_gc_on_a_disk_without_a_free_byte(small_disk: Path, tmp_path: Path) -> None:
    shard(tmp_path / "f" / "a.parquet", vectors(8), pa.array(range(8)))
    encode_tiny(tmp_path, str(tmp_path / "f"), "disk/codes")
    store = small_disk / "codes"
    orphan = aged(store / "data" / "orphan.parquet")
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    done = raypq("snapshots", "gc", str(store), "--delete")
    assert done.returncode == 0, done.stderr
    assert not orphan.exists()
