"""Local files: a written file gets its name in one step, complete and synced, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from raypq.data.storage.settings import SINGLE_WRITER_REMEDY
from raypq.errors import InputError

# Errors of ``link`` and ``renameat2`` on filesystems that do not support them.
_UNSUPPORTED = (
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EMLINK,
)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


@contextmanager
def atomic_write(target: Path) -> Iterator[IO[bytes]]:
    """A file to write that gets its name when it is complete, replacing the file that had it."""
    with _temporary(target) as (file, partial):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(partial, target)


def create(target: Path, content: bytes, *, single_writer: bool = False) -> None:
    """Creates a file in one step: a synced temporary file, ``link``, sync of the folder.

    On filesystems without hard links (FAT, some FUSE), a rename that does not replace.

    Args:
        single_writer: nobody else writes here, so that a check and a rename are enough.

    Raises:
        FileExistsError: the name is taken.
        InputError: the filesystem supports neither, and others may write.
    """
    with _temporary(target) as (file, partial):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        _link(partial, target, single_writer=single_writer)
    sync_folder(target.parent)


def check_create(folder: Path) -> None:
    """Checks, by a trial, that ``create`` works in a folder; leaves nothing behind.

    Raises:
        InputError: the filesystem cannot refuse a name that is taken.
    """
    probe = folder / f".{uuid.uuid4().hex}"
    target = probe.with_suffix(".part")
    try:
        with _temporary(probe) as (_, partial):
            _link(partial, target)
    finally:
        target.unlink(missing_ok=True)


def _link(partial: Path, target: Path, *, single_writer: bool = False) -> None:
    """Gives a temporary file its name, unless that is taken."""
    try:
        os.link(partial, target)
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    if _rename_noreplace(partial, target):
        return
    if not single_writer:
        raise InputError(
            str(target.parent),
            expected="a filesystem with hard links, or with renames that do not replace, so that "
            "of two writers of one name one is refused",
            found=f"neither. Use another filesystem; or, {SINGLE_WRITER_REMEDY}",
        )
    if exists(target):
        raise FileExistsError(errno.EEXIST, "taken", str(target))
    os.replace(partial, target)


def _rename_noreplace(partial: Path, target: Path) -> bool:
    """Renames in one step unless the name is taken; False where that is not supported.

    Raises:
        FileExistsError: the name is taken.
    """
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)  # Linux, glibc 2.28
    if rename is None:
        return False
    old, new = os.fsencode(partial), os.fsencode(target)
    if rename(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A hidden temporary file next to the target, removed at the end (after a crash, by gc)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            yield file, partial
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that the names in it are as durable as its files."""
    if not folder.is_dir():
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exists(path: Path) -> bool:
    """Whether there is a file or folder; errors of the storage are raised."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def list_files(folder: Path) -> dict[str, tuple[int, float]]:
    """Size and mtime of the files directly in a folder, by name; a missing folder has none."""
    files = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file():
                        status = entry.stat()
                        files[entry.name] = status.st_size, status.st_mtime
                except FileNotFoundError:  # another writer's temporary file, removed meanwhile
                    continue
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return files


def list_folders(folder: Path) -> list[str]:
    """Names of the folders directly in a folder, sorted; a missing folder has none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
