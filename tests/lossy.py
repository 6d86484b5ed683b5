"""A file system whose answers get lost, as those of an object store may: ``lossy://``."""

from __future__ import annotations

from threading import Lock
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class LossyFileSystem(MemoryFileSystem):
    """Does what it is asked and then raises the next of ``answers``; not ``done``: only raises."""

    protocol = "lossy"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the parent
    pseudo_dirs = [""]  # noqa: RUF012
    answers: list[Exception] = []  # noqa: RUF012
    done = True
    one_step = Lock()  # the parent looks and then writes

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        answer = self.answers.pop(0) if self.answers else None
        if answer is None or self.done:
            with self.one_step:
                super().pipe_file(path, value, mode=mode, **kwargs)
        if answer is not None:
            raise answer


def emptied() -> LossyFileSystem:
    """The file system, known to fsspec, with nothing in it and no answer to lose."""
    fsspec.register_implementation("lossy", LossyFileSystem, clobber=True)
    LossyFileSystem.store.clear()
    LossyFileSystem.answers.clear()
    LossyFileSystem.done = True
    return LossyFileSystem()
