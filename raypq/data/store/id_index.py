"""An index of the ids of a code store, which grows by what changed.

A new version looks its new ids up here, instead of reading the ids of every code file. What it
finds is exactly what ``find_duplicates`` finds in all files of the version. Two kinds of sidecars:

* *runs* (``ids``): the hash, file and row of every id of some code files, in order of the hash. A
  night adds one run for its new files. Runs are merged so that each is at least twice as large as
  the next one, and entries of files that no longer belong to the store go on the way: there are
  few runs, and an entry is rewritten few times. Only row groups that may hold a hash are read.
* *the repeated* (``repeated``): of the version itself, the entries whose hash is there more than
  once; the files that this is true of; and the ids of the first entries, so that they need not be
  read from their files again.

A file is named by the hash of its path: files of a store never change, and no path is used twice.
Where a sidecar is missing or damaged, all ids are read again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq import console
from raypq.data import json_text
from raypq.data.arrays import strings
from raypq.data.duplicate_ids import (
    ENTRY,
    IN_MEMORY,
    PIECE,
    Duplicates,
    Entries,
    IdFile,
    Place,
    RepeatedHashes,
    merged,
    repeated,
    sorted_entries,
)
from raypq.data.storage import delete, join, open_parquet
from raypq.data.store import sidecars
from raypq.data.store.sidecars import Draft, Sidecar, Sidecars
from raypq.errors import InputError

RUNS, REPEATED = "ids", "repeated"
_FORMAT = b"1"  # of the files, and of the hash
_BLOCK, _BLOCKS = 1 << 20, 4  # of an object: there may be thirty runs, and each is kept open
_KEY = 16  # bytes that name a file
_COLUMNS = [
    pa.field("hash", pa.uint64(), nullable=False),
    pa.field("file", pa.uint32(), nullable=False),
    pa.field("row", pa.uint32(), nullable=False),
]
_ID = pa.field("id", pa.string())  # as JSON, so that 7 and "7" differ
_OPTIONS: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "column_encoding": {field.name: "DELTA_BINARY_PACKED" for field in _COLUMNS},
    "write_page_checksum": True,
}

Numbers = NDArray[np.int64]
Accept = Callable[[Duplicates | None], None]


class _UnusableError(Exception):
    """A sidecar that cannot be used; the index is made anew."""


def update(
    store: str,
    files: Sequence[IdFile],
    before: Sidecars,
    *,
    accept: Accept = lambda _: None,
    in_memory: int = IN_MEMORY,
    group: int = PIECE,
) -> tuple[Duplicates | None, dict[str, list[Sidecar]]]:
    """Ids that these files hold more than once, and the sidecars of a version of these files.

    Args:
        files: all code files of the version to be made, by ``path`` below the store.
        before: the sidecars of the version before, if any.
        accept: called with what was found before any sidecar has its name; may raise.
        in_memory: entries of 16 bytes to hold and sort at once.
        group: entries of a row group, which is the least that is read of a run.
    """
    try:
        return _Update(store, files, before, in_memory, group).run(accept)
    except _UnusableError as error:
        console.warn(f"the index of ids cannot be used, so all ids are read again: {error}")
    return _Update(store, files, {}, in_memory, group).run(accept)


class _Update:
    """One step from a version's index to the next one's."""

    def __init__(
        self,
        store: str,
        files: Sequence[IdFile],
        before: Sidecars,
        in_memory: int,
        group: int,
    ) -> None:
        self._store, self._files = store, files
        self._in_memory, self._group = in_memory, group
        self._keys = [_key(file.path) for file in files]
        self._number = {key: number for number, key in enumerate(self._keys)}
        self._state: _State | None = None
        self._runs: list[_Run] = []
        if before.get(REPEATED):
            self._state = _State.open(store, before[REPEATED][0])
            self._runs = [_Run.open(store, sidecar) for sidecar in before.get(RUNS, ())]
        self._fresh = self._place_runs(set(self._state.keys) if self._state else set())

    def _place_runs(self, known: set[bytes]) -> list[int]:
        """Gives the runs the numbers of the files that they speak for; returns the other files.

        A file is known where the state before was about it. Of several runs that hold it the
        newest speaks for it (it left the store for a while, and came back).
        """
        missing = {key for key in self._number if self._files[self._number[key]].rows}
        for run in reversed(self._runs):
            mine = missing & known & set(run.keys)
            run.numbers = np.array(
                [self._number[key] if key in mine else -1 for key in run.keys], np.int64
            )
            missing -= mine
        self._runs = [run for run in self._runs if (run.numbers >= 0).any()]
        return sorted(self._number[key] for key in missing)

    def run(self, accept: Accept) -> tuple[Duplicates | None, dict[str, list[Sidecar]]]:
        found = RepeatedHashes()
        with ExitStack() as stack:
            state = stack.enter_context(_StateWriter.create(self._store, self._keys, self._group))
            run = None
            if self._fresh:
                keys = [self._keys[number] for number in self._fresh]
                run = stack.enter_context(_RunWriter.create(self._store, keys, self._group))
            for entries in repeated(self._entries(run)):
                found.add(entries)
                state.add(entries)
            ids = found.ids(self._files, self._state.ids(self._number) if self._state else {})
            duplicates = found.compare(self._files, ids)
            state.add_ids(found.first, ids)
            accept(duplicates)
        if run is not None:
            made = _Run.open(self._store, run.draft.sidecar())
            made.numbers, made.fresh = np.array(self._fresh, np.int64), True
            self._runs.append(made)
        runs = self._tidied()
        return duplicates, {
            REPEATED: [state.draft.sidecar()],
            RUNS: [one.sidecar for one in runs],
        }

    def _entries(self, run: _RunWriter | None) -> Iterator[Entries]:
        """All entries whose hash may be there more than once, in order of the hash."""
        before = _Ahead(self._state.entries(self._number) if self._state else iter(()))
        place = np.zeros(len(self._files), np.uint32)
        place[self._fresh] = np.arange(len(self._fresh))
        fresh = [(number, self._files[number]) for number in self._fresh]
        done: np.uint64 | None = None
        for entries in sorted_entries(fresh, self._in_memory):
            assert run is not None, "there are files to be indexed"
            for piece in _pieces(entries):
                run.add(piece, place[piece["file"]])
            wanted = _distinct(entries["hash"])
            if wanted[0] == done:  # one hash that fills several pieces
                wanted = wanted[1:]
            done = entries["hash"][-1]
            others = [one.matching(wanted) for one in self._runs]
            # Of a new hash the runs tell every old entry, those that were repeated before too.
            yield from merged([_pieces(entries), before.up_to(done, without=wanted), *others])
        yield from before.up_to(None, without=np.empty(0, np.uint64))

    def _tidied(self) -> list[_Run]:
        """The runs to be named: the last ones merged, or all where half of it is stale."""
        runs = self._runs
        sizes = [run.entries for run in runs]
        alive = sum(file.rows for file in self._files)
        few, total = 1, sum(sizes[-1:])
        if sum(sizes) > 2 * alive + self._group:  # little is not worth it
            few = len(runs)
        else:
            while few < len(runs) and sizes[-few - 1] < 2 * total:
                total += sizes[-few - 1]
                few += 1
            if few == 1:
                return runs
        merging = runs[len(runs) - few :]
        keys = [key for run in merging for key in run.living]
        place = np.zeros(len(self._files), np.uint32)
        place[[self._number[key] for key in keys]] = np.arange(len(keys))
        with _RunWriter.create(self._store, keys, self._group) as writer:
            for entries in merged([run.all() for run in merging]):
                for piece in _pieces(entries):
                    writer.add(piece, place[piece["file"]])
        for run in merging:
            if run.fresh:  # and no version will name it
                delete(run.uri)
        return [*runs[: len(runs) - few], _Run.open(self._store, writer.draft.sidecar())]


@dataclass(kw_only=True, eq=False)
class _Run:
    """A run of entries as it is stored.

    Attributes:
        keys: names of its files. numbers: their numbers among the files of the version, −1 where
            it does not speak for them. low, high: first and last hash of each row group.
        fresh: made in this run; no version names it yet.
    """

    sidecar: Sidecar
    uri: str
    keys: list[bytes]
    entries: int
    low: NDArray[np.uint64]
    high: NDArray[np.uint64]
    numbers: Numbers
    fresh: bool = False

    @classmethod
    def open(cls, store: str, sidecar: Sidecar) -> _Run:
        with _opened(store, sidecar) as file:
            keys = _keys_of(file)
            footer = file.metadata
            if footer.num_rows != sidecar.about.get("entries"):
                raise InputError(
                    join(store, sidecar.path),
                    expected=f"{sidecar.about.get('entries')} entries",
                    found=str(footer.num_rows),
                )
            groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
            bounds = [group.column(0).statistics for group in groups]
            if any(bound is None or not bound.has_min_max for bound in bounds):
                raise InputError(
                    join(store, sidecar.path), expected="statistics of hashes", found="none"
                )
            return cls(
                sidecar=sidecar,
                uri=join(store, sidecar.path),
                keys=keys,
                entries=footer.num_rows,
                low=np.array([bound.min for bound in bounds], np.uint64),
                high=np.array([bound.max for bound in bounds], np.uint64),
                numbers=np.full(len(keys), -1, np.int64),
            )

    @property
    def living(self) -> list[bytes]:
        """Names of the files that it speaks for."""
        return [key for key, number in zip(self.keys, self.numbers, strict=True) if number >= 0]

    def all(self) -> Iterator[Entries]:
        """Its entries of files of the version."""
        with _opened_at(self.uri, self.sidecar) as file:
            order = _Order(self.uri)
            for batch in file.iter_batches(batch_size=PIECE, columns=["hash", "file", "row"]):
                order.check(_column(batch, 0))
                yield self._numbered(_entries_of(batch))

    def matching(self, wanted: NDArray[np.uint64]) -> Iterator[Entries]:
        """Its entries of files of the version whose hash is among ``wanted``, which ascends."""
        first = np.searchsorted(wanted, self.low, side="left")
        last = np.searchsorted(wanted, self.high, side="right")
        groups = np.flatnonzero(last > first)
        if not len(groups):
            return
        held: list[Entries] = []
        with _opened_at(self.uri, self.sidecar) as file:
            for group in groups.tolist():
                some = wanted[first[group] : last[group]]
                found = _column(file.read_row_group(group, columns=["hash"]), 0)
                _Order(self.uri).check(found)
                hit = np.flatnonzero(_among(found, some))
                if len(hit):
                    whole = file.read_row_group(group, columns=["hash", "file", "row"])
                    held.append(self._numbered(_entries_of(whole.take(pa.array(hit)))))
                if sum(len(entries) for entries in held) >= PIECE:
                    yield np.concatenate(held)
                    held = []
        if held:
            yield np.concatenate(held)

    def _numbered(self, entries: Entries) -> Entries:
        return _numbered(entries, self.numbers, self.uri)


@dataclass(kw_only=True, eq=False)
class _State:
    """What a version knew: its files (``keys``), its repeated hashes, and ids of some of them."""

    sidecar: Sidecar
    uri: str
    keys: list[bytes]

    @classmethod
    def open(cls, store: str, sidecar: Sidecar) -> _State:
        with _opened(store, sidecar) as file:
            return cls(sidecar=sidecar, uri=join(store, sidecar.path), keys=_keys_of(file))

    def _numbers(self, number: Mapping[bytes, int]) -> Numbers:
        return np.array([number.get(key, -1) for key in self.keys], np.int64)

    def entries(self, number: Mapping[bytes, int]) -> Iterator[Entries]:
        """Repeated entries of files that are still there, by their new numbers."""
        numbers, order = self._numbers(number), _Order(self.uri)
        for batch in self._batches():
            some = batch.filter(batch.column(3).is_null())
            order.check(_column(some, 0))
            yield _numbered(_entries_of(some), numbers, self.uri)

    def ids(self, number: Mapping[bytes, int]) -> dict[Place, Any]:
        """Ids by file and row, of files that are still there."""
        numbers, ids = self._numbers(number), {}
        for batch in self._batches():
            some = batch.filter(batch.column(3).is_valid())
            if not len(some):
                continue
            names = strings(some.column(3), where=self.uri, nulls=False).to_pylist()
            for entry, name in zip(_entries_of(some), names, strict=True):
                at = numbers[_checked(int(entry["file"]), numbers, self.uri)]
                if at >= 0:
                    ids[int(at), int(entry["row"])] = _value(name, self.uri)
        return ids

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with _opened_at(self.uri, self.sidecar) as file:
            yield from file.iter_batches(batch_size=PIECE, columns=["hash", "file", "row", "id"])


class _Writer:
    """Writes entries to a sidecar."""

    kind = RUNS
    columns: Sequence[pa.Field] = _COLUMNS

    def __init__(self, draft: Draft, writer: pq.ParquetWriter, group: int) -> None:
        self.draft, self._writer, self._group = draft, writer, group
        self._held: list[Entries] = []
        self._entries = 0

    @classmethod
    @contextmanager
    def create(cls, store: str, keys: Sequence[bytes], group: int) -> Iterator[Any]:
        """A writer of entries; its sidecar has its name when the context ends well."""
        noted = {b"raypq.format": _FORMAT, b"raypq.files": base64.b64encode(b"".join(keys))}
        schema = pa.schema(cls.columns, metadata=noted)
        with (
            sidecars.writing(store, cls.kind, "parquet") as draft,
            pq.ParquetWriter(draft.file, schema, **_OPTIONS) as writer,
        ):
            made = cls(draft, writer, group)
            yield made
            made.close()

    def add(self, entries: Entries, files: NDArray[np.uint32]) -> None:
        """Adds entries, which are of these files by the numbers of this sidecar."""
        mine = entries.copy()
        mine["file"] = files
        self._held.append(mine)
        self._entries += len(mine)
        if sum(len(part) for part in self._held) >= self._group:
            self._write(final=False)

    def close(self) -> None:
        """Writes what is left."""
        self._write(final=True)
        self.draft.about["entries"] = self._entries

    def _write(self, *, final: bool) -> None:
        if not self._held:
            return
        ready = np.concatenate(self._held)
        whole = len(ready) if final else len(ready) // self._group * self._group
        self._held = [ready[whole:]] if whole < len(ready) else []
        if whole:
            self._put(ready[:whole])

    def _put(self, entries: Entries, ids: pa.Array | None = None) -> None:
        columns = [pa.array(np.ascontiguousarray(entries[name])) for name in ENTRY.names or ()]
        if len(self.columns) > len(columns):
            columns.append(ids if ids is not None else pa.nulls(len(entries), _ID.type))
        table = pa.Table.from_arrays(columns, schema=pa.schema(self.columns))
        self._writer.write_table(table, self._group)


class _RunWriter(_Writer):
    """Writes a run."""


class _StateWriter(_Writer):
    """Writes the repeated of a version; its files have the numbers that they have there."""

    kind = REPEATED
    columns = (*_COLUMNS, _ID)

    def add(self, entries: Entries, files: NDArray[np.uint32] | None = None) -> None:
        super().add(entries, entries["file"] if files is None else files)

    def add_ids(self, entries: Entries, ids: Mapping[Place, Any]) -> None:
        """Notes the ids of some entries, behind all entries."""
        self._write(final=True)
        if len(entries):
            places = zip(entries["file"].tolist(), entries["row"].tolist(), strict=True)
            names = [json.dumps(ids[place]) for place in places]
            self._put(entries, pa.array(names, pa.string()))


class _Ahead:
    """A stream of entries, taken up to a hash at a time."""

    def __init__(self, stream: Iterator[Entries]) -> None:
        self._stream, self._held = stream, np.empty(0, ENTRY)

    def up_to(self, last: np.uint64 | None, *, without: NDArray[np.uint64]) -> Iterator[Entries]:
        """The next entries, up to this hash (all: None), without those of some hashes."""
        while True:
            held, cut = self._held, len(self._held)
            if last is not None:
                cut = int(np.searchsorted(held["hash"], last, side="right"))
            if cut:
                yield held[:cut][~_among(held["hash"][:cut], without)]
            self._held = held[cut:]
            if len(self._held):
                return
            more = next(self._stream, None)
            if more is None:
                return
            self._held = more


@dataclass
class _Order:
    """Makes sure that hashes ascend from batch to batch."""

    uri: str
    last: int = 0

    def check(self, found: NDArray[np.uint64]) -> None:
        if not len(found):
            return
        if int(found[0]) < self.last or bool((found[1:] < found[:-1]).any()):
            raise _UnusableError(f"{self.uri}: expected hashes in order, found others")
        self.last = int(found[-1])


@contextmanager
def _opened(store: str, sidecar: Sidecar) -> Iterator[pq.ParquetFile]:
    with _opened_at(join(store, sidecar.path), sidecar) as file:
        yield file


@contextmanager
def _opened_at(uri: str, sidecar: Sidecar) -> Iterator[pq.ParquetFile]:
    try:
        with open_parquet(uri, size=sidecar.bytes, block=_BLOCK, blocks=_BLOCKS) as file:
            columns = {field.name: field.type for field in file.schema_arrow}
            wanted = {field.name: field.type for field in _COLUMNS}
            if not wanted.items() <= columns.items():
                raise InputError(uri, expected="entries of an index of ids", found=str(columns))
            yield file
    except InputError as error:
        raise _UnusableError(str(error)) from None


def _keys_of(file: pq.ParquetFile) -> list[bytes]:
    noted = file.schema_arrow.metadata or {}
    if noted.get(b"raypq.format") != _FORMAT:
        raise _UnusableError(f"format {noted.get(b'raypq.format')!r}")
    try:
        found = base64.b64decode(noted.get(b"raypq.files", b""), validate=True)
    except binascii.Error as error:
        raise _UnusableError(f"files: {error}") from None
    return [found[start : start + _KEY] for start in range(0, len(found), _KEY)]


def _key(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest()[:_KEY]


def _column(batch: pa.RecordBatch | pa.Table, index: int) -> NDArray[Any]:
    column = batch.column(index)
    return np.asarray(column.to_numpy())


def _entries_of(batch: pa.RecordBatch | pa.Table) -> Entries:
    entries = np.empty(len(batch), ENTRY)
    for index, name in enumerate(ENTRY.names or ()):
        entries[name] = _column(batch, index)
    return entries


def _numbered(entries: Entries, numbers: Numbers, uri: str) -> Entries:
    """Entries by the numbers that their files have now, without those of files that went."""
    if len(entries):
        _checked(int(entries["file"].max()), numbers, uri)
    found = numbers[entries["file"]]
    living = found >= 0
    entries, found = entries[living], found[living]
    entries["file"] = found
    return entries


def _checked(file: int, numbers: Numbers, uri: str) -> int:
    if file >= len(numbers):
        raise _UnusableError(f"{uri}: expected {len(numbers)} files, found number {file}")
    return file


def _value(name: str, uri: str) -> Any:
    try:
        return json_text.parse(name)
    except ValueError as error:
        raise _UnusableError(f"{uri}: {error}") from None


def _pieces(entries: Entries) -> Iterator[Entries]:
    for start in range(0, len(entries), PIECE):
        yield entries[start : start + PIECE]


def _among(found: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which hashes are among others, which ascend."""
    if not len(ordered):
        return np.zeros(len(found), np.bool_)
    place = np.minimum(np.searchsorted(ordered, found), len(ordered) - 1)
    return np.asarray(ordered[place] == found)


def _distinct(ordered: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Different values of hashes in order."""
    new = np.ones(len(ordered), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new]
