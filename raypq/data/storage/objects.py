"""Object stores through fsspec: an object has its name once its upload is complete."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import PurePosixPath
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

_LARGEST_PUT = 5 << 30  # bytes; S3's limit for an upload in one request


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
        # A server that does not name the failed condition makes s3fs raise EINVAL; the answer
        # itself hangs on the cause. 409: two conditional puts at the same moment.
        answer = getattr(error.__cause__, "response", None) or {}
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(error, FileExistsError) or status in (409, 412):
            raise FileExistsError(errno.EEXIST, "taken", path) from error
        raise


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


def _entries(fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    fs.invalidate_cache(path)
    try:
        found: list[dict[str, Any]] = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    own = path.rstrip("/")  # a marker object that stands for the folder itself
    return [entry for entry in found if entry["name"].rstrip("/") != own]


def _written(entry: dict[str, Any]) -> float:
    moment = entry.get("LastModified") or entry.get("mtime") or entry.get("created")
    if isinstance(moment, datetime):
        return moment.timestamp()
    return float(moment) if moment else time.time()  # unknown: as young as can be
