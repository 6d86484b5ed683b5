"""Whether a storage's create is refused where the name is taken: probed before it is relied on.

Versions, leases and journals stand on one promise: of two writers that create a name, one is told
that it is taken. fsspec's default looks first and writes then, some servers ignore the condition of
a conditional put, and some backends do not know ``mode="create"`` at all: there two writers would
both be told "version 1". Each storage is tried once a process, with small files that are removed.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from inspect import iscoroutinefunction
from threading import Barrier
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from raypq.data.storage.objects import create, protocols, status_of
from raypq.errors import InputError

_BY_CONDITION = frozenset({"s3", "gs", "gcs", "abfs", "az"})  # the server decides, in one step
_WRITERS, _ROUNDS = 4, 3
_PROBE = ".probe-"  # how the names of a trial begin
_PAUSE = 0.05  # seconds
_LOOKS = ("exists", "lexists", "isfile", "info", "_exists", "_isfile", "_info")
_SEEN = "_raypq_creates_once"  # of a filesystem: buckets where its create kept the promise


def ensure(fs: AbstractFileSystem, folder: str, uri: str) -> None:
    """Makes sure that ``create`` keeps its promise on a filesystem.

    Args:
        folder: where the trial is made, on ``fs``. uri: the same place, for errors.

    Raises:
        InputError: two writers would both be told that they made the file.
        OSError: the trial could not be made.
    """
    inner = _unwrapped(fs)
    if type(inner).pipe_file is MemoryFileSystem.pipe_file:
        return  # of this process alone
    owner: Any = fs if fs.cachable else type(fs)
    seen = vars(owner).get(_SEEN, frozenset())
    bucket = folder.strip("/").split("/")[0]
    if bucket in seen:
        return
    if not _overrides(inner):
        raise _refusal(uri, "one that looks whether a name is taken and writes later")
    _try_twice(fs, folder, uri)
    if not _BY_CONDITION.intersection(protocols(inner)):
        with _slow_looks(inner):
            _try_at_once(fs, folder, uri)
    setattr(owner, _SEEN, seen | {bucket})


def _unwrapped(fs: AbstractFileSystem) -> AbstractFileSystem:
    """The filesystem that does the work: ``dir::`` only puts a folder before every path."""
    while isinstance(fs, DirFileSystem):
        fs = fs.fs
    return fs


@contextmanager
def _slow_looks(fs: AbstractFileSystem) -> Iterator[None]:
    """Lets time pass between a look at a trial's name and what follows, so that all writers have
    looked before one writes: a quick look and write would seldom be caught otherwise."""
    own = vars(fs)
    before = {name: own[name] for name in _LOOKS if name in own}
    changed = [name for name in _LOOKS if callable(getattr(fs, name, None))]
    for name in changed:
        setattr(fs, name, _slow(getattr(fs, name)))
    try:
        yield
    finally:
        for name in changed:
            own.pop(name, None)
        own.update(before)


def _slow(look: Callable[..., Any]) -> Callable[..., Any]:
    if iscoroutinefunction(look):

        async def later(*args: Any, **kwargs: Any) -> Any:
            try:
                return await look(*args, **kwargs)
            finally:
                await asyncio.sleep(_pause(args))

        return later

    def at_once(*args: Any, **kwargs: Any) -> Any:
        try:
            return look(*args, **kwargs)
        finally:
            time.sleep(_pause(args))

    return at_once


def _pause(args: tuple[Any, ...]) -> float:
    return _PAUSE if args and _PROBE in str(args[0]) else 0.0


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
    names = [f"{folder.rstrip('/')}/{_PROBE}{uuid.uuid4().hex}" for _ in range(n)]
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
