"""Recursive listings: every file below a folder or matched by a glob, links followed.

fsspec's own ``find``, ``glob``, ``exists`` and ``isfile`` take an error for "no such file" and do
not follow links, so files could be lost silently. Here a folder that cannot be listed is an error
that names it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from raypq.data.storage import objects
from raypq.data.storage.tags import version_tag
from raypq.errors import InputError

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".tga", ".pcx", ".sgi",
)  # fmt: skip
_WILDCARDS = frozenset("*?[")
_DIGITS = 16  # of the hash of a link's target in a tag


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or folder of a listing.

    Attributes:
        path: as it was reached. real: the same with all links resolved.
        size: bytes, None where the storage does not give it. tag: see ``version_tag``.
    """

    path: str
    real: str
    folder: bool = False
    size: int | None = None
    tag: str | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]


def hidden(name: str) -> bool:
    """Whether readers of Parquet folders skip a name: ``.x`` and ``_x``.

    As Spark does, folders ``_column=value`` are read: they are partitions. So are images: cameras
    write ``_MG_1234.JPG``.
    """
    if not name.startswith("_"):
        return name.startswith(".")
    return "=" not in name and not name.lower().endswith(IMAGE_SUFFIXES)


def is_glob(path: str) -> bool:
    """Whether a path has wildcards; it is no glob if something of that very name exists."""
    return bool(_WILDCARDS.intersection(path))


class Walk(ABC):
    """Recursive listing of one storage."""

    def find(self, path: str) -> list[Entry] | None:
        """The files that a path names: itself, all below it, or all that it matches as a glob.

        None if nothing exists at the path or matches it, not even an empty folder. A path that
        exists is no glob, whatever characters it has. Hidden names are skipped, unless the path
        names them.

        Raises:
            InputError: a folder that cannot be listed, a broken link.
        """
        entry = self.info(path)
        matched: Iterable[Entry]
        if entry is None:
            if not is_glob(path):
                return None
            parts = path.split("/")
            first = next(index for index, part in enumerate(parts) if _WILDCARDS.intersection(part))
            matched = list(self._match("/".join(parts[:first]) or "/", parts[first:]))
            if not matched:
                return None
        else:
            matched = [entry]
        files: dict[str, Entry] = {}
        for entry in matched:
            for file in self.below(entry) if entry.folder else [entry]:
                files[file.path] = file
        return list(files.values())

    def _match(self, root: str, parts: list[str]) -> Iterator[Entry]:
        """What the parts of a glob match below a folder."""
        part, rest = parts[0], parts[1:]
        if part == "":  # a slash at the end, or two
            if rest:
                yield from self._match(root, rest)
            elif (folder := self.info(root)) and folder.folder:
                yield folder
            return
        if part == "**":
            yield from self._match(root, rest or ["*"])
            for entry in self.children(root):
                if entry.folder and not hidden(entry.name):
                    yield from self._match(entry.path, parts)
            return
        if not _WILDCARDS.intersection(part):
            child = self.info(f"{root.rstrip('/')}/{part}")
            matched: Iterable[Entry] = [child] if child else []
        else:
            hidden_prefix = part[0] if part[0] in "._" else ""
            matched = (
                entry
                for entry in self.children(root)
                if fnmatch.fnmatchcase(entry.name, part)
                and (not hidden(entry.name) or entry.name[0] == hidden_prefix)
            )
        for entry in matched:
            if not any(rest):
                if entry.folder or not rest:
                    yield entry
            elif entry.folder:
                yield from self._match(entry.path, rest)

    @abstractmethod
    def info(self, path: str) -> Entry | None:
        """The file or folder at a path; None if there is none."""

    @abstractmethod
    def children(self, path: str) -> Iterable[Entry]:
        """The entries directly in a folder, by name, hidden ones included."""

    @abstractmethod
    def below(self, folder: Entry) -> Iterator[Entry]:
        """The files below a folder, without hidden ones."""


