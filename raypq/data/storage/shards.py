"""The shards of a store: its Parquet files in path order, each with a short, unique *stem*."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from raypq import console
from raypq.data.storage.objects import has_folders, server_errors
from raypq.data.storage.operations import digest
from raypq.data.storage.place import canonical, filesystem, is_local, uri_of
from raypq.data.storage.settings import StorageSettings
from raypq.data.storage.walk import Entry, LocalWalk, RemoteWalk, is_glob
from raypq.errors import EmptySourceError, InputError, MissingSourceError

SUFFIXES = (".parquet", ".parq", ".pq")  # in any case
_STEM_SUFFIXES = (*SUFFIXES, ".npy", ".npz", ".lance", ".tar", ".imagefolder")  # not in a stem
# A suffix anywhere in a name: "a.parquet (1)", "a.parquet~", "a.geoparquet", "a.pqt".
_SUFFIX_INSIDE = re.compile(r".\.(?:\w*parq|pqt?(?![a-z]))", re.DOTALL)
_CHECKSUMS = (".crc", ".md5", ".sha1", ".sha256", ".sha512")
_COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".lz4", ".xz", ".zip", ".snappy", ".br")
_OTHER_DATA = (
    ".arrow", ".feather", ".ipc", ".orc", ".avro", ".csv", ".tsv", ".jsonl", ".ndjson", ".npy",
    ".npz", ".h5", ".hdf5", ".tfrecord", ".tfrecords", ".pt", ".pth", ".safetensors", ".mat",
    ".lance", ".vortex", ".fvecs", ".bvecs", ".tgz", ".heic", ".heif", ".jxl", ".dng", ".psd",
)  # fmt: skip
_TEXTS = frozenset({"readme", "license", "licence", "notice", "changelog", "makefile", "manifest"})
_SHOWN = 3  # files named in a warning
_NAME_CHARACTERS, _FOLDER_CHARACTERS = 40, 24  # of the file's and its folder's name in a stem
_DIGITS = 16  # of the URI's hash in a stem


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One input file of a store, or a part of a folder of images: its location and version.

    Attributes:
        uri: absolute. stem: its name in stores; depends on the URI alone.
        size: bytes, with those of ``metadata``.
        modified: the version tag (``version_tag``); the sha256 of the content for files of a raypq
            store, and where the storage gives no tag; with that of ``metadata``.
        metadata: a Parquet file with further columns, where the layout has one; else empty.
        files: of a part of a folder of images, its files (see ``layouts.image_folder``).
    """

    index: int
    uri: str
    stem: str
    size: int
    modified: str
    metadata: str = ""
    files: pa.RecordBatch | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.uri


def list_shards(uris: Sequence[str]) -> list[Shard]:
    """The Parquet files below folders, matched by globs, or given by name, in path order.

    Parquet files are those named ``*.parquet``, ``*.parq`` or ``*.pq``; a file that is given by
    name may have any name. Links are followed, and a file that is reached in several ways counts
    once. Files and folders whose names start with ``.`` or ``_`` are skipped, as by Spark, Hive and
    Arrow; a warning names other files that are skipped and look like data.

    Raises:
        MissingSourceError: no such file or folder, or nothing that matches a glob.
        EmptySourceError: no Parquet file. On an object store also for a prefix without objects,
            since such a store has no folders.
        InputError: a folder that cannot be listed, a broken link, no such bucket.
        ConfigError: a storage setting that cannot be used.
    """
    entries = find_files(uris)
    return [shard_of(index, uri, entries[uri]) for index, uri in enumerate(sorted(entries))]


def find_files(
    uris: Sequence[str],
    suffixes: Sequence[str] = SUFFIXES,
    *,
    expected: str = f"at least one {SUFFIXES[0]} file",
    place: str = "a Parquet file, or a folder of them",
) -> dict[str, Entry]:
    """The files of ``list_shards`` by canonical URI, or those of other suffixes (lower case).

    Args:
        expected: what the error of a place without such files says. place: that of a place that
            does not exist.
    """
    StorageSettings.current()  # a bad setting ends the job here, not shard by shard
    entries: dict[str, Entry] = {}
    skipped: list[str] = []
    for uri in uris:
        data, others = _find(uri, suffixes, place)
        if not data:
            raise EmptySourceError(
                uri,
                expected=expected,
                found=f"none{f', only {_summary(others)}' if others else ''}",
            )
        entries |= data
        skipped += others
    if skipped:
        console.warn(
            f"skipped {_summary(sorted(set(skipped)))}: Parquet files are those named "
            "*.parquet, *.parq or *.pq (any other name: name the file itself)"
        )
    entries = _without_links(entries)
    untagged = [uri for uri, entry in entries.items() if entry.tag is None]
    if untagged:
        console.warn(
            f"reading {_summary(untagged)} completely to see whether they changed: this storage "
            "gives neither a version tag nor a time of change"
        )
    return entries


def tag_of(uri: str, entry: Entry) -> str:
    """The version tag of a listed file; where the storage gives none, the sha256 of its content."""
    return entry.tag or digest(uri)


def shard_of(
    index: int, uri: str, entry: Entry, metadata: tuple[str, Entry] | None = None
) -> Shard:
    """The shard of a listed file, and of the Parquet file with its further columns."""
    size, tag, other = entry.size or 0, tag_of(uri, entry), ""
    if metadata is not None:
        other, its = metadata
        size, tag = size + (its.size or 0), f"{tag}+{tag_of(other, its)}"
    return Shard(index=index, uri=uri, stem=stem_of(uri), size=size, modified=tag, metadata=other)


