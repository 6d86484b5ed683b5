"""Which files make up a store: Parquet files in path order, each with a flat, unique *stem*."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem

from raypq.data.storage.objects import answering
from raypq.data.storage.place import filesystem, is_local
from raypq.data.storage.settings import StorageSettings
from raypq.errors import InputError

_GLOB = frozenset("*?[")


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


def list_shards(uris: Sequence[str]) -> list[Shard]:
    """The Parquet files below folders, matched by globs, or named outright, in path order.

    Files and folders whose names start with ``.`` or ``_`` are passed over, as Spark, Hive and
    Arrow do. The stem is the path below the deepest folder common to all files, with ``/``
    turned to ``--`` (and a hash behind it, should that make two of them equal).

    Raises:
        InputError: nothing is there. ConfigError: a storage setting that cannot be used.
    """
    StorageSettings.current()  # one that cannot be used ends the job here, not shard by shard
    entries: dict[str, dict[str, Any]] = {}
    for uri in uris:
        fs, path = filesystem(uri)
        with answering(uri):
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
