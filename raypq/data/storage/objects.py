"""Object stores through fsspec: an object has its name once its upload is complete."""

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

from raypq.errors import InputError

_FLAT = frozenset({"s3", "gs", "gcs", "abfs", "az"})  # one listing has all that is below a prefix
_DEEPEST = 100  # folders below each other
_LARGEST_PUT = 5 << 30  # bytes; S3's limit for an upload in one request


def has_folders(fs: AbstractFileSystem) -> bool:
    """Whether a folder may be there without files; a prefix is there by its objects alone."""
    return _FLAT.isdisjoint(protocols(fs))


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Errors of a server, and of the way to it, as ``OSError`` that name the URI.

    botocore's own errors (no connection, no credentials) are no ``OSError``, and many of those
    that s3fs makes of a server's answer do not say what was asked for.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or uri in str(error):
            raise
        number, text = error.errno or errno.EIO, error.strerror or str(error)
        named = type(error)(number, text or type(error).__name__, uri)
        raise named from (error.__cause__ or error)
    except Exception as error:
        from botocore.exceptions import BotoCoreError

        if not isinstance(error, BotoCoreError):
            raise
        raise ConnectionError(errno.EIO, str(error), uri) from error


@contextmanager
def replacing(fs: AbstractFileSystem, path: str) -> Iterator[IO[bytes]]:
    """An upload, in parts where it is large; one that fails is discarded, parts and all."""
    upload = fs.open(path, "wb")
    try:
        yield upload
        upload.close()
    except BaseException:
        if isinstance(upload, AbstractBufferedFile):
            upload.closed = True  # first, or the end of its life would commit what is there
        upload.discard()
        raise


def create(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    """One conditional put (``If-None-Match: *``), never multipart.

    Raises:
        FileExistsError: the name is taken (by another writer, or by a lost answer of our own).
    """
    whole = {"chunksize": _LARGEST_PUT} if "s3" in fs.protocol else {}
    try:
        fs.pipe_file(path, content, mode="create", **whole)
    except OSError as error:
        # A server that does not name the failed condition makes s3fs raise EINVAL. 409: two
        # conditional puts at the same moment.
        if isinstance(error, FileExistsError) or status_of(error) in (409, 412):
            raise FileExistsError(errno.EEXIST, "taken", path) from error
        raise


def create_alone(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    """A look and a write: enough where the user says that nobody else writes.

    Raises:
        FileExistsError: the name is taken.
    """
    if exists(fs, path):
        raise FileExistsError(errno.EEXIST, "taken", path)
    fs.pipe_file(path, content)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a server's answer, which hangs on the cause of the error made of it."""
    answer = getattr(error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(status) if status is not None else None


def list_files(fs: AbstractFileSystem, path: str) -> dict[str, tuple[int, float]]:
    """Size and time of change of the objects directly below a prefix, all pages of them."""
    return {
        PurePosixPath(entry["name"]).name: (int(entry.get("size") or 0), _written(entry))
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
    """Whether there is an object or a prefix; an error is never taken for "no".

    fsspec's own ``exists`` is False for every error: a server that does not answer, a refusal.
    """
    try:
        fs.invalidate_cache(path)
        fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def children(fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    """What fsspec says of everything directly below a folder, by name; nothing if it is gone."""
    return sorted(_entries(fs, path), key=lambda entry: str(entry["name"]))


def below(
    fs: AbstractFileSystem, path: str, passing: Callable[[str], bool]
) -> Iterator[dict[str, Any]]:
    """What fsspec says of every file below a folder.

    Objects that stand for a folder are no files: their names end in ``/`` or ``_$folder$``, or
    they are empty and something is below them.

    Args:
        passing: names of folders that need not be listed.

    Raises:
        OSError: a folder that cannot be listed.
    """
    if not _FLAT.intersection(protocols(fs)):
        yield from _descend(fs, path, passing, depth=0)
        return
    fs.invalidate_cache(path)
    try:
        found: dict[str, dict[str, Any]] = fs.find(path, detail=True)
    except FileNotFoundError as error:
        _refuse_missing_bucket(fs, path, error)
        return
    folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
    for name, entry in found.items():
        marker = name.endswith(("/", "_$folder$"))
        stands = not entry.get("size") and name in folders
        if entry["type"] != "directory" and not marker and not stands:
            yield entry


def _descend(
    fs: AbstractFileSystem, path: str, passing: Callable[[str], bool], depth: int
) -> Iterator[dict[str, Any]]:
    if depth > _DEEPEST:
        raise OSError(errno.ELOOP, f"more than {_DEEPEST} folders deep; a loop of links?", path)
    for entry in children(fs, path):
        name = str(entry["name"])
        if entry["type"] not in ("file", "directory"):
            entry = {**entry, **fs.info(name), "name": name}  # a link: what it leads to
        if entry["type"] != "directory":
            yield entry
        elif not passing(PurePosixPath(name).name):
            yield from _descend(fs, name, passing, depth + 1)


def protocols(fs: AbstractFileSystem) -> set[str]:
    """The schemes that a filesystem answers to."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def missing_bucket(fs: AbstractFileSystem, path: str, error: BaseException) -> bool:
    """Whether nothing is there because the bucket itself is not."""
    if not _FLAT.intersection(protocols(fs)):
        return False
    bucket, _, key = path.strip("/").partition("/")
    answer = getattr(error.__cause__, "response", None) or {}
    if answer:
        return not key or bool(answer.get("Error", {}).get("Code") == "NoSuchBucket")
    try:
        fs.info(bucket)
    except FileNotFoundError:
        return True
    except OSError:  # there, but not ours to look at
        return False
    return False


def _refuse_missing_bucket(fs: AbstractFileSystem, path: str, error: BaseException) -> None:
    if error.__cause__ is not None and missing_bucket(fs, path, error):
        raise InputError(
            str(fs.unstrip_protocol(path)),
            expected="a bucket that exists",
            found="no such bucket",
        ) from None


def _entries(fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    fs.invalidate_cache(path)
    try:
        found: list[dict[str, Any]] = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        _refuse_missing_bucket(fs, path, error)
        return []
    own = path.rstrip("/")  # a marker object that stands for the folder itself
    return [entry for entry in found if entry["name"].rstrip("/") != own]


def _written(entry: dict[str, Any]) -> float:
    names = ("LastModified", "mtime", "last_modified", "created")
    moment = next((entry[name] for name in names if entry.get(name)), None)
    if isinstance(moment, datetime):
        return moment.timestamp()
    return float(moment) if moment else time.time()  # unknown: as young as can be
