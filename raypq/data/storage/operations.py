"""Storage operations of the commit protocol.

Everything that writes or lists a store goes through the functions here, and they through one
``Storage``: a test replaces it with ``use_storage`` and makes any operation fail.
"""

from __future__ import annotations

import errno
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from raypq.data.storage import exclusive, objects, posix
from raypq.data.storage.place import filesystem, is_local, join, local_path
from raypq.data.storage.settings import StorageSettings
from raypq.errors import InputError, WriteError

_CHUNK = 8 << 20  # bytes read at once
_CLOCK_TRIES = 5


@dataclass(frozen=True, slots=True)
class Listed:
    """A file in a listing: size in bytes, and time of the last write (seconds since 1970)."""

    size: int
    written: float


class Storage:
    """Local files by POSIX calls, everything else by fsspec."""

    def read_bytes(self, uri: str) -> bytes:
        """The whole file."""
        fs, path = filesystem(uri)
        with objects.server_errors(uri):
            return cast(bytes, fs.cat_file(path))

    def digest(self, uri: str) -> str:
        """sha256 of the content."""
        fs, path = filesystem(uri)
        sha256 = hashlib.sha256()
        with objects.server_errors(uri), fs.open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
        return sha256.hexdigest()

    def exists(self, uri: str) -> bool:
        """Whether there is a file or folder; errors of the storage are raised."""
        if is_local(uri):
            return posix.exists(local_path(uri))
        fs, path = filesystem(uri)
        with objects.server_errors(uri):
            return objects.exists(fs, path)

    def file_size(self, uri: str) -> int:
        """Size in bytes."""
        if is_local(uri):
            return local_path(uri).stat().st_size
        fs, path = filesystem(uri)
        with objects.server_errors(uri):
            size = fs.info(path).get("size")
        if size is None:
            raise InputError(
                uri,
                expected="a file of known size",
                found="one whose size the storage does not give",
            )
        return int(size)

    def list_files(self, uri: str) -> dict[str, Listed]:
        """The files of a folder by name; empty where there is none."""
        if is_local(uri):
            files = posix.list_files(local_path(uri))
        else:
            with objects.server_errors(uri):
                files = objects.list_files(*filesystem(uri))
        return {name: Listed(size, written) for name, (size, written) in files.items()}

    def list_folders(self, uri: str) -> list[str]:
        """The names of the folders in a folder."""
        if is_local(uri):
            return posix.list_folders(local_path(uri))
        with objects.server_errors(uri):
            return objects.list_folders(*filesystem(uri))

    @contextmanager
    def atomic_write(self, uri: str) -> Iterator[IO[bytes]]:
        """A file to write that gets its name when the context ends without an error."""
        if is_local(uri):
            with posix.atomic_write(local_path(uri)) as file:
                yield file
        else:
            with objects.atomic_write(*filesystem(uri)) as file:
                yield file

    def create(self, uri: str, content: bytes) -> None:
        """Creates a file; FileExistsError if the name is taken."""
        single_writer = StorageSettings.current().single_writer
        if is_local(uri):
            posix.create(local_path(uri), content, single_writer=single_writer)
            return
        fs, path = filesystem(uri)
        with objects.server_errors(uri):
            if single_writer:
                objects.create_single_writer(fs, path, content)
            else:
                exclusive.ensure(fs, path.rsplit("/", 1)[0], uri.rsplit("/", 1)[0])
                objects.create(fs, path, content)

    def check_create(self, uri: str) -> None:
        """Checks that ``create`` is exclusive in a folder, before work relies on it."""
        if StorageSettings.current().single_writer:
            return
        if is_local(uri):
            posix.check_create(local_path(uri))
            return
        fs, path = filesystem(uri)
        with objects.server_errors(uri):
            exclusive.ensure(fs, path, uri)

    def delete(self, uri: str) -> None:
        """Removes a file; a missing one is no error."""
        fs, path = filesystem(uri)
        with objects.server_errors(uri), suppress(FileNotFoundError):
            fs.rm_file(path)

    def sync_folder(self, uri: str) -> None:
        """Syncs a local folder, so that the names in it survive a power cut."""
        if is_local(uri):
            posix.sync_folder(local_path(uri))


_current = Storage()


