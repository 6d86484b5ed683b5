"""Walking a storage: every file below a folder or matched by a glob; nothing is left out unseen.

fsspec's own ``find``, ``glob``, ``exists`` and ``isfile`` take an error for "not there" and do not
follow links, so files could be lost without a word. Here a folder that cannot be listed is an
error that names it.
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

from raypq.data.storage.objects import below, children, missing_bucket
from raypq.data.storage.tags import version_tag
from raypq.errors import InputError

_MAGIC = frozenset("*?[")
_DIGITS = 16  # of a tag that tell where a link leads


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or folder that a walk met.

    Attributes:
        path: as the walk came to it. real: the same with all links resolved.
        size: bytes, None where the storage does not tell. tag: see ``version_tag``.
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
    """Whether readers of Parquet folders pass over a name: ``.x`` and ``_x``.

    As Spark does, folders ``_column=value`` are read: they are partitions.
    """
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def is_glob(path: str) -> bool:
    """Whether a path is a pattern, unless something of that very name is there."""
    return bool(_MAGIC.intersection(path))


class Walk(ABC):
    """One storage, read as a tree."""

    def find(self, path: str) -> list[Entry] | None:
        """The files that a path names: itself, all below it, or all that it matches as a glob.
        None where nothing is at the path, or matches it: there is not even an empty folder.

        A path that is there as it stands is no glob, whatever characters are in it. Hidden names
        are passed over, unless the path names them.

        Raises:
            InputError: a folder that cannot be listed, a link that leads nowhere.
        """
        found = self.look(path)
        matched: Iterable[Entry]
        if found is None:
            if not is_glob(path):
                return None
            parts = path.split("/")
            first = next(at for at, part in enumerate(parts) if _MAGIC.intersection(part))
            matched = list(self._match("/".join(parts[:first]) or "/", parts[first:]))
            if not matched:
                return None
        else:
            matched = [found]
        files: dict[str, Entry] = {}
        for entry in matched:
            for item in self.below(entry) if entry.folder else [entry]:
                files[item.path] = item
        return list(files.values())

    def _match(self, root: str, parts: list[str]) -> Iterator[Entry]:
        part, rest = parts[0], parts[1:]
        if part == "":  # a slash at the end, or two
            if rest:
                yield from self._match(root, rest)
            elif (found := self.look(root)) and found.folder:
                yield found
            return
        if part == "**":
            yield from self._match(root, rest or ["*"])
            for entry in self.children(root):
                if entry.folder and not hidden(entry.name):
                    yield from self._match(entry.path, parts)
            return
        if not _MAGIC.intersection(part):
            found = self.look(f"{root.rstrip('/')}/{part}")
            chosen: Iterable[Entry] = [found] if found else []
        else:
            asked = part[0] if part[0] in "._" else ""
            chosen = (
                entry
                for entry in self.children(root)
                if fnmatch.fnmatchcase(entry.name, part)
                and (not hidden(entry.name) or entry.name[0] == asked)
            )
        for entry in chosen:
            if not any(rest):
                if entry.folder or not rest:
                    yield entry
            elif entry.folder:
                yield from self._match(entry.path, rest)

    @abstractmethod
    def look(self, path: str) -> Entry | None:
        """What is at a path; None if nothing is."""

    @abstractmethod
    def children(self, path: str) -> Iterable[Entry]:
        """What is directly in a folder, in order of its name, hidden names too."""

    @abstractmethod
    def below(self, folder: Entry) -> Iterator[Entry]:
        """The files below a folder, without what is hidden."""


class LocalWalk(Walk):
    """Local files; links are followed."""

    def look(self, path: str) -> Entry | None:
        try:
            about = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.islink(path):
                return None
            raise _broken_link(path) from None
        except OSError as error:
            raise _unlisted(path, error) from None
        return self._entry(path, os.path.realpath(path), about)

    def children(self, path: str) -> Iterable[Entry]:
        return self._list(path, os.path.realpath(path))

    def below(self, folder: Entry) -> Iterator[Entry]:
        # Folders that are no links come first: what is reached both ways keeps its own path.
        # Real paths tell what was met before; numbers of inodes are not unique on every storage.
        met: set[str] = set()
        plain, links = [folder], list[Entry]()
        while plain or links:
            here = plain.pop() if plain else links.pop(0)
            if here.real in met:
                continue
            met.add(here.real)
            for entry in self._list(here.path, here.real):
                if hidden(entry.name):
                    continue
                if not entry.folder:
                    yield entry
                elif entry.real == f"{here.real.rstrip('/')}/{entry.name}":
                    plain.append(entry)
                else:
                    links.append(entry)
            links.sort(key=lambda entry: entry.path)

    def _list(self, path: str, real: str) -> Iterator[Entry]:
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):  # gone since it was met
            return
        except OSError as error:
            raise _unlisted(path, error) from None
        for entry in entries:
            if made := self._child(entry, f"{real.rstrip('/')}/{entry.name}"):
                yield made

    def _child(self, entry: os.DirEntry[str], real: str) -> Entry | None:
        if hidden(entry.name) and entry.is_symlink() and not os.path.exists(entry.path):
            return None  # as editors leave them; nobody asks for it
        try:
            about = entry.stat()
        except FileNotFoundError:
            if not entry.is_symlink():
                return None  # gone since it was met
            raise _broken_link(entry.path) from None
        except OSError as error:
            raise _unlisted(entry.path, error) from None
        return self._entry(
            entry.path, os.path.realpath(entry.path) if entry.is_symlink() else real, about
        )

    def _entry(self, path: str, real: str, about: os.stat_result) -> Entry:
        folder = stat.S_ISDIR(about.st_mode)
        plain = folder or stat.S_ISREG(about.st_mode)
        return Entry(
            path=path,
            real=real,
            folder=folder,
            size=about.st_size if plain else None,
            tag=_local_tag(path, real, about) if plain else None,
        )


def _local_tag(path: str, real: str, about: os.stat_result) -> str:
    """The time of change; behind a link also where it leads, for a link may come to lead to another
    file of the same size and time."""
    moment = str(about.st_mtime)
    if path == real:
        return moment
    return f"{moment}@{hashlib.sha256(os.fsencode(real)).hexdigest()[:_DIGITS]}"


@dataclass
class RemoteWalk(Walk):
    """Any filesystem of fsspec."""

    fs: AbstractFileSystem
    uri: str

    def look(self, path: str) -> Entry | None:
        try:
            return self._entry(self.fs.info(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            if missing_bucket(self.fs, path, error):
                raise InputError(
                    self.uri, expected="a bucket that exists", found="no such bucket"
                ) from None
            return None
        except PermissionError as error:
            # Rights that end at a prefix reach neither to an object of the prefix's name nor to a
            # pattern; then the listing tells.
            if is_glob(path):
                return None
            folder = Entry(path=path, real=path, folder=True)
            if next(self.below(folder), None) is None:
                raise _unlisted(self.uri, error) from None
            return folder

    def children(self, path: str) -> Iterable[Entry]:
        return [self._entry(info) for info in children(self.fs, path)]

    def below(self, folder: Entry) -> Iterator[Entry]:
        root = folder.path.rstrip("/")
        for info in below(self.fs, folder.path, passing=hidden):
            entry = self._entry(info)
            if not any(hidden(part) for part in entry.path[len(root) :].split("/") if part):
                yield entry

    def _entry(self, info: dict[str, Any]) -> Entry:
        path = str(info["name"])
        folder = info["type"] == "directory"
        if not folder and (info.get("size") is None or version_tag(info) is None):
            info = {**info, **self.fs.info(path)}  # some listings say less than a look does
            folder = info["type"] == "directory"
        size = info.get("size")
        return Entry(
            path=path,
            real=path,
            folder=folder,
            size=None if folder or size is None else int(size),
            tag=None if folder else version_tag(info),
        )


def _unlisted(path: str, error: OSError) -> InputError:
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
