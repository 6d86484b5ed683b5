"""Overlap checks: outputs of a job that lie among its inputs.

Only what harms is refused. A store of predictions beside ``data/`` in a code store, or an output
below features whose name starts with ``_`` or ``.``, is read by nobody who should not.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from glob import glob, has_magic
from typing import Literal

from pydantic import BaseModel

from raypq.config import places
from raypq.config.places import Place, Reads, Writes
from raypq.data import model_files
from raypq.data.storage import exists, is_local, join
from raypq.data.storage.shards import SUFFIXES
from raypq.data.storage.walk import hidden
from raypq.data.store import journal, lease, runs, sidecars, snapshot
from raypq.errors import ConfigError

# The folders of a store.
_STORE = (
    "data",
    *(part.FOLDER for part in (snapshot, journal, lease, runs, sidecars, model_files)),
)
_MODEL = ("model.json", "model.safetensors", "classes.json", "classes.safetensors")
_TRAINING = "training"  # below a model: checkpoints, until it is saved
_PARTS = ("labelled", "unlabelled", "queries", "other")
_XLSA17 = ("res101.mat", "att_splits.mat")
_SPLITS = ("train", "test_seen", "test_unseen")
_SAME = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}


def refuse(job: BaseModel, **more: Place | None) -> None:
    """Refuses a job whose outputs lie among its inputs, or two of whose outputs are one.

    Args:
        more: places that the job does not name itself, such as the file of ``--json``.

    Raises:
        ConfigError: naming both paths and what to do.
    """
    refuse_places([*places.places(job), *(place for place in more.values() if place)])


def written_file(field: str, uri: str | None) -> Place | None:
    """The place of a file that a command writes; None where there is none, or it is stdout."""
    if uri is None or uri == "-":
        return None
    return Place(field=field, uri=places.path_of(uri), use=Writes("file"))


def read_file(field: str, uri: str | None) -> Place | None:
    """The place of a file that a command reads, such as its config; None where there is none."""
    if uri is None:
        return None
    return Place(field=field, uri=places.path_of(uri), use=Reads("file"))


def refuse_places(named: Iterable[Place]) -> None:
    """As ``refuse``, of places one by one."""
    for remembered in (_real_folder, _inode_of):
        remembered.cache_clear()
    several = list(named)
    outputs = [_Output(place) for place in several if isinstance(place.use, Writes)]
    if not outputs:
        return
    for output in outputs:
        output.check()
    for number, one in enumerate(outputs):
        for other in outputs[:number]:
            if (one.root and other.root and one.root.is_same(other.root)) or any(
                a.touches(b) or b.touches(a) for a in one.files for b in other.files
            ):
                raise ConfigError(
                    f"{one.named} and {other.named} share files: each output needs a place of "
                    "its own"
                )
    met: set[_Spot] = set()
    one_by_one = any(files.shape == "file" for output in outputs for files in output.files)
    for place in several:
        if not isinstance(place.use, Reads):
            continue
        for item in _inputs(place):
            if item.kind == "listed" and not one_by_one:
                # Where only folders are written, one file of a folder stands for all of them.
                if item.at.parent in met:
                    continue
                met.add(item.at.parent)
            for output in outputs:
                if place.use.in_place and output.at.is_same(_Spot.of(place.uri)):
                    continue
                if why := output.clash(item):
                    raise ConfigError(_message(output, place, why))


def _message(output: _Output, place: Place, why: str) -> str:
    remedy = "name another place"
    if why == "below":
        remedy = (
            "name a folder outside of it (or one whose name starts with _ or ., which no listing "
            "enters)"
        )
    reasons = {
        "below": "lies inside of, or is matched by,",
        "same": "is the same place as",
        "over": "would write over, or among the files of,",
    }
    return (
        f"{output.named} {reasons[why]} the input {place.field}: {place.uri}; what is written "
        f"would be read as input, or the input be lost: {remedy}"
    )


@cache
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def _local(uri: str) -> str:
    # As ``local_path``, for many files: pathlib takes most of the time.
    return os.path.expanduser(uri.removeprefix("local://").removeprefix("file://"))


def _real(path: str) -> str:
    """``os.path.realpath``, of many files of a folder in a short time."""
    head, name = os.path.split(path)
    if name in ("", ".", ".."):
        return _real_folder(path)
    real = os.path.join(_real_folder(head), name)
    return os.path.realpath(real) if os.path.islink(real) else real


@cache
def _inode_of(path: str) -> tuple[int, ...] | None:
    """Tells a place that is mounted twice, or a file that has two names. Numbers of inodes are not
    unique on every storage, but with their times they are."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    if not (about.st_ino and about.st_mtime_ns):
        return None
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns


