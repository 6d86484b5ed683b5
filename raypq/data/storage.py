"""Files on any storage that fsspec knows; local paths take the short way.

A URI is a local path or ``scheme://...``. Shards are Parquet files, listed in name order, and
each has a *stem*, a flat name that is unique in its store and does not depend on the machine.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from raypq.errors import InputError

_GLOB = frozenset("*?[")
# What Arrow raises for a damaged file.
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError)
_READ_BUFFER = 1 << 20  # bytes; bounds what a column reader holds beside its page


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a store: where it is and what tells its content apart."""

    index: int
    uri: str
    stem: str
    size: int
    modified: str

    def __str__(self) -> str:
        return self.uri


def is_local(uri: str) -> bool:
    """True for plain paths and ``file://`` URIs."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path that a local URI names."""
    return Path(uri.removeprefix("file://")).expanduser()


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of a URI, and the path inside it."""
    if is_local(uri):
        return fsspec.filesystem("file"), str(local_path(uri).absolute())
    try:
        fs, path = url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise InputError(uri, expected="a URI that fsspec can open", found=str(error)) from None
    return fs, str(path)


def join(uri: str, *parts: str) -> str:
    """``uri`` with ``parts`` below it."""
    return "/".join([uri.rstrip("/"), *parts])


def list_shards(uris: Sequence[str]) -> list[Shard]:
    """The Parquet files below folders, matched by globs, or named outright, in path order.

    Files and folders whose names start with ``.`` or ``_`` are passed over, as Spark, Hive and
    Arrow do. The stem is the path below the deepest folder common to all files, with ``/``
    turned to ``--`` (and a hash behind it, should that make two of them equal).

    Raises:
        InputError: nothing is there.
    """
    entries: dict[str, dict[str, Any]] = {}
    for uri in uris:
        fs, path = filesystem(uri)
        found = _find(fs, path, uri)
        if not found:
            raise InputError(uri, expected="at least one .parquet file", found="none")
        for name, info in found.items():
            entries[name if is_local(uri) else fs.unstrip_protocol(name)] = info
    places = {uri: PurePosixPath(uri.replace("://", "/", 1).lstrip("/")) for uri in sorted(entries)}
    base = os.path.commonpath([str(place.parent) for place in places.values()])
    stems = _stems([place.relative_to(base) for place in places.values()])
    return [
        Shard(
            index=index,
            uri=uri,
            stem=stem,
            size=int(entries[uri].get("size") or 0),
            modified=str(
                entries[uri].get("ETag")
                or entries[uri].get("mtime")
                or entries[uri].get("LastModified")
            ),
        )
        for index, (uri, stem) in enumerate(zip(places, stems, strict=True))
    ]


def _stems(places: Sequence[PurePosixPath]) -> list[str]:
    flat = [str(place.with_suffix("")).replace("/", "--") for place in places]
    count = Counter(flat)  # a/b.parquet and a--b.parquet become one name
    return [
        stem
        if count[stem] == 1
        else f"{stem}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
        for stem, place in zip(flat, places, strict=True)
    ]


def _find(fs: AbstractFileSystem, path: str, uri: str) -> dict[str, dict[str, Any]]:
    # A path that is there as it stands is no glob, whatever characters are in it.
    glob = bool(_GLOB.intersection(path)) and not fs.exists(path)
    try:
        if glob:
            matched = fs.glob(path, detail=True)
            found: dict[str, dict[str, Any]] = {}
            for name, info in matched.items():
                if info["type"] == "directory":
                    found.update(fs.find(name, detail=True))
                else:
                    found[name] = info
        elif fs.isfile(path):
            return {path: fs.info(path)}
        else:
            found = fs.find(path, detail=True)
    except FileNotFoundError:
        found = {}
    except PermissionError as error:
        raise InputError(uri, expected="a readable folder", found=str(error)) from None
    root = re.split(r"[*?[]", path, maxsplit=1)[0].rsplit("/", 1)[0] if glob else path
    return {
        name: info
        for name, info in found.items()
        if name.endswith(".parquet")
        and not any(part[0] in "._" for part in name[len(root) :].split("/") if part)
    }


@contextmanager
def open_parquet(uri: str, *, size: int | None = None) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file for reading in a stream, page checksums verified.

    Local files are read through small buffers rather than a memory map: mapped pages count as
    the worker's memory, and a shard may be larger than the worker.

    Args:
        size: bytes that the file must have, where a snapshot says it.

    Raises:
        InputError: the file is missing, empty, truncated, of another size or not Parquet.
    """
    source: Any = None
    try:
        found = file_size(uri)
        if found == 0:
            raise InputError(uri, expected="a Parquet file", found="an empty file (0 bytes)")
        if size is not None and found != size:
            raise InputError(
                uri, expected=f"a complete Parquet file of {size} bytes", found=f"{found} bytes"
            )
        source = (
            pa.OSFile(str(local_path(uri)), "rb")
            if is_local(uri)
            else filesystem(uri)[0].open(filesystem(uri)[1], "rb", block_size=8 << 20)
        )
        file = pq.ParquetFile(
            source,
            pre_buffer=False,
            buffer_size=_READ_BUFFER,
            page_checksum_verification=True,
        )
    except FileNotFoundError:
        raise InputError(uri, expected="a Parquet file", found="no such file") from None
    except _UNREADABLE as error:
        if source is not None:
            source.close()
        if isinstance(error, OSError) and not _is_arrows(error):
            raise
        raise InputError(
            uri, expected="a complete Parquet file", found=_first_line(error)
        ) from None
    try:
        yield file
    except _UNREADABLE as error:
        if isinstance(error, OSError) and not _is_arrows(error):
            raise
        raise InputError(
            uri, expected="readable Parquet pages", found=_first_line(error)
        ) from error
    finally:
        file.close(force=True)
        source.close()


