"""Object stores through fsspec: an object gets its name when its upload is complete."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import PurePosixPath
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from raypq.data.storage import answers
from raypq.errors import InputError

_FLAT = frozenset({"s3", "gs", "gcs", "abfs", "az"})  # one listing holds all below a prefix
_MAX_DEPTH = 100  # nested folders
# Of errors that s3fs makes without one.
_NUMBERS = ((PermissionError, errno.EACCES), (FileNotFoundError, errno.ENOENT))
_MAX_PUT = 5 << 30  # bytes; S3's limit for an upload in one request


def has_folders(fs: AbstractFileSystem) -> bool:
    """Whether a folder may exist without files; a prefix exists by its objects alone."""
    return _FLAT.isdisjoint(protocols(fs))


@contextmanager
def server_errors(uri: str) -> Iterator[None]:
    """Turns errors of a server, and of the connection to it, into ``OSError`` that name the URI,
    and that say what to do where that is known.

    botocore's own errors (no connection, no credentials) are no ``OSError``, and many that s3fs
    makes from a server's response do not name the object.
    """
    try:
        yield
    except OSError as error:
        named = named_error(error, uri)
        if named is error:
            raise
        raise named from (error.__cause__ or error)
    except Exception as error:
        from botocore.exceptions import BotoCoreError

        if not isinstance(error, BotoCoreError):
            raise
        raise answers.no_answer(error, uri) from error


def named_error(error: OSError, uri: str) -> OSError:
    """An error with the URI, and with what to do where the server's response is known; the error
    itself where it has a name."""
    if not hasattr(error, "has_remedy") and (known := answers.explained(_response(error), uri)):
        return known
    if error.filename is not None or uri in str(error):
        return error
    default = next((number for kind, number in _NUMBERS if isinstance(error, kind)), errno.EIO)
    text = error.strerror or str(error) or type(error).__name__
    return type(error)(error.errno or default, text, uri)


@contextmanager
def atomic_write(fs: AbstractFileSystem, path: str) -> Iterator[IO[bytes]]:
    """An upload, in parts where it is large; one that fails is discarded, parts and all."""
    upload = fs.open(path, "wb")
    try:
        yield upload
        upload.close()
    except BaseException:
        if isinstance(upload, AbstractBufferedFile):
            upload.closed = True  # first, or its finalizer would commit what is there
        upload.discard()
        raise


def create(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    """Creates an object by one conditional put (``If-None-Match: *``), never multipart.

    Raises:
        FileExistsError: the name is taken (by another writer, or by an earlier request of ours
            whose response was lost).
    """
    one_request = {"chunksize": _MAX_PUT} if "s3" in fs.protocol else {}
    try:
        fs.pipe_file(path, content, mode="create", **one_request)
    except OSError as error:
        # If the server does not name the failed condition, s3fs raises EINVAL. 409: two
        # conditional puts at the same moment.
        if isinstance(error, FileExistsError) or status_of(error) in (409, 412):
            raise FileExistsError(errno.EEXIST, "taken", path) from error
        raise


def create_single_writer(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    """Creates an object by a check and a write, for a storage with a single writer.

    Raises:
        FileExistsError: the name is taken.
    """
    if exists(fs, path):
        raise FileExistsError(errno.EEXIST, "taken", path)
    fs.pipe_file(path, content)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the response that caused an error; None if there is none."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(status) if status is not None else None


def _response(error: BaseException) -> dict[str, Any]:
    """The response that botocore attaches to the cause of an error of s3fs."""
    return getattr(error.__cause__, "response", None) or {}


def list_files(fs: AbstractFileSystem, path: str) -> dict[str, tuple[int, float]]:
    """Size and time of change of the objects directly below a prefix, by name."""
    return {
        PurePosixPath(entry["name"]).name: (int(entry.get("size") or 0), _modified(entry))
        for entry in _entries(fs, path)
        if entry["type"] == "file"
    }


def list_folders(fs: AbstractFileSystem, path: str) -> list[str]:
    """Names of the prefixes directly below a prefix, sorted."""
    return sorted(
        PurePosixPath(entry["name"]).name
        for entry in _entries(fs, path)
        if entry["type"] == "directory"
    )


def exists(fs: AbstractFileSystem, path: str) -> bool:
    """Whether there is an object or a prefix.

    Errors of the server are raised; fsspec's own ``exists`` returns False for them.
    """
    try:
        fs.invalidate_cache(path)
        fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def children(fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    """fsspec's info of everything directly below a folder, by name; nothing if it is gone."""
    return sorted(_entries(fs, path), key=lambda entry: str(entry["name"]))