def files_of_folder(uri: str) -> dict[str, Entry]:
    """The Parquet files below a folder by canonical URI; none where there is no such folder."""
    try:
        return _find(uri, SUFFIXES, "a folder")[0]
    except MissingSourceError:
        return {}


def stem_of(uri: str) -> str:
    """A short name for a file that depends on its canonical URI alone.

    At most 82 of the characters ``A-Z a-z 0-9 . _ -``: parts of the file's and its folder's
    names, for people, and a hash. It is unique also on case-insensitive file systems, and starts
    with a letter or digit, so that it is not hidden.
    """
    *_, folder, name = ["", *uri.rstrip("/").split("/")]
    for suffix in _STEM_SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    parts = [
        _safe(folder)[-_FOLDER_CHARACTERS:].lstrip("._-"),
        _safe(name)[:_NAME_CHARACTERS].rstrip("._-"),
    ]
    digits = hashlib.sha256(uri.encode()).hexdigest()[:_DIGITS]
    return "-".join(filter(None, ["--".join(filter(None, parts)), digits]))


def names_folder(uri: str) -> bool:
    """Whether a URI names a folder as a whole, and not a glob or a file."""
    walk, path = _walk(uri)
    with server_errors(uri):
        entry = walk.info(path)
    return entry is not None and entry.folder


def root_of(uri: str) -> str:
    """The folder that a URI names, by canonical URI: itself, the fixed part of a glob, or the
    folder of a file."""
    walk, path = _walk(uri)
    with server_errors(uri):
        entry = walk.info(path)
    if entry is None and is_glob(path):
        path = path[: next(at for at, character in enumerate(path) if is_glob(character))]
        path = path.rpartition("/")[0]
    elif entry is not None and not entry.folder:
        path = path.rpartition("/")[0]
    named = path if isinstance(walk, LocalWalk) else uri_of(walk.fs, path, uri)
    return named.rstrip("/")


def _walk(uri: str) -> tuple[LocalWalk | RemoteWalk, str]:
    if is_local(uri):
        return LocalWalk(), canonical(uri)
    fs, path = filesystem(uri)
    return RemoteWalk(fs, uri), path


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._-")


def _find(uri: str, suffixes: Sequence[str], place: str) -> tuple[dict[str, Entry], list[str]]:
    """The data files that a URI names, by canonical URI, and other files that look like data."""
    if is_local(uri):
        path = canonical(uri)
        entries = LocalWalk().find(path)
        named = [(entry.path, entry) for entry in entries or ()]
    else:
        fs, path = filesystem(uri)
        if "::" in uri:
            raise InputError(
                uri, expected="the URI of files in one storage", found="a chain of several (::)"
            )
        with server_errors(uri):
            entries = RemoteWalk(fs, uri).find(path)
            if entries is None and not has_folders(fs):
                entries = []
            named = [(uri_of(fs, entry.path, uri), entry) for entry in entries or ()]
    if entries is None:
        raise _missing(uri, place)
    data: dict[str, Entry] = {}
    others: list[str] = []
    for name, entry in named:
        given_by_name = entry.path.rstrip("/") == path.rstrip("/")
        if given_by_name or entry.name.lower().endswith(tuple(suffixes)):
            _check(name, entry)
            data[name] = entry
        elif _looks_like_data(entry):
            others.append(name)
    return data, others


def _missing(uri: str, place: str) -> MissingSourceError:
    found = "nothing that matches" if is_glob(uri) else "no such file or folder"
    return MissingSourceError(uri, expected=place, found=found)


def _check(uri: str, entry: Entry) -> None:
    if entry.size is None:
        raise InputError(
            uri,
            expected="a regular file",
            found="a pipe, socket or device"
            if is_local(uri)
            else "one whose size the storage does not give",
        )
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise InputError(
            repr(os.fsencode(uri))[2:-1], expected="a name in UTF-8", found="other bytes; rename it"
        ) from None


def _without_links(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Each file once: under its own path, or that of the first link to it."""
    uris_of: dict[tuple[bool, str], list[str]] = {}  # by real path
    for uri, entry in entries.items():
        uris_of.setdefault((is_local(uri), entry.real if is_local(uri) else uri), []).append(uri)
    chosen = [
        real if local and real in uris else min(uris) for (local, real), uris in uris_of.items()
    ]
    if len(chosen) < len(entries):
        console.say(
            f"{len(entries) - len(chosen)} of {len(entries)} files are links to others; each file "
            "counts once"
        )
    return {uri: entries[uri] for uri in chosen}


def _looks_like_data(entry: Entry) -> bool:
    """Whether a skipped file may hold features, so that a warning names it."""
    if entry.size == 0:
        return False
    name = entry.name.lower()
    if name.endswith(_OTHER_DATA) or name.endswith(_COMPRESSED):
        return True
    if _SUFFIX_INSIDE.search(name):
        return not name.endswith(_CHECKSUMS)
    return "." not in name and name not in _TEXTS


def _summary(names: Iterable[str]) -> str:
    names = [name if name.isprintable() and name == name.strip() else repr(name) for name in names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} file(s) ({', '.join(names[:_SHOWN])}{more})"
