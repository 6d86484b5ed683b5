"""Folders of image files: a shard is a part of the files below a folder.

Files have a 64-bit key: the hash of their folder, then that of their name. Keys are divided by
their first bits until no part has more than ``_MOST_FILES`` files. So files of one folder stay
together, a part changes only if its own files do, and a part that grows divides into two. A shard
is named by the root folder and the first bits of its keys: ``<root>/<bits>_<count>.imagefolder``.
If globs or files were named instead of the folder, a digest of them is part of the name: another
selection of the same folder is another source.

Ids are the paths below the root. Labels are the names of the folders that hold the files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data.layouts import image_files
from raypq.data.layouts.image_files import ImageFile
from raypq.data.layouts.source import take_from_groups
from raypq.data.storage import Shard, join, stem_of
from raypq.data.storage.shards import tag_of
from raypq.data.storage.walk import Entry
from raypq.errors import InputError

SUFFIX = ".imagefolder"
_MOST_FILES = 2048  # of a shard; minutes of work for a network on one CPU
_BITS = 64
_DIGITS = 12  # of a selection's digest
_PART = re.compile(
    r"(?P<root>.*)/(?P<prefix>[0-9a-f]+)_(?P<bits>[0-9]+)(?P<selection>~[0-9a-f]+)?"
    + re.escape(SUFFIX),
    re.DOTALL,
)
_FILES = pa.schema(
    [
        ("name", pa.string()),  # path below the root
        ("size", pa.int64()),
        ("version", pa.binary(image_files.VERSION_BYTES)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The files below a folder whose keys begin with some bits.

    Attributes:
        prefix: the first ``bits`` bits of the keys, as a number.
        selection: ``~`` and a digest of the globs and files that were named; empty for the folder.
    """

    root: str
    prefix: int
    bits: int
    selection: str = ""

    @classmethod
    def of(cls, uri: str) -> Part | None:
        """The part that the URI of a shard names; None if it is a shard of another layout."""
        match = _PART.fullmatch(uri)
        if match is None:
            return None
        return cls(
            root=match["root"],
            prefix=int(match["prefix"], 16),
            bits=int(match["bits"]),
            selection=match["selection"] or "",
        )

    @property
    def uri(self) -> str:
        """The URI of its shard."""
        prefix = f"{self.prefix:0{-(-self.bits // 4) or 1}x}"
        return join(self.root, f"{prefix}_{self.bits}{self.selection}{SUFFIX}")

    @property
    def source(self) -> tuple[str, str]:
        """What its files are listed from: the folder, and the selection."""
        return self.root, self.selection

    @property
    def first_key(self) -> int:
        """The least key that it may hold."""
        return self.prefix << (_BITS - self.bits)

    @property
    def keys(self) -> int:
        """The number of keys that it may hold."""
        return 1 << (_BITS - self.bits)

    def outer(self) -> Iterator[Part]:
        """The part itself and those that it may have been divided from."""
        for bits in range(self.bits, -1, -1):
            yield replace(self, prefix=self.prefix >> (self.bits - bits), bits=bits)


def list_parts(root: str, files: Mapping[str, Entry], selection: str = "") -> list[Shard]:
    """The shards of the files below a folder; their ``index`` is for the caller to set.

    Args:
        files: by path below the root.
        selection: the globs and files that were named, if not the folder was.
    """
    digest = hashlib.sha256(selection.encode()).hexdigest()[:_DIGITS]
    mark = f"~{digest}" if selection else ""
    names = sorted(files)
    keys = np.array([_key(name) for name in names], np.uint64)
    order = np.argsort(keys, kind="stable")  # of equal keys, by name
    keys = keys[order]
    return [
        _shard(
            Part(root=root, prefix=prefix, bits=bits, selection=mark),
            files,
            [names[at] for at in order[a:b]],
        )
        for a, b, prefix, bits in _divided(keys)
    ]


def _key(name: str) -> int:
    folder, _, file = name.rpartition("/")
    return _hash(folder) << 32 | _hash(file)


@lru_cache(maxsize=1024)
def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _divided(keys: NDArray[np.uint64]) -> Iterator[tuple[int, int, int, int]]:
    """Parts of sorted keys: first and last position, prefix and its number of bits."""
    parts = [(0, len(keys), 0, 0)]
    while parts:
        first, last, prefix, bits = parts.pop()
        if first == last:
            continue
        if last - first <= _MOST_FILES or bits == _BITS:
            yield first, last, prefix, bits
            continue
        middle = (2 * prefix + 1) << (_BITS - bits - 1)
        at = first + int(np.searchsorted(keys[first:last], np.uint64(middle)))
        parts.append((at, last, 2 * prefix + 1, bits + 1))
        parts.append((first, at, 2 * prefix, bits + 1))


