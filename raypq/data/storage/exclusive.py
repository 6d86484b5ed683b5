"""Whether a storage's create is refused where the name is taken: probed before it is relied on.

Versions, leases and journals stand on one promise: of two writers that create a name, one is told
that it is taken. fsspec's default looks first and writes then, some servers ignore the condition of
a conditional put, and some backends do not know ``mode="create"`` at all: there two writers would
both be told "version 1". Each storage is tried once a process, with small files that are removed.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from raypq.data.storage.objects import create, protocols, status_of
from raypq.errors import InputError

_BY_CONDITION = frozenset({"s3", "gs", "gcs", "abfs", "az"})  # the server decides, in one step
_WRITERS, _ROUNDS = 4, 3
_SEEN = "_raypq_creates_once"  # of a filesystem: buckets where its create kept the promise


def ensure(fs: AbstractFileSystem, folder: str, uri: str) -> None:
    """Makes sure that ``create`` keeps its promise on a filesystem.

    Args:
        folder: where the trial is made, on ``fs``. uri: the same place, for errors.

    Raises:
        InputError: two writers would both be told that they made the file.
        OSError: the trial could not be made.
    """
    if type(fs).pipe_file is MemoryFileSystem.pipe_file:
        return  # of this process alone
    owner: Any = fs if fs.cachable else type(fs)
    seen = vars(owner).get(_SEEN, frozenset())
    bucket = folder.strip("/").split("/")[0]
    if bucket in seen:
        return
    if not _overrides(fs):
        raise _refusal(uri, "one that looks whether a name is taken and writes later")
    _try_twice(fs, folder, uri)
    if not _BY_CONDITION.intersection(protocols(fs)):
        _try_at_once(fs, folder, uri)
    setattr(owner, _SEEN, seen | {bucket})


def _overrides(fs: AbstractFileSystem) -> bool:
    """Whether a backend has a create of its own; the default one is no single step."""
    kind = type(fs)
    if isinstance(fs, AsyncFileSystem) and kind._pipe_file is not AsyncFileSystem._pipe_file:
        return True
    return kind.pipe_file is not AbstractFileSystem.pipe_file


def _try_twice(fs: AbstractFileSystem, folder: str, uri: str) -> None:
    with _names(fs, folder, 1) as (name,):
        if _made(fs, name, uri) and _made(fs, name, uri):
            raise _refusal(uri, "one that wrote over a file that was there")


def _try_at_once(fs: AbstractFileSystem, folder: str, uri: str) -> None:
    """Several writers at the same moment: a look and a write that are two steps are seen so."""
    with _names(fs, folder, _ROUNDS) as names, ThreadPoolExecutor(_WRITERS) as pool:
        for name in names:
            barrier = Barrier(_WRITERS)

            def write(_: int, name: str = name, barrier: Barrier = barrier) -> bool:
                barrier.wait()
                return _made(fs, name, uri)

            if sum(pool.map(write, range(_WRITERS))) > 1:
                raise _refusal(uri, "one that let two writers make the same file")


@contextmanager
def _names(fs: AbstractFileSystem, folder: str, n: int) -> Iterator[list[str]]:
    names = [f"{folder.rstrip('/')}/.probe-{uuid.uuid4().hex}" for _ in range(n)]
    try:
        yield names
    finally:
        for name in names:
            with suppress(FileNotFoundError):
                fs.rm_file(name)


def _made(fs: AbstractFileSystem, name: str, uri: str) -> bool:
    """Whether a writer is told that it made the file."""
    content = json.dumps({"probe": uuid.uuid4().hex}).encode()
    try:
        create(fs, name, content)
    except FileExistsError:
        return False
    except (NotImplementedError, TypeError):
        raise _refusal(uri, "one that does not know how to") from None
    except OSError as error:
        if status_of(error) == 501:
            raise _refusal(uri, "a server that does not know conditional writes (501)") from None
        with suppress(OSError):
            if fs.cat_file(name) == content:
                return True  # done, and the answer was lost
        raise
    return True


def _refusal(uri: str, found: str) -> InputError:
    return InputError(
        uri,
        expected="a storage that refuses to create a file whose name is taken, in one step (S3: "
        "conditional writes), so that of two writers one is told",
        found=f"{found}. Use another storage; or, if you make sure that never more than one raypq "
        "writes to this store, set RAYPQ_STORAGE_SINGLE_WRITER=true",
    )
