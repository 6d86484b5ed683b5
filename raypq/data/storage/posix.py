"""Local files: every write takes its name in one step, whole and synced, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name when it is complete, over whatever had it."""
    with _synced(target) as (file, partial):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(partial, target)


def create(target: Path, content: bytes) -> None:
    """A new file in one step: a synced temporary file, ``link``, sync of the folder.

    Raises:
        FileExistsError: the name is taken.
    """
    with _synced(target) as (file, partial):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.link(partial, target)
    sync_folder(target.parent)


@contextmanager
def _synced(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A hidden temporary file beside the target, gone at the end; gc takes those of a crash."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            yield file, partial
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder as durable as its files are."""
    if not folder.is_dir():
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def list_files(folder: Path) -> dict[str, tuple[int, float]]:
    """Size and time of change of the files directly in a folder; a missing folder has none."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file():
                        about = entry.stat()
                        found[entry.name] = about.st_size, about.st_mtime
                except FileNotFoundError:  # another writer's temporary file; it was never there
                    continue
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def list_folders(folder: Path) -> list[str]:
    """Names of the folders directly in a folder, sorted; a missing folder has none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