@dataclass(frozen=True)
class _Spot:
    """A path without what could hide that it is another's: links, ``..``, aliases of schemes."""

    scheme: str
    path: str

    @classmethod
    def of(cls, uri: str) -> _Spot:
        uri = uri.rsplit("::", 1)[-1]  # what a cache stands before
        if is_local(uri):
            return cls("file", _real(_local(uri)))
        scheme, _, path = uri.partition("://")
        scheme = _SAME.get(scheme.lower(), scheme.lower())
        return cls(scheme, posixpath.normpath(f"/{path}").replace("//", "/"))

    def __truediv__(self, name: str) -> _Spot:
        path = posixpath.join(self.path, name)
        return _Spot(self.scheme, _real(path) if self.scheme == "file" else path)

    @property
    def parent(self) -> _Spot:
        return _Spot(self.scheme, posixpath.dirname(self.path))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def _inode(self) -> tuple[int, ...] | None:
        return _inode_of(self.path) if self.scheme == "file" else None

    def is_same(self, other: _Spot) -> bool:
        if self == other:
            return True
        return self._inode is not None and self._inode == other._inode

    def steps_below(self, folder: _Spot) -> tuple[str, ...] | None:
        """The names that lead here from a folder; () for itself, None for a place outside."""
        if self.scheme != folder.scheme:
            return None
        if self.path == folder.path:
            return ()
        prefix = folder.path.rstrip("/") + "/"
        if self.path.startswith(prefix):
            return tuple(self.path.removeprefix(prefix).split("/"))
        if folder._inode is None:
            return None
        steps: tuple[str, ...] = ()
        here = self
        while here.path != here.parent.path:
            if here._inode == folder._inode:
                return steps
            steps, here = (here.name, *steps), here.parent
        return None


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Files that are written: one, those directly in a folder, or all below one."""

    at: _Spot
    shape: Literal["file", "folder", "tree"]
    names: frozenset[str] = frozenset()  # of a folder's files, where they are known

    def touches(self, other: _Files) -> bool:
        """True if a file of ``other`` may be one of these."""
        if self.shape == "tree":
            return other.at.steps_below(self.at) is not None
        if self.shape == "folder" and other.shape == "file":
            return other.at.parent.is_same(self.at) and other.at.name in self.names
        return self.shape == other.shape and other.at.is_same(self.at)


@dataclass(frozen=True, kw_only=True)
class _Input:
    """What is read: ``file`` one file; ``listed`` a Parquet file named outright; ``listing`` the
    visible Parquet below a folder, ``glob`` what a pattern below it matches; ``results`` the
    visible JSON below a folder; ``all`` everything below one; ``root`` the place of a store or
    model, which is another's only by mistake."""

    at: _Spot
    kind: Literal["file", "listed", "listing", "glob", "results", "all", "root"]
    pattern: tuple[str, ...] = ()


