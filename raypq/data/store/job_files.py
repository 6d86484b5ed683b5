"""The files that a job reads and writes at the places of its settings (``raypq.config.places``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from typing import Literal

from raypq.config.places import Place, is_library_model
from raypq.data import model_files
from raypq.data.storage.shards import SUFFIXES
from raypq.data.storage.walk import hidden
from raypq.data.store import journal, lease, manifest, runs, sidecars, snapshot
from raypq.data.store.location import Location, local_name, real_path

STORE_FOLDERS = (
    "data",
    *(part.FOLDER for part in (snapshot, manifest, journal, lease, runs, sidecars, model_files)),
)
MODEL_FILES = ("model.json", "model.safetensors", "classes.json", "classes.safetensors")
_CHECKPOINTS = "training"  # below a model, until it is saved
_PARTS = ("labelled", "unlabelled", "queries", "other")
_XLSA17 = ("res101.mat", "att_splits.mat")
_SPLITS = ("train", "test_seen", "test_unseen")


@dataclass(frozen=True, kw_only=True)
class WrittenFiles:
    """Files that are written: one, those directly in a folder, or all below one.

    Attributes:
        names: of the files in a folder, where they are known.
    """

    at: Location
    shape: Literal["file", "folder", "tree"]
    names: frozenset[str] = frozenset()

    def touches(self, other: WrittenFiles) -> bool:
        """Whether a file of ``other`` may be one of these."""
        if self.shape == "tree":
            return other.at.steps_below(self.at) is not None
        if self.shape == "folder" and other.shape == "file":
            return other.at.parent.is_same(self.at) and other.at.name in self.names
        return self.shape == other.shape and other.at.is_same(self.at)


@dataclass(frozen=True, kw_only=True)
class ReadFiles:
    """Files that are read.

    Attributes:
        kind: ``file``: one file. ``listed``: a Parquet file given by name. ``listing``: the visible
            Parquet files below a folder. ``glob``: the matches of ``pattern`` below a folder.
            ``images``: the visible files of images below a folder.
            ``results``: the visible JSON files below a folder. ``all``: everything below a folder.
            ``root``: the folder of a store or model, which no output may be.
        pattern: names with wildcards, below ``at``.
    """

    at: Location
    kind: Literal["file", "listed", "listing", "glob", "images", "results", "all", "root"]
    pattern: tuple[str, ...] = ()


class Output:
    """A place that is written, and the files that are written there.

    Attributes:
        title: of the place in errors.
        is_folder: whether the output is a folder. root: that folder, or None.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.kind = place, place.use.kind
        self.title = f"{place.field}: {place.uri}"
        self.at = Location.of(place.uri)
        self.is_folder = self.kind not in ("file", "index")
        self.root = self.at if self.is_folder else None
        self.files = list(self._files())

    def _files(self) -> Iterator[WrittenFiles]:
        at = self.at
        if self.kind == "store":
            # A missing model is copied from the one that is read, so models/ may hold an input.
            yield from (
                WrittenFiles(at=at / name, shape="tree")
                for name in STORE_FOLDERS
                if name != model_files.FOLDER
            )
        elif self.kind == "model":
            yield WrittenFiles(at=at, shape="folder", names=frozenset(MODEL_FILES))
            yield WrittenFiles(at=at / _CHECKPOINTS, shape="tree")
        elif self.kind == "parts":
            yield from (WrittenFiles(at=at / name, shape="folder") for name in _PARTS)
        elif self.kind == "xlsa17":
            yield from (WrittenFiles(at=at / name, shape="folder") for name in _SPLITS)
            yield WrittenFiles(at=at / "classes.parquet", shape="file")
        elif self.kind == "demo":
            yield WrittenFiles(at=at, shape="tree")
        elif self.kind == "shards":
            yield WrittenFiles(at=at, shape="folder")
        else:
            yield WrittenFiles(at=at, shape="file")
            if self.kind == "index":
                ids = Location.of(f"{self.place.uri}.ids.parquet")
                yield WrittenFiles(at=ids, shape="file")


