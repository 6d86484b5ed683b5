"""Of two writers of one name one is told, or the storage is refused before it is relied on."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from s3server import S3Server, reachable

from raypq.data.storage import check_create, create, exclusive, join, list_names, posix, read_bytes
from raypq.data.store import lease, snapshot
from raypq.data.store.journal import Journal
from raypq.data.store.shard_writer import Receipt, Source
from raypq.errors import ConflictError, InputError

HTTP = "HTTP_IF_NONE_MATCH"


class DeafServer(S3Server):
    """Does not know conditional writes: ``deaf`` ignores the condition, ``dumb`` answers 501."""

    manner = "deaf"

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if HTTP in environ and self.manner == "dumb":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("501 Not Implemented", [("Content-Type", "application/xml")])
            return [b"<?xml version='1.0'?><Error><Code>NotImplemented</Code></Error>"]
        environ.pop(HTTP, None)
        return super()._answer(environ, start)


class Inherits(MemoryFileSystem):
    """fsspec's default, as HDFS, WebHDFS and SFTP have it: looks, and writes later."""

    protocol, cachable = "inherits", False
    pipe_file = AbstractFileSystem.pipe_file

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace(f"{cls.protocol}://", "/"))


class Slow(Inherits):
    """A create of its own, which is two steps with a network between them."""

    protocol = "slow"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        taken = mode == "create" and self.exists(path)
        time.sleep(0.02)
        if taken:
            raise FileExistsError(path)
        super().pipe_file(path, value)


class Quick(Inherits):
    """As ``Slow``, in so short a time that chance would seldom show it; ``look`` is how."""

    protocol, look = "quick", "exists"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if mode == "create":
            try:
                if getattr(self, self.look)(path):
                    raise FileExistsError(path)
            except FileNotFoundError:
                pass
        super().pipe_file(path, value)


class Ignores(Inherits):
    """Takes ``mode`` and does nothing with it, as ossfs does."""

    protocol = "ignores"

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        super().pipe_file(path, value)


class Refuses(Inherits):
    """Does not know ``mode``."""

    protocol = "refuses"

    def pipe_file(self, path: str, value: bytes) -> None:
        super().pipe_file(path, value)


class Careful(Inherits):
    """A create of its own in one step."""

    protocol = "careful"
    step = threading.Lock()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self.step:
            MemoryFileSystem.pipe_file(self, path, value, mode=mode)


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    for kind in (Inherits, Slow, Quick, Ignores, Refuses, Careful):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.fixture(params=["deaf", "dumb"])
def deaf(request: pytest.FixtureRequest) -> Iterator[str]:
    server = DeafServer()
    server.manner = request.param
    with reachable(server.environment()):
        fsspec.filesystem("s3").mkdir("deaf-bucket")
        yield "s3://deaf-bucket/store"
        for name in fsspec.filesystem("s3").find("deaf-bucket"):
            fsspec.filesystem("s3").rm_file(name)
        fsspec.filesystem("s3").rmdir("deaf-bucket")
    server.close()


def receipt(name: str) -> Receipt:
    source = Source(uri="/u", size=1, modified="1")
    return Receipt(shard=name, path=f"data/{name}.parquet", bytes=1, rows=1, sha256="0" * 64,
                   model="m", work="w", source=source)  # fmt: skip


def commit(store: str) -> snapshot.Snapshot:
    return snapshot.commit(store, kind="codes", run_id="r", expected=["a"], receipts=[receipt("a")])


def take(store: str) -> None:
    lease.Lease(store=store).take()


def note(store: str) -> None:
    journal = Journal(store, "w")
    journal.add(receipt("a"))
    journal.flush()


def begin(store: str) -> None:
    check_create(join(store, "snapshots"))


WRITERS = [commit, take, note, begin]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_server_without_conditional_writes_is_refused(
    deaf: str, writer: Callable[[str], Any]
) -> None:
    with pytest.raises(InputError, match=r"s3://deaf-bucket/store.*RAYPQ_STORAGE_SINGLE_WRITER"):
        writer(deaf)
    assert fsspec.filesystem("s3").find("deaf-bucket") == [], "nothing is left of the trial"


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", [Inherits, Slow, Ignores, Refuses])
def test_a_backend_without_a_create_of_its_own_is_refused(
    memory: MemoryFileSystem, kind: type[Inherits], writer: Callable[[str], Any]
) -> None:
    with pytest.raises(InputError, match=r"RAYPQ_STORAGE_SINGLE_WRITER"):
        writer(f"{kind.protocol}://store")
    assert not memory.store, "nothing is left of the trial"


