"""Duplicate ids of a store, found in bounded memory.

Every id is hashed to 64 bits. Hashes are sorted a part at a time; parts that memory cannot hold
together wait in temporary files. Equal hashes are then compared as ids, so a collision is never
reported. 16 bytes an image: 128 MiB of memory, and 16 GB of temporary disk for 10⁹ images.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.stored import open_stored

IN_MEMORY = 2 << 20  # entries of 16 bytes that are sorted at once, beside 32 more each
COMPARED = 10_000  # rows whose ids are compared; beyond that a collision changes nothing
PIECE = 65_536  # ids or entries that are handed on at once
_SHOWN = 5
_MOST_PARTS = 256  # temporary files at once
ENTRY = np.dtype([("hash", "<u8"), ("file", "<u4"), ("row", "<u4")])
_PRIME = 0x100000001B3  # odd, so that powers of it keep all 64 bits apart

Entries = NDArray[Any]
Place = tuple[int, int]  # file and row


@dataclass(frozen=True, kw_only=True)
class IdFile:
    """A file with a column ``id``, and what its rows are called in messages.

    Attributes:
        path: below the store; names the content, since a stored file never changes.
    """

    uri: str
    name: str
    rows: int
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """One id and the rows that have it, as ``name, row n``."""

    id: str
    rows: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """How many rows repeat the id of another one, and some examples."""

    rows: int
    examples: Sequence[Repeated]

    def __str__(self) -> str:
        shown = "; ".join(f"{one.id!r} in {' and in '.join(one.rows)}" for one in self.examples)
        return f"{self.rows:,} row(s) with an id that is there before: {shown}"


def find_duplicates(files: Sequence[IdFile], *, in_memory: int = IN_MEMORY) -> Duplicates | None:
    """Looks through the ids of all files; None where each is there once.

    Args:
        in_memory: entries of 16 bytes to hold and sort at once.
    """
    found = RepeatedHashes()
    for entries in repeated(sorted_entries(list(enumerate(files)), in_memory)):
        found.add(entries)
    return found.compare(files, found.ids(files, {}))


def sorted_entries(files: Sequence[tuple[int, IdFile]], in_memory: int) -> Iterator[Entries]:
    """The entries of files in order of their hashes, in pieces of up to ``in_memory``.

    No hash is in two pieces, except where one hash alone fills more than a piece.

    Args:
        files: each with the number that its entries get.
    """
    total = sum(file.rows for _, file in files)
    yield from _sorted(_entries(files), total, in_memory, (0, (1 << 64) - 1))


def _entries(files: Iterable[tuple[int, IdFile]]) -> Iterator[Entries]:
    for number, file in files:
        row = 0
        for ids in _ids(file):
            found = np.empty(len(ids), ENTRY)
            found["hash"], found["file"] = hashes(ids), number
            found["row"] = np.arange(row, row + len(ids))
            row += len(ids)
            yield found


def _ids(file: IdFile) -> Iterator[pa.Array]:
    if not file.rows:
        return
    with open_stored(file.uri, "codes") as opened:
        for batch in opened.iter_batches(batch_size=PIECE, columns=["id"]):
            yield batch.column(0)


def _sorted(
    batches: Iterable[Entries], total: int, in_memory: int, span: tuple[int, int]
) -> Iterator[Entries]:
    """Entries whose hashes lie within ``span`` (both ends included), sorted by hash."""
    if total <= in_memory + in_memory // 4:  # parts are not quite of one size
        found = list(batches)
        if found:
            yield by_hash(found[0] if len(found) == 1 else np.concatenate(found))
        return
    low, high = span
    if low == high:  # one id, or one hash, very many times
        yield from batches
        return
    with ExitStack() as stack:
        for part in _parts(batches, min(-(-total // in_memory), _MOST_PARTS), span, stack):
            if part.entries:
                whole = part.entries <= in_memory + in_memory // 4
                rows = part.entries if whole else PIECE
                yield from _sorted(part.read(rows), part.entries, in_memory, part.span)


@dataclass(kw_only=True)
class _Part:
    """Entries with hashes of a range, in a temporary file."""

    file: IO[bytes]
    entries: int = 0
    low: int = (1 << 64) - 1
    high: int = 0

    @property
    def span(self) -> tuple[int, int]:
        return self.low, self.high

    def add(self, entries: Entries) -> None:
        self.file.write(entries.tobytes())
        self.entries += len(entries)
        self.low = min(self.low, int(entries["hash"].min()))
        self.high = max(self.high, int(entries["hash"].max()))

    def read(self, rows: int) -> Iterator[Entries]:
        self.file.seek(0)
        size = rows * ENTRY.itemsize
        while len(found := np.frombuffer(self.file.read(size), ENTRY)):
            yield found
        self.file.close()


def _parts(
    batches: Iterable[Entries], count: int, span: tuple[int, int], stack: ExitStack
) -> list[_Part]:
    """All entries, split into ranges of hashes of one width."""
    parts = [
        _Part(file=stack.enter_context(tempfile.TemporaryFile(prefix="raypq-ids-")))  # noqa: SIM115
        for _ in range(count)
    ]
    low, high = span
    width = np.uint64((high - low) // count + 1)
    for batch in batches:
        place = (batch["hash"] - np.uint64(low)) // width
        order = np.argsort(place, kind="stable")
        ends = np.searchsorted(place[order], np.arange(count + 1).astype(np.uint64))
        for number, (first, last) in enumerate(itertools.pairwise(ends)):
            if last > first:
                parts[number].add(batch[order[first:last]])
    for part in parts:
        part.file.flush()
    return parts


def by_hash(entries: Entries) -> Entries:
    """Entries in order of their hashes."""
    return entries[np.argsort(entries["hash"])]  # of numbers: entries take four times as long


def merged(streams: Iterable[Iterator[Entries]]) -> Iterator[Entries]:
    """One stream of several that are each in order of their hashes."""
    held = [(first, stream) for stream in streams if (first := _more(stream)) is not None]
    while held:
        end = min(entries["hash"][-1] for entries, _ in held)
        pieces, rest = [], []
        for entries, stream in held:
            cut = int(np.searchsorted(entries["hash"], end, side="right"))
            pieces.append(entries[:cut])
            left = entries[cut:] if cut < len(entries) else _more(stream)
            if left is not None:
                rest.append((left, stream))
        held = rest
        pieces = [piece for piece in pieces if len(piece)]
        yield pieces[0] if len(pieces) == 1 else by_hash(np.concatenate(pieces))


def _more(stream: Iterator[Entries]) -> Entries | None:
    return next((entries for entries in stream if len(entries)), None)


def repeated(stream: Iterable[Entries]) -> Iterator[Entries]:
    """Of entries in order of their hashes those whose hash another one has too."""
    last, chosen = np.empty(0, ENTRY), False  # its next one decides
    for piece in stream:
        for start in range(0, len(piece), PIECE):
            entries = np.concatenate([last, piece[start : start + PIECE]])
            same = entries["hash"][1:] == entries["hash"][:-1]
            member = np.zeros(len(entries), np.bool_)
            member[1:] |= same
            member[:-1] |= same
            member[0] |= chosen
            if member[:-1].any():
                yield entries[:-1][member[:-1]]
            last, chosen = entries[-1:], bool(member[-1])
    if chosen:
        yield last


@dataclass(kw_only=True, eq=False)
class RepeatedHashes:
    """Entries that share their hash with another one: how many, and the first of them.

    Attributes:
        entries: entries in all. groups: different hashes.
        first: the first entries by hash, file and row; all of them, up to ``COMPARED``.
    """

    entries: int = 0
    groups: int = 0
    first: Entries = field(default_factory=lambda: np.empty(0, ENTRY))
    _last: int | None = None

    def add(self, entries: Entries) -> None:
        """Takes the next entries in order of their hashes."""
        found = entries["hash"]
        self.groups += 1 + int((found[1:] != found[:-1]).sum()) - (int(found[0]) == self._last)
        self._last = int(found[-1])
        self.entries += len(entries)
        if len(self.first) < COMPARED or int(self.first["hash"][-1]) == int(found[0]):
            both = np.concatenate([self.first, entries])
            self.first = np.sort(both, order=("hash", "file", "row"))[:COMPARED]

    def compare(self, files: Sequence[IdFile], ids: Mapping[Place, Any]) -> Duplicates | None:
        """What of it is ids that are equal, not just their hashes; None where nothing is.

        Args:
            files: by the numbers that the entries have.
            ids: of the first entries (``ids``).
        """
        by_id: dict[Any, list[Place]] = {}
        for place, value in ids.items():
            by_id.setdefault(value, []).append(place)
        real = {value: sorted(places) for value, places in by_id.items() if len(places) > 1}
        if not real:
            return None
        extra = self.entries - self.groups
        if self.entries == len(self.first):
            extra = sum(len(places) - 1 for places in real.values())
        shown = sorted(real.items(), key=lambda item: item[1])[:_SHOWN]
        return Duplicates(
            rows=extra,
            examples=[
                Repeated(
                    id=str(value),
                    rows=[f"{files[file].name}, row {row}" for file, row in places[:_SHOWN]],
                )
                for value, places in shown
            ],
        )

    def ids(self, files: Sequence[IdFile], known: Mapping[Place, Any]) -> dict[Place, Any]:
        """The ids of the first entries; those that are not known are read from their files.

        Args:
            files: by the numbers that the entries have.
            known: ids by file and row that need not be read.
        """
        places = zip(self.first["file"].tolist(), self.first["row"].tolist(), strict=True)
        ids = {place: known.get(place) for place in places}
        unread = sorted(place for place, value in ids.items() if value is None)
        for number, group in itertools.groupby(unread, key=lambda place: place[0]):
            wanted, row = np.array([at for _, at in group]), 0
            for batch in _ids(files[number]):
                here = wanted[(wanted >= row) & (wanted < row + len(batch))]
                values = batch.take(pa.array(here - row)).to_pylist() if len(here) else []
                ids |= {(number, int(at)): value for at, value in zip(here, values, strict=True)}
                row += len(batch)
        return ids


def hashes(ids: pa.Array) -> NDArray[np.uint64]:
    """64-bit hashes of int64 or string ids, the same on every machine."""
    if pa.types.is_int64(ids.type):
        return _mix(ids.to_numpy().astype(np.uint64))
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    lengths = np.diff(offsets)
    data = ids.buffers()[2]
    if data is None or not lengths.any():
        return _mix(np.zeros(len(ids), np.uint64))
    values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64)
    place = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    powers = np.ones(int(lengths.max()), np.uint64)
    powers[1:] = np.uint64(_PRIME)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum((values + np.uint64(1)) * np.cumprod(powers)[place], out=sums[1:])
    ends = offsets - offsets[0]
    return _mix(sums[ends[1:]] - sums[ends[:-1]])


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
