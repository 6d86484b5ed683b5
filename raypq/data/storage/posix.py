"""Local files: every write takes its name in one step, whole and synced, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from raypq.errors import InputError

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
_HERE, _NOREPLACE = -100, 1  # AT_FDCWD, RENAME_NOREPLACE


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name when it is complete, over whatever had it."""
    with _synced(target) as (file, partial):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(partial, target)


def create(target: Path, content: bytes, *, alone: bool = False) -> None:
    """A new file in one step: a synced temporary file, ``link``, sync of the folder.

    Filesystems without hard links (FAT, some FUSE) are asked for a rename that replaces nothing.

    Args:
        alone: nobody else writes here, so that a look and a rename are enough.

    Raises:
        FileExistsError: the name is taken.
        InputError: the filesystem can do neither, and somebody else may write.
    """
    with _synced(target) as (file, partial):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        _name_once(partial, target, alone=alone)
    sync_folder(target.parent)


def ensure_create(folder: Path) -> None:
    """Makes sure, by a trial, that ``create`` works in a folder; nothing is left of it.

    Raises:
        InputError: the filesystem cannot refuse a name that is taken.
    """
    place = folder / f".{uuid.uuid4().hex}"
    target = place.with_suffix(".part")
    try:
        with _synced(place) as (_, partial):
            _name_once(partial, target)
    finally:
        target.unlink(missing_ok=True)


def _name_once(partial: Path, target: Path, *, alone: bool = False) -> None:
    try:
        os.link(partial, target)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    if _renamed(partial, target):
        return
    if not alone:
        raise InputError(
            str(target.parent),
            expected="a filesystem with hard links, or with renames that replace nothing, so that "
            "of two writers of one name one is told",
            found="neither. Use another filesystem; or, if you make sure that never more than one "
            "raypq writes to this store, set RAYPQ_STORAGE_SINGLE_WRITER=true",
        )
    if exists(target):
        raise FileExistsError(errno.EEXIST, "taken", str(target))
    os.replace(partial, target)


def _renamed(partial: Path, target: Path) -> bool:
    """Renames unless the name is taken, in one step; False where that is not known here.

    Raises:
        FileExistsError: the name is taken.
    """
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)  # Linux, glibc 2.28
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(partial), _HERE, os.fsencode(target), _NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_LINKS:
        return False
    raise OSError(number, os.strerror(number), str(target))


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


def exists(path: Path) -> bool:
    """Whether there is a file or folder; errors of the storage are raised."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


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