def _is_arrows(error: OSError) -> bool:
    # Arrow reports content that it cannot decode as a plain OSError without a number; a lost
    # connection is a subclass, a full or failing disk has a number.
    return type(error) is OSError and error.errno in (None, errno.EINVAL)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def file_size(uri: str) -> int:
    """Bytes of a file."""
    if is_local(uri):
        return local_path(uri).stat().st_size
    fs, path = filesystem(uri)
    return int(fs.size(path) or 0)


def exists(uri: str) -> bool:
    """True if a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def digest(uri: str) -> str:
    """sha256 of a file, read in pieces."""
    fs, path = filesystem(uri)
    found = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while piece := file.read(8 << 20):
            found.update(piece)
    return found.hexdigest()


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        FileNotFoundError: it is not there.
    """
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path))


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a file whole, replacing what was there in one step."""
    with replacing(uri) as file:
        file.write(content)


@contextmanager
def replacing(uri: str) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when it is complete; nothing is left of a failure.

    An object store gives an object its name when its upload is closed, and never half of it.
    """
    fs, path = filesystem(uri)
    if not is_local(uri):
        upload = fs.open(path, "wb")
        try:
            yield upload
        except BaseException:
            upload.discard()
            upload.closed = True  # or its end of life would commit what is there
            raise
        upload.close()
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def open_new(uri: str) -> IO[bytes]:
    """Opens a file that must not exist yet for writing; local folders are made."""
    fs, path = filesystem(uri)
    if is_local(uri):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return cast(IO[bytes], open(path, "xb"))
    return cast(IO[bytes], fs.open(path, "wb"))


def create(uri: str, content: bytes) -> None:
    """Creates a file in ONE step that fails if the name is taken; never half there.

    POSIX: a synced temporary file, ``link``, sync of the folder. Object stores: one conditional
    put (``If-None-Match: *``), never multipart.

    Raises:
        FileExistsError: the name is taken (by another writer, or by a lost answer of our own).
    """
    fs, path = filesystem(uri)
    if not is_local(uri):
        _create_object(fs, path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, target)
        sync_folder(str(target.parent))
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(uri: str) -> None:
    """Makes the names in a local folder as durable as its files are."""
    if not is_local(uri) or not local_path(uri).is_dir():
        return
    folder = os.open(local_path(uri), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _create_object(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    try:
        fs.pipe_file(path, content, mode="create")
    except OSError as error:
        # A server that does not name the failed condition makes s3fs raise EINVAL; the answer
        # itself hangs on the cause.
        answer = getattr(error.__cause__, "response", None) or {}
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(error, FileExistsError) or status in (409, 412):
            raise FileExistsError(errno.EEXIST, "taken", path) from error
        raise


def list_names(uri: str) -> list[str]:
    """Names of the files directly in a folder, sorted; a missing folder has none."""
    fs, path = filesystem(uri)
    try:
        found = fs.ls(path, detail=False, refresh=True)
    except FileNotFoundError:
        return []
    except TypeError:
        found = fs.ls(path, detail=False)
    return sorted(PurePosixPath(name).name for name in found)


@dataclass(frozen=True)
class Listed:
    """A file in a listing: its size, and when it was last written (seconds since 1970)."""

    size: int
    written: float


def list_files(uri: str) -> dict[str, Listed]:
    """The files directly in a folder, by name; a missing folder has none."""
    if is_local(uri):
        try:
            with os.scandir(local_path(uri)) as entries:
                return {
                    entry.name: Listed(entry.stat().st_size, entry.stat().st_mtime)
                    for entry in entries
                    if entry.is_file()
                }
        except FileNotFoundError:
            return {}
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {
        PurePosixPath(entry["name"]).name: Listed(int(entry.get("size") or 0), _written(entry))
        for entry in found
        if entry["type"] == "file"
    }


def _written(entry: dict[str, Any]) -> float:
    moment = entry.get("LastModified") or entry.get("mtime") or entry.get("created")
    if isinstance(moment, datetime):
        return moment.timestamp()
    return float(moment) if moment else time.time()  # unknown: as young as can be


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; a missing folder has none."""
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(
        PurePosixPath(entry["name"]).name for entry in found if entry["type"] == "directory"
    )


def delete(uri: str) -> None:
    """Removes a file; it need not be there."""
    fs, path = filesystem(uri)
    with suppress(FileNotFoundError):
        fs.rm_file(path)