def below(
    fs: AbstractFileSystem, path: str, skip: Callable[[str], bool]
) -> Iterator[dict[str, Any]]:
    """fsspec's info of every file below a folder.

    Folder markers are no files: objects whose names end in ``/`` or ``_$folder$``, or that are
    empty and have objects below them.

    Args:
        skip: whether a folder of this name need not be listed.

    Raises:
        OSError: a folder that cannot be listed.
    """
    if not _FLAT.intersection(protocols(fs)):
        yield from _descend(fs, path, skip, depth=0)
        return
    fs.invalidate_cache(path)
    try:
        entries: dict[str, dict[str, Any]] = fs.find(path, detail=True)
    except FileNotFoundError as error:
        _refuse_missing_bucket(fs, path, error)
        return
    folders = {str(parent) for name in entries for parent in PurePosixPath(name).parents}
    for name, entry in entries.items():
        is_marker = name.endswith(("/", "_$folder$")) or (not entry.get("size") and name in folders)
        if entry["type"] != "directory" and not is_marker:
            yield entry


def _descend(
    fs: AbstractFileSystem, path: str, skip: Callable[[str], bool], depth: int
) -> Iterator[dict[str, Any]]:
    if depth > _MAX_DEPTH:
        raise OSError(errno.ELOOP, f"more than {_MAX_DEPTH} folders deep; a loop of links?", path)
    for entry in children(fs, path):
        name = str(entry["name"])
        if entry["type"] not in ("file", "directory"):
            entry = {**entry, **fs.info(name), "name": name}  # a link: info of its target
        if entry["type"] != "directory":
            yield entry
        elif not skip(PurePosixPath(name).name):
            yield from _descend(fs, name, skip, depth + 1)


def protocols(fs: AbstractFileSystem) -> set[str]:
    """The URI schemes of a filesystem."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def is_missing_bucket(fs: AbstractFileSystem, path: str, error: BaseException) -> bool:
    """Whether a path was not found because its bucket does not exist."""
    if not _FLAT.intersection(protocols(fs)):
        return False
    bucket, _, key = path.strip("/").partition("/")
    if response := _response(error):
        return not key or bool(response.get("Error", {}).get("Code") == "NoSuchBucket")
    try:
        fs.info(bucket)
    except FileNotFoundError:
        return True
    except OSError:  # it exists, but may not be read
        return False
    return False


def missing_bucket_error(uri: str) -> InputError:
    """The error for a URI whose bucket does not exist."""
    return InputError(uri, expected="a bucket that exists", found="no such bucket")


def _refuse_missing_bucket(fs: AbstractFileSystem, path: str, error: BaseException) -> None:
    if error.__cause__ is not None and is_missing_bucket(fs, path, error):
        raise missing_bucket_error(str(fs.unstrip_protocol(path))) from None


def _entries(fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    fs.invalidate_cache(path)
    try:
        entries: list[dict[str, Any]] = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        _refuse_missing_bucket(fs, path, error)
        return []
    folder = path.rstrip("/")  # its marker object is listed, too
    return [entry for entry in entries if entry["name"].rstrip("/") != folder]


def _modified(entry: dict[str, Any]) -> float:
    """Time of the last write, in seconds since 1970; if it is not known, now."""
    keys = ("LastModified", "mtime", "last_modified", "created")
    modified = next((entry[key] for key in keys if entry.get(key)), None)
    if isinstance(modified, datetime):
        return modified.timestamp()
    return float(modified) if modified else time.time()