class _Output:
    """A place that is written, and the files that come to be there."""

    def __init__(self, place: Place) -> None:
        self.place, self.kind = place, place.use.kind
        self.named = f"{place.field}: {place.uri}"
        self.at = _Spot.of(place.uri)
        self.folder = self.kind not in ("file", "index")
        self.root = self.at if self.folder else None
        self.files = list(self._files())

    def _files(self) -> Iterator[_Files]:
        at = self.at
        if self.kind == "store":
            # Its models are written where they lack only, so that one of them may be an input.
            yield from (
                _Files(at=at / name, shape="tree") for name in _STORE if name != model_files.FOLDER
            )
        elif self.kind == "model":
            yield _Files(at=at, shape="folder", names=frozenset(_MODEL))
            yield _Files(at=at / _TRAINING, shape="tree")
        elif self.kind == "parts":
            yield from (_Files(at=at / name, shape="folder") for name in _PARTS)
        elif self.kind == "xlsa17":
            yield from (_Files(at=at / name, shape="folder") for name in _SPLITS)
            yield _Files(at=at / "classes.parquet", shape="file")
        elif self.kind == "demo":
            yield _Files(at=at, shape="tree")
        elif self.kind == "shards":
            yield _Files(at=at, shape="folder")
        else:
            yield _Files(at=at, shape="file")
            if self.kind == "index":
                yield _Files(at=_Spot.of(f"{self.place.uri}.ids.parquet"), shape="file")

    def check(self) -> None:
        """Refuses what cannot become what it is to be, and what a store or model owns.

        Raises:
            ConfigError: a folder where a file is to be written, or the reverse; a place among the
                files of a store, or a file of a model.
        """
        self._check_owner()
        if self.at.scheme != "file":
            return
        if self.folder and os.path.isfile(self.at.path):
            raise ConfigError(f"{self.named} is a file; name a folder")
        if not self.folder and os.path.isdir(self.at.path):
            raise ConfigError(f"{self.named} is a folder; name a file")

    def _check_owner(self) -> None:
        path = self.at.path if self.at.scheme == "file" else self.place.uri
        parts = path.rstrip("/").split("/")
        first = 1 if self.at.scheme == "file" else 3  # behind the root, or the bucket
        last = len(parts) if self.folder else len(parts) - 1
        for number in range(first, last):
            store = "/".join(parts[:number])
            if parts[number] in _STORE and snapshot.versions(store):
                raise ConfigError(
                    f"{self.named} is in {parts[number]}/ of the store {store}, which is for the "
                    "store's own files; name another place"
                )
        model = "/".join(parts[:-1])
        if not self.folder and parts[-1] in _MODEL and _is_model(model):
            raise ConfigError(
                f"{self.named} would write over a file of the model {model}; name another place"
            )

    def clash(self, item: _Input) -> str | None:
        """How this output would harm an input; None if it does not."""
        if item.kind == "root":
            return "same" if self.root and self.root.is_same(item.at) else None
        for written in self.files:
            if why := _clash(written, item):
                return "same" if why == "below" and self.at.is_same(item.at) else why
        return None


def _is_model(folder: str) -> bool:
    return all(exists(join(folder, name)) for name in ("model.json", "model.safetensors"))


def _clash(written: _Files, item: _Input) -> str | None:
    at = written.at
    if item.kind in ("file", "listed"):
        if written.shape == "file":
            return "same" if at.is_same(item.at) else None
        if written.shape == "tree":
            return "over" if item.at.steps_below(at) is not None else None
        inside = item.at.parent.is_same(at)
        known = item.at.name in written.names
        return (
            "over" if inside and (known or (item.kind == "listed" and not written.names)) else None
        )
    if item.kind == "all":
        return "below" if at.steps_below(item.at) is not None else None
    if _reads(item, written):
        return "same" if at.is_same(item.at) else "below"
    if written.shape == "tree" and item.at.steps_below(at) is not None:
        return "over"
    return None


def _reads(item: _Input, written: _Files) -> bool:
    """True if a listing would come upon what is written."""
    steps = written.at.steps_below(item.at)
    if steps is None:
        return False
    if written.shape == "file":
        wanted = (".json",) if item.kind == "results" else SUFFIXES
        if not written.at.name.lower().endswith(wanted):
            return False
    # A folder of outputs below features is refused whatever its files are called.
    if item.kind == "glob":
        return _matched(item.pattern, steps, written)
    return not any(map(hidden, steps))


