"""Locations of files and folders, compared as what they are rather than as they are written."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from functools import cache

from raypq.data.storage import is_local

_SCHEME_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}


@dataclass(frozen=True)
class Location:
    """A path with links, ``..`` and aliases of schemes resolved."""

    scheme: str
    path: str

    @classmethod
    def of(cls, uri: str) -> Location:
        """The location of a URI."""
        uri = uri.rsplit("::", 1)[-1]  # without the chain of a cache
        if is_local(uri):
            return cls("file", real_path(local_name(uri)))
        scheme, _, path = uri.partition("://")
        scheme = _SCHEME_ALIASES.get(scheme.lower(), scheme.lower())
        return cls(scheme, posixpath.normpath(f"/{path}").replace("//", "/"))

    def __truediv__(self, name: str) -> Location:
        path = posixpath.join(self.path, name)
        return Location(self.scheme, real_path(path) if self.scheme == "file" else path)

    @property
    def parent(self) -> Location:
        """The folder that it is in."""
        return Location(self.scheme, posixpath.dirname(self.path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def _inode(self) -> tuple[int, ...] | None:
        return _inode_of(self.path) if self.scheme == "file" else None

    def is_same(self, other: Location) -> bool:
        """Whether both are one file or folder."""
        if self == other:
            return True
        return self._inode is not None and self._inode == other._inode

    def steps_below(self, folder: Location) -> tuple[str, ...] | None:
        """The names that lead here from a folder; () for itself, None outside of it."""
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
        current = self
        while current.path != current.parent.path:
            if current._inode == folder._inode:
                return steps
            steps, current = (current.name, *steps), current.parent
        return None


def clear_caches() -> None:
    """Forgets resolved folders and inodes, which may have changed."""
    _real_folder.cache_clear()
    _inode_of.cache_clear()


def local_name(uri: str) -> str:
    """As ``local_path``, but fast for many files: most of its time is pathlib's."""
    return os.path.expanduser(uri.removeprefix("local://").removeprefix("file://"))


def real_path(path: str) -> str:
    """As ``os.path.realpath``, but fast for many files of a folder."""
    head, name = os.path.split(path)
    if name in ("", ".", ".."):
        return _real_folder(path)
    real = os.path.join(_real_folder(head), name)
    return os.path.realpath(real) if os.path.islink(real) else real


@cache
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


@cache
def _inode_of(path: str) -> tuple[int, ...] | None:
    """Identifies a file that has two names or a folder that is mounted twice.

    Inode numbers are not unique on every storage; with their times they are.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not (status.st_ino and status.st_mtime_ns):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