def _shard(part: Part, files: Mapping[str, Entry], names: Sequence[str]) -> Shard:
    sizes = [files[name].size or 0 for name in names]
    versions = [_version(join(part.root, name), files[name]) for name in names]
    digest = hashlib.blake2b(digest_size=16)
    for name, version in zip(names, versions, strict=True):
        digest.update(name.encode() + b"\0" + version)
    listed = pa.RecordBatch.from_arrays(
        [pa.array(names), pa.array(sizes, pa.int64()), pa.array(versions, _FILES[2].type)],
        schema=_FILES,
    )
    return Shard(
        index=0,
        uri=part.uri,
        stem=stem_of(part.uri),
        size=sum(sizes),
        modified=digest.hexdigest(),
        files=listed,
    )


def _version(uri: str, entry: Entry) -> bytes:
    """A digest of a file's size and version tag."""
    text = f"{entry.size}:{tag_of(uri, entry)}"
    return hashlib.blake2b(text.encode(), digest_size=image_files.VERSION_BYTES).digest()


class ImageFolderSource:
    """The files of a part, in the order of their keys."""

    def __init__(self, root: str, uri: str, files: pa.RecordBatch, columns: Columns) -> None:
        self.uri, self._root, self._files, self._columns = uri, root, files, columns

    @property
    def schema(self) -> pa.Schema:
        """Id, image and label."""
        return pa.schema(
            [
                pa.field(self._columns.id, pa.string(), nullable=False),
                pa.field(self._columns.feature, ImageFile(), nullable=False),
                pa.field(self._columns.label, pa.string()),
            ]
        )

    @property
    def group_rows(self) -> Sequence[int]:
        """One group: files are read one by one in any case."""
        return [len(self._files)]

    def batches(
        self, columns: Sequence[str] | None, size: int, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        """See ``Source``."""
        schema = self.schema
        wanted = schema.names if columns is None else columns
        make = {
            self._columns.id: lambda files: files.column("name"),
            self._columns.feature: self._images,
            self._columns.label: _folders,
        }
        for start in range(0, len(self._files), size):
            files = self._files.slice(start, size)
            yield pa.RecordBatch.from_arrays(
                [make[name](files) for name in wanted],
                schema=pa.schema([schema.field(name) for name in wanted]),
            )

    def _images(self, files: pa.RecordBatch) -> pa.Array:
        uris = [join(self._root, name) for name in files.column("name").to_pylist()]
        return image_files.column(uris, files.column("version"))

    def take(self, columns: Sequence[str] | None, rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """See ``Source``."""
        return take_from_groups(self, columns, rows)

    def row_bytes(self, columns: Sequence[str] | None) -> float:
        """See ``Source``."""
        sizes = self._files.column("size").to_pylist()
        return sum(sizes) / max(len(sizes), 1)


def _folders(files: pa.RecordBatch) -> pa.Array:
    """The name of the folder of each file; null for files directly in the root."""
    names = [name.split("/") for name in files.column("name").to_pylist()]
    return pa.array([parts[-2] if len(parts) > 1 else None for parts in names], pa.string())


@contextmanager
def open_source(shard: Shard, columns: Columns) -> Iterator[ImageFolderSource]:
    """Opens a part of a folder.

    Raises:
        InputError: its files are not known, since it was not listed in this run.
    """
    part = Part.of(shard.uri)
    if part is None or shard.files is None:
        raise InputError(
            shard.uri,
            expected="a part of the files of a folder, as this run listed it",
            found="a part that an earlier run made; name its folder, so that it is listed",
        )
    yield ImageFolderSource(part.root, shard.uri, shard.files, columns)


def content_digest(shard: Shard) -> str:
    """sha256 of the names and the content of the files of a part."""
    part = Part.of(shard.uri)
    assert part is not None, "listed by list_parts"
    assert shard.files is not None, "listed by list_parts"
    digest = hashlib.sha256()
    for name in shard.files.column("name").to_pylist():
        content = hashlib.sha256(image_files.read_file(join(part.root, name))).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
