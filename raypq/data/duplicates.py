"""Ids that a store holds more than once, found in bounded memory.

Every id is hashed to 64 bits. Hashes are sorted a part at a time; parts that memory cannot hold
together wait in temporary files. Equal hashes are then compared as ids, so a collision is never
reported. 16 bytes an image: 128 MiB of memory, and 16 GB of temporary disk for 10⁹ images.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.storage import open_parquet

_IN_MEMORY = 4 << 20  # entries of 16 bytes that are sorted at once, beside 16 more each
_COMPARED = 10_000  # rows whose ids are compared; beyond that a collision changes nothing
_SHOWN = 5
_BATCH = 65_536  # ids
_ENTRY = np.dtype([("hash", "<u8"), ("file", "<u4"), ("row", "<u4")])
_PRIME = 0x100000001B3  # odd, so that powers of it keep all 64 bits apart

Entries = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class IdFile:
    """A file with a column ``id``, and what its rows are called in messages."""

    uri: str
    name: str
    rows: int


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


def find_duplicates(files: Sequence[IdFile], *, in_memory: int = _IN_MEMORY) -> Duplicates | None:
    """Looks through the ids of all files; None where each is there once.

    Args:
        in_memory: entries of 16 bytes to hold and sort at once.
    """
    total = sum(file.rows for file in files)
    parts = max(1, -(-total // in_memory))
    repeated: list[Entries] = []
    with ExitStack() as stack:
        for part in _parts(_entries(files), parts, stack):
            order = np.argsort(part["hash"])  # of numbers: entries take four times as long
            ordered = part["hash"][order]
            same = ordered[1:] == ordered[:-1]
            if not same.any():
                continue
            member = np.zeros(len(part), np.bool_)
            member[1:] |= same
            member[:-1] |= same
            repeated.append(np.sort(part[order[member]], order=("hash", "file", "row")))
    return _compare(files, np.concatenate(repeated)) if repeated else None


def _entries(files: Sequence[IdFile]) -> Iterator[Entries]:
    for number, file in enumerate(files):
        row = 0
        for ids in _ids(file):
            found = np.empty(len(ids), _ENTRY)
            found["hash"], found["file"] = hashes(ids), number
            found["row"] = np.arange(row, row + len(ids))
            row += len(ids)
            yield found


def _ids(file: IdFile) -> Iterator[pa.Array]:
    with open_parquet(file.uri) as opened:
        for batch in opened.iter_batches(batch_size=_BATCH, columns=["id"]):
            yield batch.column(0)


def _parts(batches: Iterable[Entries], parts: int, stack: ExitStack) -> Iterator[Entries]:
    """All entries, split by the first bits of their hashes."""
    if parts == 1:
        found = list(batches)
        if found:
            yield np.concatenate(found)
        return
    spill: list[IO[bytes]] = [
        stack.enter_context(tempfile.TemporaryFile(prefix="raypq-ids-"))  # noqa: SIM115
        for _ in range(parts)
    ]
    for batch in batches:
        place = (batch["hash"] >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)
        order = np.argsort(place, kind="stable")
        ends = np.searchsorted(place[order], np.arange(parts + 1))
        for part, (low, high) in enumerate(itertools.pairwise(ends)):
            if high > low:
                spill[part].write(batch[order[low:high]].tobytes())
    for file in spill:
        file.seek(0)
        yield np.frombuffer(file.read(), _ENTRY).copy()


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


def _compare(files: Sequence[IdFile], found: Entries) -> Duplicates | None:
    """Reads the ids behind equal hashes (the first of them, where there are very many)."""
    groups = np.concatenate([[0], np.flatnonzero(np.diff(found["hash"])) + 1, [len(found)]])
    extra = len(found) - (len(groups) - 1)
    cut = int(np.searchsorted(groups, _COMPARED))
    compared = found[: groups[min(cut, len(groups) - 1)]]
    ids: dict[tuple[int, int], Any] = {}
    for number in np.unique(compared["file"]):
        wanted, row = np.sort(compared["row"][compared["file"] == number]), 0
        for batch in _ids(files[number]):
            here = wanted[(wanted >= row) & (wanted < row + len(batch))]
            if len(here):
                values = batch.take(pa.array(here - row)).to_pylist()
                ids |= {
                    (int(number), int(at)): value for at, value in zip(here, values, strict=True)
                }
            row += len(batch)
    by_id: dict[Any, list[tuple[int, int]]] = {}
    for place, value in ids.items():
        by_id.setdefault(value, []).append(place)
    real = {value: sorted(places) for value, places in by_id.items() if len(places) > 1}
    if not real:
        return None
    if len(compared) == len(found):
        extra = sum(len(places) - 1 for places in real.values())
    first = sorted(real.items(), key=lambda item: item[1])[:_SHOWN]
    return Duplicates(
        rows=extra,
        examples=[
            Repeated(
                id=str(value),
                rows=[f"{files[file].name}, row {row}" for file, row in places[:_SHOWN]],
            )
            for value, places in first
        ],
    )
