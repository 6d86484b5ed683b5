"""A disk that is full, and a folder that may not be written: a clear error, nothing half there."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from raypq.cli import main
from raypq.data.store import snapshot
from raypq.data.store.journal import Journal
from raypq.methods import registry
from raypq.stages.stores import model_store, versions


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
    assert versions.verify(str(store), content=True)["files"] == 5
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
    assert "part-0.parquet: OSError" in done.stderr, "the shard is named, after one try"
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
