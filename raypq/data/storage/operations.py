"""What the commit protocol and its neighbours ask of storage, and nothing more.

Everything that writes or lists a store goes through the functions here, and they through one
``Storage``: a test puts a double in its place with ``replaced`` and makes any operation fail.
"""

from __future__ import annotations

import errno
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, cast

from raypq.data.storage import exclusive, objects, posix
from raypq.data.storage.place import filesystem, is_local, join, local_path
from raypq.data.storage.settings import StorageSettings
from raypq.errors import InputError

_PIECE = 8 << 20  # bytes read at once
_CLOCK_TRIES = 5


@dataclass(frozen=True)
class Listed:
    """A file in a listing: its size, and when it was last written (seconds since 1970)."""

    size: int
    written: float


class Storage:
    """Local files by POSIX calls, everything else by fsspec."""

    def read_bytes(self, uri: str) -> bytes:
        """The whole file."""
        fs, path = filesystem(uri)
        with objects.answering(uri):
            return cast(bytes, fs.cat_file(path))

    def digest(self, uri: str) -> str:
        """sha256 of the content."""
        fs, path = filesystem(uri)
        found = hashlib.sha256()
        with objects.answering(uri), fs.open(path, "rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
        return found.hexdigest()

    def exists(self, uri: str) -> bool:
        """Whether there is a file or folder; an error of the storage is no "no"."""
        if is_local(uri):
            return posix.exists(local_path(uri))
        fs, path = filesystem(uri)
        with objects.answering(uri):
            return objects.exists(fs, path)

    def file_size(self, uri: str) -> int:
        """Bytes."""
        if is_local(uri):
            return local_path(uri).stat().st_size
        fs, path = filesystem(uri)
        with objects.answering(uri):
            size = fs.info(path).get("size")
        if size is None:
            raise InputError(uri, expected="a file of known size", found="a size that is not told")
        return int(size)

    def list_files(self, uri: str) -> dict[str, Listed]:
        """The files of a folder by name; empty where there is none."""
        if is_local(uri):
            found = posix.list_files(local_path(uri))
        else:
            with objects.answering(uri):
                found = objects.list_files(*filesystem(uri))
        return {name: Listed(*about) for name, about in found.items()}

    def list_folders(self, uri: str) -> list[str]:
        """The names of the folders in a folder."""
        if is_local(uri):
            return posix.list_folders(local_path(uri))
        with objects.answering(uri):
            return objects.list_folders(*filesystem(uri))

    @contextmanager
    def replacing(self, uri: str) -> Iterator[IO[bytes]]:
        """A file that takes its name, whole, when the context ends well."""
        if is_local(uri):
            with posix.replacing(local_path(uri)) as file:
                yield file
        else:
            with objects.answering(uri), objects.replacing(*filesystem(uri)) as file:
                yield file

    def create(self, uri: str, content: bytes) -> None:
        """Makes a file that must not be there: FileExistsError if it is."""
        alone = StorageSettings.current().single_writer
        if is_local(uri):
            posix.create(local_path(uri), content, alone=alone)
            return
        fs, path = filesystem(uri)
        with objects.answering(uri):
            if alone:
                objects.create_alone(fs, path, content)
            else:
                exclusive.ensure(fs, path.rsplit("/", 1)[0], uri.rsplit("/", 1)[0])
                objects.create(fs, path, content)

    def prepare(self, uri: str) -> None:
        """Makes sure that ``create`` keeps its promise in a folder, before work relies on it."""
        if StorageSettings.current().single_writer:
            return
        if is_local(uri):
            posix.ensure_create(local_path(uri))
            return
        fs, path = filesystem(uri)
        with objects.answering(uri):
            exclusive.ensure(fs, path, uri)

    def delete(self, uri: str) -> None:
        """Removes a file; one that is gone already is no error."""
        fs, path = filesystem(uri)
        with objects.answering(uri), suppress(FileNotFoundError):
            fs.rm_file(path)

    def sync_folder(self, uri: str) -> None:
        """Makes the names in a local folder outlive a power cut."""
        if is_local(uri):
            posix.sync_folder(local_path(uri))


_used = Storage()


@contextmanager
def replaced(by: Storage) -> Iterator[None]:
    """Sends every operation of this process to another storage."""
    global _used
    before, _used = _used, by
    try:
        yield
    finally:
        _used = before


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        FileNotFoundError: it is not there.
    """
    return _used.read_bytes(uri)


def named_lines(uri: str, content: bytes, *, expected: str) -> Iterator[tuple[int, str]]:
    """The lines of a text that have more than spaces in them, without those around them, each
    with its number from 1.

    Raises:
        InputError: it is no UTF-8; ``expected`` says what should be there.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(uri, expected=expected, found=str(error)) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if name := line.strip():
            yield number, name


def read_named(uri: str, *, expected: str) -> bytes:
    """The whole content of a file that a user named.

    Raises:
        InputError: it is not there, or is a folder; ``expected`` says what should be there.
    """
    try:
        return read_bytes(uri)
    except FileNotFoundError:
        found = "no such file"
    except IsADirectoryError:
        found = "a folder"
    raise InputError(uri, expected=expected, found=found)


def digest(uri: str) -> str:
    """sha256 of a file, read in pieces."""
    return _used.digest(uri)


def exists(uri: str) -> bool:
    """True if a file or folder is there.

    Raises:
        OSError: the storage cannot tell; never taken for "not there".
    """
    return _used.exists(uri)


def file_size(uri: str) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: it is not there.
    """
    return _used.file_size(uri)


def list_files(uri: str) -> dict[str, Listed]:
    """The files directly in a folder, by name; a missing folder has none."""
    return _used.list_files(uri)


def list_names(uri: str) -> list[str]:
    """Names of the files directly in a folder, sorted; a missing folder has none."""
    return sorted(list_files(uri))


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; a missing folder has none."""
    return _used.list_folders(uri)


def replacing(uri: str) -> AbstractContextManager[IO[bytes]]:
    """A file to write that takes its name only when it is complete; nothing is left of a failure.

    An object store gives an object its name when its upload is closed, and never half of it.
    """
    return _used.replacing(uri)


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a file whole, replacing what was there in one step."""
    with replacing(uri) as file:
        file.write(content)


def create(uri: str, content: bytes) -> None:
    """Creates a file in ONE step that fails if the name is taken; never half there.

    Raises:
        FileExistsError: the name is taken (by another writer, or by a lost answer of our own).
        InputError: the storage cannot promise that.
    """
    _used.create(uri, content)


def prepare(folder: str) -> None:
    """Makes sure, by a small trial, that ``create`` keeps its promise in a folder.

    Raises:
        InputError: two writers could both be told that they made a file.
        OSError: nothing can be written there.
    """
    _used.prepare(folder)


def create_once(uri: str, content: bytes) -> bool:
    """As ``create``, but reads back what is there where the answer leaves it open.

    ``content`` must be unlike any other writer's, by a nonce in it, say.

    Returns:
        True if the file holds our content, False if the name is another writer's.

    Raises:
        OSError: it could not be created.
    """
    try:
        create(uri, content)
    except FileExistsError:
        # Taken: by another writer, or by our own request, tried again after its answer was lost.
        return read_bytes(uri) == content
    except OSError as error:
        # No answer, or a server's error: what is there now tells whether it was done.
        with suppress(OSError):
            if read_bytes(uri) == content:
                return True
        raise error
    return True


def delete(uri: str) -> None:
    """Removes a file; it need not be there."""
    _used.delete(uri)


def sync_folder(uri: str) -> None:
    """Makes the names in a local folder as durable as its files are."""
    _used.sync_folder(uri)


def now(folder: str) -> float:
    """The time by the clock that dates the files of a folder (seconds since 1970).

    Read from a file that is written there: the clock of this machine may be days off that of the
    storage. A gc that takes files of any age may take this one too, so there are several tries.
    """
    for _ in range(_CLOCK_TRIES):
        name = f".clock-{uuid.uuid4().hex}"
        probe = join(folder, name)
        create(probe, b"what time is it?")
        try:
            if found := list_files(folder).get(name):
                return found.written
        finally:
            delete(probe)
    raise OSError(errno.EBUSY, f"{_CLOCK_TRIES} files were removed as they were written", folder)
