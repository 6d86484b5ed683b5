"""What this process may do in a folder, tried with a probe that is removed again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raypq.data.storage import objects
from raypq.data.storage.operations import create, delete, list_files, read_bytes
from raypq.data.storage.place import filesystem, is_local, join, local_path
from raypq.data.storage.settings import StorageSettings
from raypq.errors import InputError, RaypqError, message_of

PROBE = ".raypq-doctor-"  # prefix of the probe's name, which listings of inputs skip

Right = Literal["open", "create", "read", "list", "create once", "delete"]

_ERRORS = (OSError, RaypqError)


@dataclass(frozen=True)
class Refusal:
    """A right that is missing, and the error of the storage."""

    right: Right
    reason: str


def missing_rights(folder: str) -> list[Refusal]:
    """The rights that this process lacks in a folder that a job writes to.

    Creates a small file with a name of its own, reads it, lists the folder, creates the name once
    more, which must be refused, and deletes it. A local folder that does not exist is tried in the
    folder above, where it would be made; so nothing is left behind.
    """
    return list(_refusals(str(nearest_existing(folder)) if is_local(folder) else folder))


def nearest_existing(folder: str) -> Path:
    """A local folder, or where it is not there the nearest folder above that is."""
    path = local_path(folder).absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def _refusals(folder: str) -> Iterator[Refusal]:
    name = f"{PROBE}{uuid.uuid4().hex}"
    probe, content = join(folder, name), name.encode()
    try:
        filesystem(folder)
    except _ERRORS as error:  # a package for the storage is missing
        yield Refusal("open", message_of(error))
        return
    try:
        create(probe, content)
    except InputError as error:  # the storage cannot create a name once
        yield Refusal("create once", message_of(error))
        return
    except _ERRORS as error:
        yield Refusal("create", message_of(error))
        return
    try:
        yield from _refused_uses(folder, name, content)
    finally:
        with suppress(*_ERRORS):
            delete(probe)


def _refused_uses(folder: str, name: str, content: bytes) -> Iterator[Refusal]:
    """Tries each use of a probe that exists; the last one deletes it."""
    probe = join(folder, name)
    listed = True
    try:
        if read_bytes(probe) != content:
            yield Refusal("read", f"{probe} was read back with another content")
    except _ERRORS as error:
        yield Refusal("read", message_of(error))
    try:
        if name not in list_files(folder):
            yield Refusal("list", f"{probe} was written, but the listing of {folder} lacks it")
    except _ERRORS as error:
        listed = False
        yield Refusal("list", message_of(error))
    if not StorageSettings.current().single_writer:
        try:
            create(probe, b"second")
            yield Refusal("create once", f"{probe} was created twice")
        except FileExistsError:
            pass
        except _ERRORS as error:
            yield Refusal("create once", message_of(error))
    try:
        delete(probe)
        if listed and name in list_files(folder):
            yield Refusal("delete", f"{probe} was deleted, and is still listed")
    except _ERRORS as error:
        yield Refusal("delete", f"{message_of(error)} (left there: {probe})")


def unreadable(uri: str) -> str | None:
    """Why the first byte of a file cannot be read; None if it can."""
    try:
        fs, path = filesystem(uri)
        with objects.server_errors(uri):
            fs.cat_file(path, start=0, end=1)
    except _ERRORS as error:
        return message_of(error)
    return None
