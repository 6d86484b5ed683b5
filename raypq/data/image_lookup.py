"""Images by id: of all shards of images, only those that hold one that is wanted are read.

An image file is opened by its path below the folder, without a listing. Other images are found by
the shard that their id is known to come from; what remains is looked for in a bounded number of
shards.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raypq.config import Columns
from raypq.data import ids as id_columns
from raypq.data import texts
from raypq.data.layouts import ShardFile, arrow_types, list_features, open_shard
from raypq.data.layouts.image_files import READERS
from raypq.data.layouts.image_folder import Part
from raypq.data.storage import Shard, canonical, is_local, join, read_bytes
from raypq.data.storage.shards import names_folder
from raypq.data.storage.walk import IMAGE_SUFFIXES
from raypq.errors import InputError, message_of

MOST_SHARDS = 64  # that are opened
_BATCH = 65_536  # ids
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NOT_THERE = "not among these images"


class Wanted(NamedTuple):
    """An image to read: its id as text, and the shard that it comes from, if that is known."""

    id: str
    origin: str | None = None


class StoredImage(NamedTuple):
    """An encoded image and its label; or why there is none.

    ``missing``: there is no image of this id.
    """

    data: bytes | None = None
    label: str | None = None
    problem: str = ""
    missing: bool = False


Read = tuple[Wanted, StoredImage]


class ImageLookup:
    """Reads images of some places by id.

    Attributes:
        opened, shards: number of shards that were opened, and of all (0 if they were not listed).
        failures: errors of shards that could not be read.
        places: of the images, for errors.
        example: an id of these images; empty if none was seen.
    """

    def __init__(self, images: Sequence[str], columns: Columns) -> None:
        self._images, self._columns = list(images), columns
        self.places = ", ".join(images)
        self._roots = [canonical(uri).rstrip("/") for uri in images if names_folder(uri)]
        self._file_roots: set[str] = set()  # in which an image was found by its path
        self.opened = self.shards = 0
        self.failures: list[InputError] = []
        self.example = ""

    def read(self, wanted: Iterable[Wanted]) -> Iterator[Read]:
        """Every wanted image once, in any order.

        Raises:
            InputError: the images cannot be listed.
        """
        rest: list[Wanted] = []
        for want, image in self._files(dict.fromkeys(wanted)):
            if image.missing:
                rest.append(want)
            else:
                yield want, image
        if rest and self._file_roots >= {*self._roots} and len(self._roots) == len(self._images):
            problem = f"no such file below {', '.join(self._roots)}"
            yield from _without(rest, problem, missing=True)
        elif rest:
            yield from self._from_shards(rest)

    def _files(self, wanted: Collection[Wanted]) -> Iterator[Read]:
        """Images that are files of the folders, by path; a missing image for each of the others."""
        remote = any(not is_local(root) for root in self._roots)
        chunk = READERS if remote else 1
        queue = list(wanted)
        with ThreadPoolExecutor(chunk, "raypq-read") as readers:
            for start in range(0, len(queue), chunk):  # bounds the bytes that are held
                part = queue[start : start + chunk]
                yield from zip(part, readers.map(self._file, part), strict=True)

    def _file(self, want: Wanted) -> StoredImage:
        part = Part.of(want.origin or "")
        roots = [root for root in self._roots if part is None or part.root == root] or self._roots
        if not _is_path(want.id):
            return StoredImage(missing=True)
        found = {root: image for root in roots if not (image := _read_file(root, want.id)).missing}
        self._file_roots |= found.keys()
        if len(found) > 1:
            return StoredImage(problem=f"two files of this path: below {' and '.join(found)}")
        return next(iter(found.values()), StoredImage(missing=True))

    def _from_shards(self, wanted: Sequence[Wanted]) -> Iterator[Read]:
        shards = list_features(self._images, "images")
        self.shards = sum(shard.files is None for shard in shards)
        by_shard, rest = _by_shard(wanted, shards)
        known = sorted(by_shard, key=lambda number: (-len(by_shard[number]), number))
        for number in known:
            yield from self._read_shard(shards[number], by_shard[number], last=True)
        others = [shard for shard in shards if shard.index not in by_shard]
        # An id may occur in several shards: first in the one of the name that the image comes from.
        for same_name, shard in product((True, False), others):
            here = [want for want in rest if _is_of(want, shard) == same_name]
            found: set[Wanted] = set()
            for want, image in self._read_shard(shard, here, last=False) if here else ():
                found.add(want)
                yield want, image
            rest = [want for want in rest if want not in found]
        looked = f" (looked in {self.opened} of {self.shards} shards)" if self.shards else ""
        yield from _without(rest, f"{_NOT_THERE}{looked}", missing=True)

    def _read_shard(self, shard: Shard, wanted: Sequence[Wanted], *, last: bool) -> Iterator[Read]:
        """The images of a shard; with ``last``, also the reason for those that are not read."""
        left = dict.fromkeys(wanted)
        problem = f"not in {shard.uri}, of which it was made"
        missing = True
        try:
            if shard.files is None and self.opened >= MOST_SHARDS:
                problem = f"not looked for: at most {MOST_SHARDS} shards of images are opened"
            else:
                for want, image in self._images_of(shard, wanted):
                    del left[want]
                    yield want, image
        except (InputError, OSError) as error:
            problem, missing = message_of(error), False
            if isinstance(error, InputError):
                self.failures.append(error)
        if last:
            yield from _without(left, problem, missing=missing)

    def _images_of(self, shard: Shard, wanted: Sequence[Wanted]) -> Iterator[Read]:
        part = Part.of(shard.uri)
        if part is not None and shard.files is not None:
            names = shard.files.column("name")
            self.example = self.example or names[0].as_py()
            there = {*names.filter(_among(names, wanted)).to_pylist()}
            for want in wanted:
                if want.id in there:
                    yield want, _read_file(part.root, want.id)
            return
        self.opened += 1
        with open_shard(shard, self._columns) as file:
            rows = self._rows(file, wanted)
            for want in wanted:
                if len(rows.get(want.id, ())) > 1:
                    repeated = ", ".join(map(str, rows[want.id][:5]))
                    problem = f"an id of several rows of {shard.uri}: {repeated}"
                    yield want, StoredImage(problem=problem)
            by_row = {found[0]: name for name, found in rows.items() if len(found) == 1}
            wants = defaultdict(list)
            for want in wanted:
                wants[want.id].append(want)
            for row, image in self._take(file, sorted(by_row)):
                for want in wants[by_row[row]]:
                    yield want, image

    def _rows(self, file: ShardFile, wanted: Sequence[Wanted]) -> dict[str, list[int]]:
        """The rows of each wanted id."""
        name = self._columns.id
        where = f"{file.uri}, column '{name}'"
        kind = id_columns.kind_of(file.field(name).type, where=where) or "string"
        rows: dict[str, list[int]] = defaultdict(list)
        row = 0
        for batch in file.batches(_BATCH, [name]):
            values = id_columns.read(batch.column(0), kind, where=where, row0=row)
            values = values.cast(pa.string())
            if len(values):
                self.example = self.example or values[0].as_py()
            for at in pc.indices_nonzero(_among(values, wanted)).to_pylist():
                rows[values[at].as_py()].append(row + at)
            row += len(batch)
        return rows

    def _take(self, file: ShardFile, rows: Sequence[int]) -> Iterator[tuple[int, StoredImage]]:
        """Images of single rows, with their labels."""
        image, label = self._columns.feature, self._columns.label
        columns = [image, label] if _has_names(file, label) else [image]
        for row, batch in zip(rows, file.take(rows, columns) if rows else (), strict=True):
            data, name = batch.column(0)[0].as_py(), None
            if not isinstance(data, bytes | None):
                raise InputError(
                    f"{file.uri}, column '{image}'",
                    expected="encoded images (--feature-column, columns.feature)",
                    found=str(batch.column(0).type),
                )
            if batch.num_columns > 1:
                where = f"{file.uri}, column '{label}'"
                name = texts.strings(batch.column(1), where=where, nulls=True, row0=row)[0].as_py()
            problem = "" if data else "no image in its row"
            yield row, StoredImage(data=data or None, label=name, problem=problem)


def _has_names(file: ShardFile, column: str) -> bool:
    """Whether there is a column of text or integers."""
    if not file.has(column):
        return False
    kind = arrow_types.plain_type(file.field(column).type)
    return arrow_types.is_text(kind) or pa.types.is_integer(kind)


def _is_path(name: str) -> bool:
    """Whether an id may be the path of an image file that lies below a folder."""
    parts = name.split("/")
    inside = all(part not in ("", ".", "..") for part in parts) and "\0" not in name
    return inside and name.lower().endswith(IMAGE_SUFFIXES)


def _read_file(root: str, name: str) -> StoredImage:
    """An image file below a folder; its label is the name of the folder that holds it."""
    folder = name.rpartition("/")[0].rpartition("/")[2]
    try:
        return StoredImage(data=read_bytes(join(root, name)), label=folder or None)
    except _GONE:
        return StoredImage(problem=f"no such file below {root}", missing=True)
    except OSError as error:
        return StoredImage(problem=message_of(error))


def _by_shard(
    wanted: Sequence[Wanted], shards: Sequence[Shard]
) -> tuple[dict[int, list[Wanted]], list[Wanted]]:
    """What is wanted by number of the shard that holds it, and the rest.

    The shard is the origin; for an id that is made of shard and row, the shard of that name.
    """
    by_uri = {shard.uri: shard.index for shard in shards}
    by_stem = {shard.stem: shard.index for shard in shards}
    known: dict[int, list[Wanted]] = defaultdict(list)
    rest: list[Wanted] = []
    for want in wanted:
        number = by_uri.get(want.origin or "", by_stem.get(want.id.rpartition(":")[0]))
        (rest if number is None else known[number]).append(want)
    return known, rest


def _is_of(want: Wanted, shard: Shard) -> bool:
    """Whether an image comes from a shard of the same name."""
    return bool(want.origin) and _base(want.origin or "") == _base(shard.uri)


def _among(values: pa.Array, wanted: Iterable[Wanted]) -> pa.BooleanArray:
    return pc.is_in(values, value_set=pa.array([want.id for want in wanted], pa.string()))


def _base(uri: str) -> str:
    """The name of a file without its suffix: shards of images and of features often share it."""
    return os.path.splitext(uri.rpartition("/")[2])[0]


def _without(wanted: Iterable[Wanted], problem: str, *, missing: bool = False) -> Iterator[Read]:
    return ((want, StoredImage(problem=problem, missing=missing)) for want in wanted)
