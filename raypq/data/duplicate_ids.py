"""Duplicate ids of a store, found in bounded memory by an external sort.

Every id is hashed to 64 bits. Entries (hash, file, row) are partitioned by hash into temporary
files where memory cannot hold all of them, and sorted partition by partition. Rows of equal hashes
are then compared by their ids, so a collision is never reported. An entry takes 16 bytes: 128 MiB
of memory, and 16 GB of temporary disk for 10⁹ images.
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

from raypq.data.storage import write_errors
from raypq.data.stored import open_stored

IN_MEMORY = 2 << 20  # entries that are sorted at once, with 32 bytes of working memory each
COMPARED = 10_000  # rows whose ids are compared; beyond that a collision changes nothing
BATCH = 65_536  # ids, or entries, of a batch
_EXAMPLES = 5
_MAX_PARTITIONS = 256  # temporary files at once
ENTRY = np.dtype([("hash", "<u8"), ("file", "<u4"), ("row", "<u4")])
_PRIME = 0x100000001B3  # odd, so that powers of it keep all 64 bits apart

Entries = NDArray[Any]
RowRef = tuple[int, int]  # file and row


@dataclass(frozen=True, kw_only=True)
class IdFile:
    """A Parquet file with a column ``id``.

    Attributes:
        name: of the file in messages.
        path: below the store; it identifies the content, since a stored file never changes.
    """

    uri: str
    name: str
    rows: int
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class DuplicateId:
    """One id and the rows that have it, as ``name, row n``."""

    id: str
    rows: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class DuplicateIds:
    """How many rows repeat the id of an earlier row, and some examples."""

    rows: int
    examples: Sequence[DuplicateId]

    def __str__(self) -> str:
        shown = "; ".join(
            f"{example.id!r} in {' and in '.join(example.rows)}" for example in self.examples
        )
        return f"{self.rows:,} row(s) that repeat an earlier id: {shown}"


def find_duplicate_ids(
    files: Sequence[IdFile], *, in_memory: int = IN_MEMORY
) -> DuplicateIds | None:
    """Reads the ids of all files; None if all are distinct.

    Args:
        in_memory: entries of 16 bytes to hold and sort at once.
    """
    repeated = RepeatedHashes()
    for entries in repeated_hashes(sorted_entries(list(enumerate(files)), in_memory)):
        repeated.add(entries)
    return repeated.compare(files, repeated.ids(files, {}))


def sorted_entries(files: Sequence[tuple[int, IdFile]], in_memory: int) -> Iterator[Entries]:
    """The entries of files in hash order, in batches of up to ``in_memory``.

    All entries of a hash are in one batch, unless they alone fill more than one.

    Args:
        files: each with the number that its entries get.
    """
    total = sum(file.rows for _, file in files)
    yield from _sort(_entries(files), total, in_memory, (0, (1 << 64) - 1))


def _entries(files: Iterable[tuple[int, IdFile]]) -> Iterator[Entries]:
    for number, file in files:
        row = 0
        for ids in _ids(file):
            entries = np.empty(len(ids), ENTRY)
            entries["hash"], entries["file"] = hashes(ids), number
            entries["row"] = np.arange(row, row + len(ids))
            row += len(ids)
            yield entries


def _ids(file: IdFile) -> Iterator[pa.Array]:
    if not file.rows:
        return
    with open_stored(file.uri, "codes") as opened:
        for batch in opened.iter_batches(batch_size=BATCH, columns=["id"]):
            yield batch.column(0)


def _sort(
    batches: Iterable[Entries], total: int, in_memory: int, hash_range: tuple[int, int]
) -> Iterator[Entries]:
    """Entries whose hashes lie in a range (both ends included), sorted by hash."""
    if total <= in_memory + in_memory // 4:  # partitions are not quite of one size
        entries = list(batches)
        if entries:
            yield by_hash(entries[0] if len(entries) == 1 else np.concatenate(entries))
        return
    low, high = hash_range
    if low == high:  # one hash fills more than memory
        yield from batches
        return
    with ExitStack() as stack:
        count = min(-(-total // in_memory), _MAX_PARTITIONS)
        for partition in _partitions(batches, count, hash_range, stack):
            if partition.entries:
                fits = partition.entries <= in_memory + in_memory // 4
                batch = partition.entries if fits else BATCH
                yield from _sort(
                    partition.read(batch), partition.entries, in_memory, partition.hash_range
                )


@dataclass(kw_only=True)
class _Partition:
    """The entries of a range of hashes, in a temporary file."""

    file: IO[bytes]
    entries: int = 0
    low: int = (1 << 64) - 1
    high: int = 0

    @property
    def hash_range(self) -> tuple[int, int]:
        return self.low, self.high

    def add(self, entries: Entries) -> None:
        with write_errors(_temporary_files()):
            self.file.write(entries.tobytes())
        self.entries += len(entries)
        self.low = min(self.low, int(entries["hash"].min()))
        self.high = max(self.high, int(entries["hash"].max()))

    def read(self, batch: int) -> Iterator[Entries]:
        """The entries, ``batch`` at a time; closes the file."""
        self.file.seek(0)
        size = batch * ENTRY.itemsize
        while len(entries := np.frombuffer(self.file.read(size), ENTRY)):
            yield entries
        self.file.close()


def _partitions(
    batches: Iterable[Entries], count: int, hash_range: tuple[int, int], stack: ExitStack
) -> list[_Partition]:
    """All entries, partitioned into ranges of hashes of equal width."""
    with write_errors(_temporary_files()):
        partitions = [
            _Partition(file=stack.enter_context(tempfile.TemporaryFile(prefix="raypq-ids-")))  # noqa: SIM115
            for _ in range(count)
        ]
    low, high = hash_range
    width = np.uint64((high - low) // count + 1)
    for batch in batches:
        number = (batch["hash"] - np.uint64(low)) // width
        order = np.argsort(number, kind="stable")
        bounds = np.searchsorted(number[order], np.arange(count + 1).astype(np.uint64))
        for partition, (start, stop) in zip(partitions, itertools.pairwise(bounds), strict=True):
            if stop > start:
                partition.add(batch[order[start:stop]])
    with write_errors(_temporary_files()):
        for partition in partitions:
            partition.file.flush()
    return partitions


def _temporary_files() -> str:
    """The place of temporary files, for errors."""
    return f"temporary files in {tempfile.gettempdir()} (TMPDIR sets the folder)"


def by_hash(entries: Entries) -> Entries:
    """Entries in hash order."""
    return entries[np.argsort(entries["hash"])]  # sorting whole entries takes four times as long


def merge_sorted(streams: Iterable[Iterator[Entries]]) -> Iterator[Entries]:
    """Merges streams that are each in hash order."""
    heads = [(entries, stream) for stream in streams if (entries := _next(stream)) is not None]
    while heads:
        end = min(entries["hash"][-1] for entries, _ in heads)
        ready, later = [], []
        for entries, stream in heads:
            cut = int(np.searchsorted(entries["hash"], end, side="right"))
            ready.append(entries[:cut])
            rest = entries[cut:] if cut < len(entries) else _next(stream)
            if rest is not None:
                later.append((rest, stream))
        heads = later
        ready = [entries for entries in ready if len(entries)]
        yield ready[0] if len(ready) == 1 else by_hash(np.concatenate(ready))


def _next(stream: Iterator[Entries]) -> Entries | None:
    """The next entries that are not empty."""
    return next((entries for entries in stream if len(entries)), None)


def repeated_hashes(stream: Iterable[Entries]) -> Iterator[Entries]:
    """The entries that share their hash with another one, from entries in hash order."""
    last, last_repeats = np.empty(0, ENTRY), False  # the last entry is decided by its successor
    for batch in stream:
        for start in range(0, len(batch), BATCH):
            entries = np.concatenate([last, batch[start : start + BATCH]])
            equal = entries["hash"][1:] == entries["hash"][:-1]
            repeats = np.zeros(len(entries), np.bool_)
            repeats[1:] |= equal
            repeats[:-1] |= equal
            repeats[0] |= last_repeats
            if repeats[:-1].any():
                yield entries[:-1][repeats[:-1]]
            last, last_repeats = entries[-1:], bool(repeats[-1])
    if last_repeats:
        yield last


@dataclass(kw_only=True, eq=False)
class RepeatedHashes:
    """Entries that share their hash with another one: their number, and the first of them.

    Attributes:
        entries: total number. distinct: different hashes among them.
        first: up to ``COMPARED`` entries, the first by hash, file and row.
    """

    entries: int = 0
    distinct: int = 0
    first: Entries = field(default_factory=lambda: np.empty(0, ENTRY))
    _last: int | None = None

    def add(self, entries: Entries) -> None:
        """Adds the next entries in hash order."""
        hash_of = entries["hash"]
        changes = int((hash_of[1:] != hash_of[:-1]).sum())
        self.distinct += 1 + changes - (int(hash_of[0]) == self._last)
        self._last = int(hash_of[-1])
        self.entries += len(entries)
        if len(self.first) < COMPARED or int(self.first["hash"][-1]) == int(hash_of[0]):
            both = np.concatenate([self.first, entries])
            self.first = np.sort(both, order=("hash", "file", "row"))[:COMPARED]

    def compare(self, files: Sequence[IdFile], ids: Mapping[RowRef, Any]) -> DuplicateIds | None:
        """The duplicate ids: rows whose ids are equal, not just their hashes; None if none are.

        Args:
            files: by the numbers that the entries have.
            ids: of the first entries (``ids``).
        """
        rows_of: dict[Any, list[RowRef]] = {}
        for row, value in ids.items():
            rows_of.setdefault(value, []).append(row)
        duplicates = {value: sorted(rows) for value, rows in rows_of.items() if len(rows) > 1}
        if not duplicates:
            return None
        extra = self.entries - self.distinct
        if self.entries == len(self.first):  # all were compared, so collisions do not count
            extra = sum(len(rows) - 1 for rows in duplicates.values())
        shown = sorted(duplicates.items(), key=lambda item: item[1])[:_EXAMPLES]
        return DuplicateIds(
            rows=extra,
            examples=[
                DuplicateId(
                    id=str(value),
                    rows=[f"{files[file].name}, row {row}" for file, row in rows[:_EXAMPLES]],
                )
                for value, rows in shown
            ],
        )

    def ids(self, files: Sequence[IdFile], known: Mapping[RowRef, Any]) -> dict[RowRef, Any]:
        """The ids of the first entries; those that are not known are read from their files.

        Args:
            files: by the numbers that the entries have.
            known: ids by file and row that need not be read.
        """
        rows = zip(self.first["file"].tolist(), self.first["row"].tolist(), strict=True)
        ids = {row: known.get(row) for row in rows}
        unread = sorted(row for row, value in ids.items() if value is None)
        for number, group in itertools.groupby(unread, key=lambda row: row[0]):
            rows_of_file, start = np.array([row for _, row in group]), 0
            for batch in _ids(files[number]):
                inside = (rows_of_file >= start) & (rows_of_file < start + len(batch))
                chosen = rows_of_file[inside]
                values = batch.take(pa.array(chosen - start)).to_pylist() if len(chosen) else []
                ids |= {
                    (number, int(row)): value for row, value in zip(chosen, values, strict=True)
                }
                start += len(batch)
        return ids


def hashes(ids: pa.Array) -> NDArray[np.uint64]:
    """64-bit hashes [n] of int64 or string ids, the same on every machine.

    A string's is a polynomial in its bytes, mod 2⁶⁴.
    """
    if pa.types.is_int64(ids.type):
        return _mix(ids.to_numpy().astype(np.uint64))
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    lengths = np.diff(offsets)
    data = ids.buffers()[2]
    if data is None or not lengths.any():
        return _mix(np.zeros(len(ids), np.uint64))
    values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64)
    position = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    powers = np.ones(int(lengths.max()), np.uint64)
    powers[1:] = np.uint64(_PRIME)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum((values + np.uint64(1)) * np.cumprod(powers)[position], out=sums[1:])
    ends = offsets - offsets[0]
    return _mix(sums[ends[1:]] - sums[ends[:-1]])


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