def read_files(place: Place) -> Iterator[ReadFiles]:
    """The files that are read at a place."""
    uri, kind = place.uri, place.use.kind
    at = Location.of(uri)
    if kind == "parquet":
        yield from _listing(uri, at)
    elif kind == "images":
        yield ReadFiles(at=at, kind="file")
        path = local_name(uri) if at.scheme == "file" else at.path
        base = _split_glob(os.path.abspath(path))[0] if has_magic(path) else at.path
        yield ReadFiles(at=Location(at.scheme, base), kind="images")
    elif kind == "store":
        yield ReadFiles(at=at, kind="root")
        yield from (ReadFiles(at=at / name, kind="all") for name in STORE_FOLDERS)
    elif kind == "model":
        yield ReadFiles(at=at, kind="root")
        yield from (ReadFiles(at=at / name, kind="file") for name in MODEL_FILES)
    elif kind == "split":
        yield from (
            ReadFiles(at=Location.of(part), kind="file") for part in {uri, *uri.split("+")} if part
        )
    elif kind == "backbone":
        if not is_library_model(uri):
            yield ReadFiles(at=at, kind="file")
            yield ReadFiles(at=at, kind="root")
            yield from (ReadFiles(at=at / name, kind="file") for name in MODEL_FILES)
    elif kind == "xlsa17":
        yield from (ReadFiles(at=at / name, kind="file") for name in _XLSA17)
    elif kind == "results":
        yield ReadFiles(at=at, kind="file")
        if at.scheme == "file" and os.path.isdir(at.path):
            yield ReadFiles(at=at, kind="results")
            if os.path.isdir(at.path + "/snapshots"):
                yield from (ReadFiles(at=at / name, kind="all") for name in STORE_FOLDERS)
    else:
        yield ReadFiles(at=at, kind="file")


def _listing(uri: str, at: Location) -> Iterator[ReadFiles]:
    """A listing of Parquet files, and the targets of links in it."""
    if at.scheme == "file":
        path = local_name(uri)
        if has_magic(path) and not os.path.exists(path):
            base, pattern = _split_glob(os.path.abspath(path))
            yield ReadFiles(at=Location.of(base), kind="glob", pattern=pattern)
            matches = glob(path, recursive=True)
        else:
            matches = [path]
        for match in matches:
            yield from _local_listing(match)
    elif has_magic(at.path):
        base, pattern = _split_glob(at.path)
        yield ReadFiles(at=Location(at.scheme, base), kind="glob", pattern=pattern)
        yield ReadFiles(at=at, kind="listing")
    else:  # a folder or a file: only the server knows
        yield ReadFiles(at=at, kind="listing")
        if at.name.lower().endswith(SUFFIXES):
            yield ReadFiles(at=at, kind="listed")


def _local_listing(path: str) -> Iterator[ReadFiles]:
    at = Location("file", real_path(path))
    is_file = os.path.isfile(path)
    if is_file or path.lower().endswith(SUFFIXES):
        yield ReadFiles(at=at, kind="listed")
    if is_file:
        return
    yield ReadFiles(at=at, kind="listing")  # also if nothing exists there yet
    seen = {at.path}
    folders = [at.path]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                visible = [entry for entry in entries if not hidden(entry.name)]
        except OSError:  # the job's own listing raises
            continue
        for entry in visible:
            if entry.is_symlink():
                target = Location.of(entry.path)
                if os.path.isdir(target.path):
                    if target.path not in seen:
                        seen.add(target.path)
                        folders.append(target.path)
                        yield ReadFiles(at=target, kind="listing")
                elif entry.name.lower().endswith(SUFFIXES):
                    yield ReadFiles(at=target, kind="listed")
            elif entry.is_dir():
                folders.append(entry.path)


def _split_glob(path: str) -> tuple[str, tuple[str, ...]]:
    """The folder before the first name with a wildcard, and the names from there on."""
    names = re.split("/+", path.strip("/"))
    first = next(index for index, name in enumerate(names) if has_magic(name))
    return "/" + "/".join(names[:first]), tuple(names[first:])