def _matched(pattern: Sequence[str], steps: Sequence[str], written: _Files) -> bool:
    """True if a pattern matches a folder on the way to what is written, or may match a file."""
    if not pattern:  # a folder that matches is read with all that is below it
        return not any(map(hidden, steps))
    first, *rest = pattern
    if first == "**":
        deeper = not hidden(steps[0]) and _matched(pattern, steps[1:], written) if steps else False
        return deeper or _matched(rest or ["*"], steps, written)
    if steps:
        asked = not hidden(steps[0]) or first[0] == steps[0][0]
        return asked and fnmatchcase(steps[0], first) and _matched(rest, steps[1:], written)
    if written.shape != "folder":
        return written.shape == "tree"
    if rest:
        return False
    return not written.names or any(fnmatchcase(name, first) for name in written.names)


def _inputs(place: Place) -> Iterator[_Input]:
    uri, kind = place.uri, place.use.kind
    at = _Spot.of(uri)
    if kind == "parquet":
        yield from _listed(uri, at)
    elif kind == "store":
        yield _Input(at=at, kind="root")
        yield from (_Input(at=at / name, kind="all") for name in _STORE)
    elif kind == "model":
        yield _Input(at=at, kind="root")
        yield from (_Input(at=at / name, kind="file") for name in _MODEL)
    elif kind == "split":
        yield from (
            _Input(at=_Spot.of(part), kind="file") for part in {uri, *uri.split("+")} if part
        )
    elif kind == "backbone":
        if uri.partition(":")[0] not in ("torchvision", "timm"):
            yield _Input(at=at, kind="file")
            yield _Input(at=at, kind="root")
            yield from (_Input(at=at / name, kind="file") for name in _MODEL)
    elif kind == "xlsa17":
        yield from (_Input(at=at / name, kind="file") for name in _XLSA17)
    elif kind == "results":
        yield _Input(at=at, kind="file")
        if at.scheme == "file" and os.path.isdir(at.path):
            yield _Input(at=at, kind="results")
            if os.path.isdir(at.path + "/snapshots"):
                yield from (_Input(at=at / name, kind="all") for name in _STORE)
    else:
        yield _Input(at=at, kind="file")


def _listed(uri: str, at: _Spot) -> Iterator[_Input]:
    """A listing of Parquet, and where links in it lead."""
    if at.scheme == "file":
        plain = _local(uri)
        if has_magic(plain) and not os.path.exists(plain):
            base, pattern = _taken_apart(os.path.abspath(plain))
            yield _Input(at=_Spot.of(base), kind="glob", pattern=pattern)
            found = glob(plain, recursive=True)
        else:
            found = [plain]
        for path in found:
            yield from _there(path)
    elif has_magic(at.path):
        base, pattern = _taken_apart(at.path)
        yield _Input(at=_Spot(at.scheme, base), kind="glob", pattern=pattern)
        yield _Input(at=at, kind="listing")
    else:  # a folder or a file: only the server knows
        yield _Input(at=at, kind="listing")
        if at.name.lower().endswith(SUFFIXES):
            yield _Input(at=at, kind="listed")


def _there(path: str) -> Iterator[_Input]:
    at = _Spot("file", _real(path))
    file = os.path.isfile(path)
    if file or path.lower().endswith(SUFFIXES):
        yield _Input(at=at, kind="listed")
    if file:
        return
    yield _Input(at=at, kind="listing")  # or it will be, should it come to be there
    seen = {at.path}
    folders = [at.path]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                visible = [entry for entry in entries if not hidden(entry.name)]
        except OSError:  # the listing itself will tell
            continue
        for entry in visible:
            if entry.is_symlink():
                linked = _Spot.of(entry.path)
                if os.path.isdir(linked.path):
                    if linked.path not in seen:
                        seen.add(linked.path)
                        folders.append(linked.path)
                        yield _Input(at=linked, kind="listing")
                elif entry.name.lower().endswith(SUFFIXES):
                    yield _Input(at=linked, kind="listed")
            elif entry.is_dir():
                folders.append(entry.path)


def _taken_apart(path: str) -> tuple[str, tuple[str, ...]]:
    """The folder before the first name with a wildcard, and the names from there on."""
    names = re.split("/+", path.strip("/"))
    first = next(number for number, name in enumerate(names) if has_magic(name))
    return "/" + "/".join(names[:first]), tuple(names[first:])