@contextmanager
def use_storage(storage: Storage) -> Iterator[None]:
    """Directs every operation of this process to another storage, within the context."""
    global _current
    before, _current = _current, storage
    try:
        yield
    finally:
        _current = before


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: it does not exist.
    """
    return _current.read_bytes(uri)


def named_lines(
    uri: str, content: bytes, *, expected: str, strip: bool = True
) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, stripped, each with its number (from 1).

    Args:
        strip: remove white space around a line; otherwise its end alone.

    Raises:
        InputError: it is not UTF-8; ``expected`` describes the file.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(uri, expected=expected, found=str(error)) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if name := line.strip():
            yield number, name if strip else line.removesuffix("\r")


def read_named(uri: str, *, expected: str) -> bytes:
    """The content of a file that a user named.

    Raises:
        InputError: it does not exist, or is a folder; ``expected`` describes the file.
    """
    try:
        return read_bytes(uri)
    except FileNotFoundError:
        found = "no such file"
    except IsADirectoryError:
        found = "a folder"
    raise InputError(uri, expected=expected, found=found)


def digest(uri: str) -> str:
    """sha256 of a file, read in chunks."""
    return _current.digest(uri)


def exists(uri: str) -> bool:
    """Whether a file or folder exists.

    Raises:
        OSError: the storage failed, so that it is not known.
    """
    return _current.exists(uri)


def file_size(uri: str) -> int:
    """Size of a file in bytes.

    Raises:
        FileNotFoundError: it does not exist.
    """
    return _current.file_size(uri)


def list_files(uri: str) -> dict[str, Listed]:
    """The files directly in a folder, by name; a missing folder has none."""
    return _current.list_files(uri)


def list_names(uri: str) -> list[str]:
    """Names of the files directly in a folder, sorted; a missing folder has none."""
    return sorted(list_files(uri))


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; a missing folder has none."""
    return _current.list_folders(uri)


@contextmanager
def write_errors(uri: str) -> Iterator[None]:
    """Turns errors of the storage into ``WriteError`` with the path that could not be written.

    Errors of a full disk do not name the file. A name that is taken stays ``FileExistsError``.
    """
    try:
        with objects.server_errors(uri):
            yield
    except (FileExistsError, WriteError):
        raise
    except OSError as error:
        raise WriteError.of(error, uri) from error


class _Output:
    """A file that is written, whose errors name its URI."""

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file, self._uri = file, uri

    def write(self, data: bytes) -> int:
        with write_errors(self._uri):
            return self._file.write(data)

    def flush(self) -> None:
        with write_errors(self._uri):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def atomic_write(uri: str) -> Iterator[IO[bytes]]:
    """A file to write that gets its name, replacing any other file, when it is complete.

    A failure leaves nothing behind. An object store gives an object its name when the upload is
    closed, never before.

    Raises:
        WriteError: it cannot be written; errors of the context itself, such as those of reading
            what is written, pass unchanged.
    """
    manager = _current.atomic_write(uri)
    with write_errors(uri):
        file = manager.__enter__()
    try:
        yield cast(IO[bytes], _Output(file, uri))
    except BaseException as error:
        with write_errors(uri):  # closing the file may fail, too
            manager.__exit__(type(error), error, error.__traceback__)
        raise
    with write_errors(uri):
        manager.__exit__(None, None, None)


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a file in one step, replacing any other file of the name."""
    with atomic_write(uri) as file:
        file.write(content)


def create(uri: str, content: bytes) -> None:
    """Creates a complete file in one step that fails if the name is taken.

    Raises:
        FileExistsError: the name is taken (by another writer, or by an earlier request of ours
            whose response was lost).
        InputError: the storage cannot refuse a name that is taken.
        WriteError: it cannot be written.
    """
    with write_errors(uri):
        _current.create(uri, content)


def check_create(folder: str) -> None:
    """Checks, by a small trial, that ``create`` is exclusive in a folder.

    Raises:
        InputError: two writers could both succeed in creating a file.
        WriteError: nothing can be written there.
    """
    with write_errors(folder):
        _current.check_create(folder)


def create_once(uri: str, content: bytes) -> bool:
    """As ``create``, but reads the file back where the response leaves the outcome open.

    ``content`` must differ from any other writer's, for example by a nonce.

    Returns:
        True if the file holds our content, False if another writer took the name.

    Raises:
        OSError: it could not be created.
    """
    try:
        create(uri, content)
    except FileExistsError:
        # By another writer, or by our own request, retried after its response was lost.
        return read_bytes(uri) == content
    except OSError as error:
        # No response, or a server error: the request may have succeeded.
        with suppress(OSError):
            if read_bytes(uri) == content:
                return True
        raise error
    return True


def delete(uri: str) -> None:
    """Removes a file; a missing one is no error."""
    _current.delete(uri)


def sync_folder(uri: str) -> None:
    """Syncs a local folder, so that the names in it are as durable as its files."""
    _current.sync_folder(uri)


def storage_time(folder: str) -> float:
    """The current time by the clock that dates the files of a folder (seconds since 1970).

    Read from a probe file: the clock of this machine may differ from the storage's by days. A gc
    that removes files of any age may remove the probe, so there are several tries.
    """
    for _ in range(_CLOCK_TRIES):
        name = f".clock-{uuid.uuid4().hex}"
        probe = join(folder, name)
        create(probe, b"")  # empty: it needs no room on a full disk
        try:
            if listed := list_files(folder).get(name):
                return listed.written
        finally:
            delete(probe)
    raise OSError(errno.EBUSY, f"{_CLOCK_TRIES} files were removed as they were written", folder)
