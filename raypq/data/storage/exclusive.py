"""Checks, by a trial, that a storage's create is exclusive.

Versions, leases and journals rely on it: of two writers that create a name, one must be refused.
fsspec's default checks first and writes then, some servers ignore the condition of a conditional
put, and some backends do not support ``mode="create"`` at all: two writers could both create
"version 1". Each storage is tried once a process, with small files that are removed.
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
from raypq.data.storage.settings import SINGLE_WRITER_REMEDY
from raypq.errors import InputError

_CONDITIONAL = frozenset({"s3", "gs", "gcs", "abfs", "az"})  # the server decides, in one step
_WRITERS, _ROUNDS = 4, 3
_PROBE = ".probe-"  # prefix of the trial's files
_PAUSE = 0.05  # seconds
_LOOKUPS = ("exists", "lexists", "isfile", "info", "_exists", "_isfile", "_info")
_PASSED = "_raypq_creates_once"  # attribute of a filesystem: buckets that passed the trial


def ensure(fs: AbstractFileSystem, folder: str, uri: str) -> None:
    """Checks that ``create`` is exclusive on a filesystem.

    Args:
        folder: where the trial is made, on ``fs``. uri: the same, for errors.

    Raises:
        InputError: two writers would both succeed.
        OSError: the trial failed.
    """
    inner = _unwrapped(fs)
    if type(inner).pipe_file is MemoryFileSystem.pipe_file:
        return  # of this process alone
    owner: Any = fs if fs.cachable else type(fs)
    passed = vars(owner).get(_PASSED, frozenset())
    bucket = folder.strip("/").split("/")[0]
    if bucket in passed:
        return
    if not _has_own_create(inner):
        raise _refusal(uri, "one that checks whether a name is taken and writes later")
    _create_twice(fs, folder, uri)
    if not _CONDITIONAL.intersection(protocols(inner)):
        with _slow_lookups(inner):
            _create_concurrently(fs, folder, uri)
    setattr(owner, _PASSED, passed | {bucket})


def _unwrapped(fs: AbstractFileSystem) -> AbstractFileSystem:
    """The underlying filesystem: ``dir::`` only prefixes every path with a folder."""
    while isinstance(fs, DirFileSystem):
        fs = fs.fs
    return fs


@contextmanager
def _slow_lookups(fs: AbstractFileSystem) -> Iterator[None]:
    """Adds a pause after every lookup of a trial's name.

    All writers then look up the name before one writes: without the pause, a fast check and write
    would seldom be caught.
    """
    attributes = vars(fs)
    before = {name: attributes[name] for name in _LOOKUPS if name in attributes}
    changed = [name for name in _LOOKUPS if callable(getattr(fs, name, None))]
    for name in changed:
        setattr(fs, name, _slow(getattr(fs, name)))
    try:
        yield
    finally:
        for name in changed:
            attributes.pop(name, None)
        attributes.update(before)


def _slow(lookup: Callable[..., Any]) -> Callable[..., Any]:
    if iscoroutinefunction(lookup):

        async def slow_async(*args: Any, **kwargs: Any) -> Any:
            try:
                return await lookup(*args, **kwargs)
            finally:
                await asyncio.sleep(_pause(args))

        return slow_async

    def slow(*args: Any, **kwargs: Any) -> Any:
        try:
            return lookup(*args, **kwargs)
        finally:
            time.sleep(_pause(args))

    return slow


def _pause(args: tuple[Any, ...]) -> float:
    return _PAUSE if args and _PROBE in str(args[0]) else 0.0


def _has_own_create(fs: AbstractFileSystem) -> bool:
    """Whether a backend has a create of its own; fsspec's default takes two steps."""
    backend = type(fs)
    if isinstance(fs, AsyncFileSystem) and backend._pipe_file is not AsyncFileSystem._pipe_file:
        return True
    return backend.pipe_file is not AbstractFileSystem.pipe_file


def _create_twice(fs: AbstractFileSystem, folder: str, uri: str) -> None:
    with _probe_names(fs, folder, 1) as (name,):
        if _create(fs, name, uri) and _create(fs, name, uri):
            raise _refusal(uri, "one that overwrote an existing file")


def _create_concurrently(fs: AbstractFileSystem, folder: str, uri: str) -> None:
    """Several writers at the same moment, which catches a check and a write in two steps."""
    with _probe_names(fs, folder, _ROUNDS) as names, ThreadPoolExecutor(_WRITERS) as pool:
        for name in names:
            barrier = Barrier(_WRITERS)

            def write(_: int, name: str = name, barrier: Barrier = barrier) -> bool:
                barrier.wait()
                return _create(fs, name, uri)

            if sum(pool.map(write, range(_WRITERS))) > 1:
                raise _refusal(uri, "one that let two writers create the same file")


@contextmanager
def _probe_names(fs: AbstractFileSystem, folder: str, n: int) -> Iterator[list[str]]:
    """Names of files to create, which are removed at the end."""
    names = [f"{folder.rstrip('/')}/{_PROBE}{uuid.uuid4().hex}" for _ in range(n)]
    try:
        yield names
    finally:
        for name in names:
            with suppress(FileNotFoundError):
                fs.rm_file(name)


def _create(fs: AbstractFileSystem, name: str, uri: str) -> bool:
    """Creates a file; whether that succeeded, from the writer's view."""
    content = json.dumps({"probe": uuid.uuid4().hex}).encode()
    try:
        create(fs, name, content)
    except FileExistsError:
        return False
    except (NotImplementedError, TypeError):
        raise _refusal(uri, "one that does not support it") from None
    except OSError as error:
        if status_of(error) == 501:
            raise _refusal(uri, "a server without conditional writes (501)") from None
        with suppress(OSError):
            if fs.cat_file(name) == content:
                return True  # it succeeded, but the response was lost
        raise
    return True


def _refusal(uri: str, found: str) -> InputError:
    return InputError(
        uri,
        expected="a storage that refuses to create a file whose name is taken, in one step (S3: "
        "conditional writes), so that of two writers one is refused",
        found=f"{found}. Use another storage; or, {SINGLE_WRITER_REMEDY}",
    )