class LocalWalk(Walk):
    """Local files; links are followed."""

    def info(self, path: str) -> Entry | None:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.islink(path):
                return None
            raise _broken_link(path) from None
        except OSError as error:
            raise _unreadable(path, error) from None
        return self._entry(path, os.path.realpath(path), status)

    def children(self, path: str) -> Iterable[Entry]:
        return self._list(path, os.path.realpath(path))

    def below(self, folder: Entry) -> Iterator[Entry]:
        # Folders that are no links come first, so that a file that is also reached by a link keeps
        # its own path. Visited folders are known by real path: not every storage has unique inodes.
        visited: set[str] = set()
        plain, links = [folder], list[Entry]()
        while plain or links:
            current = plain.pop() if plain else links.pop(0)
            if current.real in visited:
                continue
            visited.add(current.real)
            for entry in self._list(current.path, current.real):
                if hidden(entry.name):
                    continue
                if not entry.folder:
                    yield entry
                elif entry.real == f"{current.real.rstrip('/')}/{entry.name}":
                    plain.append(entry)
                else:
                    links.append(entry)
            links.sort(key=lambda entry: entry.path)

    def _list(self, path: str, real: str) -> Iterator[Entry]:
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
            return
        except OSError as error:
            raise _unreadable(path, error) from None
        for dir_entry in entries:
            if entry := self._child(dir_entry, f"{real.rstrip('/')}/{dir_entry.name}"):
                yield entry

    def _child(self, entry: os.DirEntry[str], real: str) -> Entry | None:
        if hidden(entry.name) and entry.is_symlink() and not os.path.exists(entry.path):
            return None  # a lock file of an editor
        try:
            status = entry.stat()
        except FileNotFoundError:
            if not entry.is_symlink():
                return None  # removed meanwhile
            raise _broken_link(entry.path) from None
        except OSError as error:
            raise _unreadable(entry.path, error) from None
        return self._entry(
            entry.path, os.path.realpath(entry.path) if entry.is_symlink() else real, status
        )

    def _entry(self, path: str, real: str, status: os.stat_result) -> Entry:
        folder = stat.S_ISDIR(status.st_mode)
        regular = folder or stat.S_ISREG(status.st_mode)
        return Entry(
            path=path,
            real=real,
            folder=folder,
            size=status.st_size if regular else None,
            tag=_local_tag(path, real, status) if regular else None,
        )


def _local_tag(path: str, real: str, status: os.stat_result) -> str:
    """The mtime; behind a link also a hash of its target.

    A link may be changed to lead to another file of the same size and mtime.
    """
    mtime = str(status.st_mtime)
    if path == real:
        return mtime
    return f"{mtime}@{hashlib.sha256(os.fsencode(real)).hexdigest()[:_DIGITS]}"


@dataclass
class RemoteWalk(Walk):
    """Any filesystem of fsspec."""

    fs: AbstractFileSystem
    uri: str

    def info(self, path: str) -> Entry | None:
        try:
            return self._entry(self.fs.info(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            if objects.is_missing_bucket(self.fs, path, error):
                raise objects.missing_bucket_error(self.uri) from None
            return None
        except PermissionError as error:
            # Rights may cover a prefix, but neither an object of the prefix's name nor a pattern.
            # Then the listing decides.
            if is_glob(path):
                return None
            folder = Entry(path=path, real=path, folder=True)
            if next(self.below(folder), None) is None:
                raise _unreadable(self.uri, objects.named_error(error, self.uri)) from None
            return folder

    def children(self, path: str) -> Iterable[Entry]:
        return [self._entry(info) for info in objects.children(self.fs, path)]

    def below(self, folder: Entry) -> Iterator[Entry]:
        root = folder.path.rstrip("/")
        for info in objects.below(self.fs, folder.path, skip=hidden):
            entry = self._entry(info)
            if not any(hidden(part) for part in entry.path[len(root) :].split("/") if part):
                yield entry

    def _entry(self, info: dict[str, Any]) -> Entry:
        path = str(info["name"])
        folder = info["type"] == "directory"
        if not folder and (info.get("size") is None or version_tag(info) is None):
            info = {**info, **self.fs.info(path)}  # some listings hold less than info
            folder = info["type"] == "directory"
        size = info.get("size")
        return Entry(
            path=path,
            real=path,
            folder=folder,
            size=None if folder or size is None else int(size),
            tag=None if folder else version_tag(info),
        )


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(
        path,
        expected="a file or folder that can be read and listed",
        found=error.strerror or str(error),
    )


def _broken_link(path: str) -> InputError:
    return InputError(
        path,
        expected="a link that leads to a file or folder",
        found=f"a link to {os.readlink(path)}, where there is nothing",
    )