@pytest.mark.parametrize("look", ["exists", "lexists", "isfile", "info"])
@pytest.mark.parametrize("turn", range(10))
def test_a_quick_look_and_write_is_seen(
    memory: MemoryFileSystem, look: str, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Quick, "look", look)
    with pytest.raises(InputError, match="let two writers create the same file"):
        begin(f"quick://store-{turn}")
    fs = Quick()
    before = dict(vars(fs))
    with pytest.raises(InputError):
        exclusive.ensure(fs, "/store", "quick://store")
    assert vars(fs) == before, "the filesystem is as it was"


@pytest.mark.parametrize("kind", [Inherits, Slow, Quick, Ignores, Refuses])
def test_a_folder_of_such_a_backend_is_no_better(
    memory: MemoryFileSystem, kind: type[Inherits]
) -> None:
    fs = DirFileSystem("/a", DirFileSystem("/b", kind()))
    with pytest.raises(InputError, match=r"RAYPQ_STORAGE_SINGLE_WRITER"):
        exclusive.ensure(fs, "store", f"dir::{kind.protocol}://store")
    assert not memory.store, "nothing is left of the trial"


def test_a_folder_of_a_good_backend_is_taken(memory: MemoryFileSystem) -> None:
    for kind in (Careful, MemoryFileSystem):
        exclusive.ensure(DirFileSystem("/a", kind()), "store", "dir::careful://store")


@pytest.mark.parametrize("kind", ["careful", "memory"])
def test_a_backend_with_a_create_of_its_own_is_taken(memory: MemoryFileSystem, kind: str) -> None:
    for writer in WRITERS:
        writer(f"{kind}://store")
    assert len(memory.store) == 3, "nothing is left of the trial"
    with pytest.raises(FileExistsError):
        create(f"{kind}://store/snapshots/{1:020d}.json", b"{}")


@pytest.mark.parametrize("store", ["inherits://store", "ignores://store"])
def test_who_writes_alone_may_say_so(
    memory: MemoryFileSystem, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_alone(store, monkeypatch)


def test_who_writes_alone_to_such_a_server_may_say_so(
    deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_alone(deaf, monkeypatch)


def write_alone(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPQ_STORAGE_SINGLE_WRITER", "true")
    for writer in WRITERS:
        writer(store)
    assert commit(store).version == 2
    name = f"{store}/snapshots/{1:020d}.json"
    with pytest.raises(FileExistsError):
        create(name, b"{}")
    assert b"nonce" in read_bytes(name)


def test_a_good_server_is_tried_once(bucket: str, s3: S3Server) -> None:
    before = s3.asked["create"]
    assert [commit(f"{bucket}/{name}").version for name in "aab"] == [1, 2, 1]
    assert s3.asked["create"] - before == 3 + 2, "two for the trial"
    assert list_names(f"{bucket}/a/snapshots") == [f"{n:020d}.json" for n in (1, 2)]


# ---- local filesystems ---------------------------------------------------------------------


class NoLinks:
    """The ``os`` of the local storage on a filesystem without hard links."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def link(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "os", NoLinks(request.param))


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_a_rename_that_replaces_nothing_serves(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    begin(store)
    assert commit(store).version == 1
    with pytest.raises(FileExistsError):
        create(join(store, "snapshots", f"{1:020d}.json"), b"{}")
    with ThreadPoolExecutor(8) as pool:
        names = [pool.submit(create, join(store, "x"), str(n).encode()) for n in range(8)]
        errors = [name.exception() for name in names]
    assert sum(error is None for error in errors) == 1
    assert all(error is None or isinstance(error, FileExistsError) for error in errors)
    left = sorted(path.name for path in Path(store).rglob("*") if path.is_file())
    assert left == [f"{1:020d}.json", "x"], "no temporary file is left"


@pytest.mark.usefixtures("no_links")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_filesystem_that_knows_neither_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable[[str], Any]
) -> None:
    class Bare:
        @staticmethod
        def CDLL(*args: Any, **kwargs: Any) -> object:
            return object()

    monkeypatch.setattr(posix, "ctypes", Bare)
    with pytest.raises(InputError, match=r"hard links.*RAYPQ_STORAGE_SINGLE_WRITER"):
        writer(str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setenv("RAYPQ_STORAGE_SINGLE_WRITER", "true")
    writer(str(tmp_path))
    if writer is take:
        with pytest.raises(ConflictError):
            lease.Lease(store=str(tmp_path), seconds=60, sleep=lambda _: take_over(tmp_path)).take()


def take_over(store: Path) -> None:
    """A heartbeat of the holder."""
    (store / "lease" / "000000000001-00000001.json").write_text("{}")
