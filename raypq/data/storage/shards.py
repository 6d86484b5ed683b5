"""Which files make up a store: Parquet files in path order, each with a short, unique *stem*."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raypq import console
from raypq.data.storage.objects import answering, has_folders
from raypq.data.storage.operations import digest
from raypq.data.storage.place import canonical, filesystem, is_local, uri_of
from raypq.data.storage.settings import StorageSettings
from raypq.data.storage.walk import Entry, LocalWalk, RemoteWalk, is_glob
from raypq.errors import EmptySourceError, InputError, MissingSourceError

SUFFIXES = (".parquet", ".parq", ".pq")  # in any case
_COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".lz4", ".xz", ".zip", ".snappy", ".br")
_UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".inprogress", ".bak", ".old")
_OTHER_DATA = (
    ".arrow", ".feather", ".ipc", ".orc", ".avro", ".csv", ".tsv", ".jsonl", ".ndjson", ".npy",
    ".npz", ".h5", ".hdf5", ".tfrecord", ".tfrecords", ".pt", ".pth", ".safetensors", ".mat",
    ".lance", ".vortex", ".fvecs", ".bvecs", ".parquet_old",
)  # fmt: skip
_TEXTS = frozenset({"readme", "license", "licence", "notice", "changelog", "makefile", "manifest"})
_NAMED = 3  # of the files that a warning names
_READABLE = 40, 24  # characters of a stem that are of the file's name, and of its folder's
_DIGITS = 16  # of a stem that tell two URIs apart


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a store: where it is and what tells its content apart.

    Attributes:
        uri: local ones absolute. stem: names it in stores; depends on the URI alone.
        modified: the version tag (``version_tag``), or the sha256 of the content where the storage
            gives no tag, and of files of a raypq store.
    """

    index: int
    uri: str
    stem: str
    size: int
    modified: str

    def __str__(self) -> str:
        return self.uri


def list_shards(uris: Sequence[str]) -> list[Shard]:
    """The Parquet files below folders, matched by globs, or named outright, in path order.

    Parquet files are those named ``*.parquet``, ``*.parq`` or ``*.pq``; a file that is named
    outright may have any name. Links are followed, and a file that is reached in several ways
    counts once. Files and folders whose names start with ``.`` or ``_`` are passed over, as Spark,
    Hive and Arrow do; a warning names what else is passed over and looks like data.

    Raises:
        MissingSourceError: no such file or folder, or nothing that matches a glob.
        EmptySourceError: no Parquet file is there; of a prefix of an object store also where
            there is no object at all, for such a store has no folders.
        InputError: a folder that cannot be listed, a link that leads nowhere, no such bucket.
        ConfigError: a storage setting that cannot be used.
    """
    StorageSettings.current()  # one that cannot be used ends the job here, not shard by shard
    entries: dict[str, Entry] = {}
    ignored: list[str] = []
    for uri in uris:
        found, passed = _find(uri)
        if not found:
            raise EmptySourceError(
                uri,
                expected="at least one .parquet file",
                found=f"none{f', only {_listed(passed)}' if passed else ''}",
            )
        entries |= found
        ignored += passed
    if ignored:
        console.warn(
            f"passed over {_listed(sorted(set(ignored)))}: Parquet files are those named "
            "*.parquet, *.parq or *.pq (any other name: name the file itself)"
        )
    entries = _once(entries)
    untold = [uri for uri, entry in entries.items() if entry.tag is None]
    if untold:
        console.warn(
            f"reading {_listed(untold)} whole to tell whether they changed: this storage gives "
            "neither a tag nor a time of change"
        )
    return [
        Shard(
            index=index,
            uri=uri,
            stem=stem_of(uri),
            size=entries[uri].size or 0,
            modified=entries[uri].tag or digest(uri),
        )
        for index, uri in enumerate(sorted(entries))
    ]


def stem_of(uri: str) -> str:
    """A short name for a file that depends on its canonical URI alone.

    At most 82 of the characters ``A-Z a-z 0-9 . _ -``: parts of the file's and its folder's
    names, for people, and a hash. It is no other on a file system without upper and lower case,
    and starts with a letter or digit, so it is not passed over as hidden.
    """
    *_, folder, name = ["", *uri.rstrip("/").split("/")]
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    size, folder_size = _READABLE
    parts = [_safe(folder)[-folder_size:].lstrip("._-"), _safe(name)[:size].rstrip("._-")]
    digits = hashlib.sha256(uri.encode()).hexdigest()[:_DIGITS]
    return "-".join(filter(None, ["--".join(filter(None, parts)), digits]))


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._-")


def _find(uri: str) -> tuple[dict[str, Entry], list[str]]:
    """The Parquet files that a URI names, by canonical URI, and what looks like data beside."""
    if is_local(uri):
        place = canonical(uri)
        entries = LocalWalk().find(place)
        found = [(entry.path, entry) for entry in entries or ()]
    else:
        fs, place = filesystem(uri)
        if "::" in uri:
            raise InputError(
                uri, expected="the URI of files in one storage", found="a chain of several (::)"
            )
        with answering(uri):
            entries = RemoteWalk(fs, uri).find(place)
            if entries is None and not has_folders(fs):
                entries = []
            found = [(uri_of(fs, entry.path, uri), entry) for entry in entries or ()]
    if entries is None:
        raise _missing(uri)
    chosen: dict[str, Entry] = {}
    passed: list[str] = []
    for name, entry in found:
        outright = entry.path.rstrip("/") == place.rstrip("/")
        if outright or entry.name.lower().endswith(SUFFIXES):
            _check(name, entry)
            chosen[name] = entry
        elif _like_data(entry):
            passed.append(name)
    return chosen, passed


def _missing(uri: str) -> MissingSourceError:
    if is_glob(uri):
        return MissingSourceError(
            uri, expected="files or folders that match", found="nothing that does"
        )
    return MissingSourceError(
        uri, expected="a Parquet file, or a folder of them", found="no such file or folder"
    )


def _check(uri: str, entry: Entry) -> None:
    if entry.size is None:
        raise InputError(
            uri,
            expected="a regular file",
            found="a pipe, socket or device" if is_local(uri) else "one whose size is not told",
        )
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise InputError(
            repr(os.fsencode(uri))[2:-1], expected="a name in UTF-8", found="other bytes; rename it"
        ) from None


def _once(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Each file once: under its own path, or that of the first link to it."""
    by_place: dict[tuple[bool, str], list[str]] = {}
    for uri, entry in entries.items():
        by_place.setdefault((is_local(uri), entry.real if is_local(uri) else uri), []).append(uri)
    chosen = [
        real if local and real in names else min(names) for (local, real), names in by_place.items()
    ]
    if len(chosen) < len(entries):
        console.say(
            f"{len(entries) - len(chosen)} of {len(entries)} files are links to others of them; "
            "each file counts once"
        )
    return {uri: entries[uri] for uri in chosen}


def _like_data(entry: Entry) -> bool:
    """Whether a file that is not taken may hold features: it deserves a word."""
    if entry.size == 0:
        return False
    name = entry.name.lower()
    if name.endswith(_OTHER_DATA) or name.endswith(_COMPRESSED):
        return True
    if any(f"{suffix}." in name or f"{suffix}_" in name for suffix in SUFFIXES):
        return name.endswith(_UNFINISHED) or not name.endswith((".crc", ".md5", ".sha256"))
    return "." not in name and name not in _TEXTS


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} file(s) ({', '.join(names[:_NAMED])}{more})"
