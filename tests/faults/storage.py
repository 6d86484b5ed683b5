"""Storages that inject faults: an error or a death in the n-th operation, and lost responses."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Literal, TypeVar

from raypq.data.storage import Listed, Storage

T = TypeVar("T")
Fault = Literal["fails before", "fails after", "dies before", "dies after"]
FAULTS: tuple[Fault, ...] = ("fails before", "fails after", "dies before", "dies after")


class Dead(BaseException):
    """The process was killed. A ``BaseException``, so that no error handler catches it."""


class FaultyStorage(Storage):
    """Counts operations and injects a fault into one of them.

    *fails*: this operation raises an error; later ones work. *dies*: this and all later operations
    have no effect, clean-up included, as after kill -9. *after*: the operation took effect, and its
    response was lost.
    """

    def __init__(self, at: int | None = None, fault: Fault = "fails before") -> None:
        self._at, self._fault = at, fault
        self._lock = threading.Lock()
        self.dead = False
        self.done: list[str] = []
        self._open: list[Any] = []

    def _do(self, name: str, action: Callable[[], T]) -> T:
        with self._lock:
            if self.dead:
                raise Dead(name)
            number = len(self.done)
            self.done.append(name)
            if number != self._at:
                return action()
            self.dead = self._fault.startswith("dies")
            if self._fault.endswith("after"):
                action()
            if self.dead:
                raise Dead(name)
            raise OSError(errno.EIO, f"injected: {name} {self._fault}")

    def read_bytes(self, uri: str) -> bytes:
        return self._do("read", lambda: super(FaultyStorage, self).read_bytes(uri))

    def digest(self, uri: str) -> str:
        return self._do("digest", lambda: super(FaultyStorage, self).digest(uri))

    def exists(self, uri: str) -> bool:
        return self._do("exists", lambda: super(FaultyStorage, self).exists(uri))

    def file_size(self, uri: str) -> int:
        return self._do("size", lambda: super(FaultyStorage, self).file_size(uri))

    def list_files(self, uri: str) -> dict[str, Listed]:
        return self._do("list", lambda: super(FaultyStorage, self).list_files(uri))

    def list_folders(self, uri: str) -> list[str]:
        return self._do("folders", lambda: super(FaultyStorage, self).list_folders(uri))

    def create(self, uri: str, content: bytes) -> None:
        self._do("create", lambda: super(FaultyStorage, self).create(uri, content))

    def delete(self, uri: str) -> None:
        self._do("delete", lambda: super(FaultyStorage, self).delete(uri))

    def sync_folder(self, uri: str) -> None:
        self._do("sync", lambda: super(FaultyStorage, self).sync_folder(uri))

    @contextmanager
    def atomic_write(self, uri: str) -> Iterator[IO[bytes]]:
        inner = super().atomic_write(uri)
        self._open.append(inner)  # kept alive, or its finalizer would clean up after the death
        file = self._do("open", inner.__enter__)
        try:
            yield _File(file, self)  # type: ignore[misc]  # only write is used
        except BaseException as error:
            if not self.dead:  # a killed process leaves its temporary file behind
                inner.__exit__(type(error), error, error.__traceback__)
            raise
        try:
            self._do("close", lambda: inner.__exit__(None, None, None))
        except OSError as error:
            if "fails before" in str(error):
                with suppress(OSError):  # raised again by the generator after its clean-up
                    inner.__exit__(type(error), error, error.__traceback__)
            raise


class _File:
    def __init__(self, file: IO[bytes], storage: FaultyStorage) -> None:
        self._file, self._storage = file, storage

    def write(self, data: Any) -> int:
        return self._storage._do("write", lambda: self._file.write(data))


class LossyStorage(Storage):
    """Loses the response of a share of the creates, at random."""

    def __init__(self, share: float, seed: int) -> None:
        self._share, self._random = share, random.Random(seed)
        self.lost = 0

    def create(self, uri: str, content: bytes) -> None:
        super().create(uri, content)
        if self._random.random() < self._share:
            self.lost += 1
            # As seen by the client: a time-out, or the failed condition of its retry.
            raise self._random.choice([TimeoutError("no answer"), FileExistsError(uri)])
