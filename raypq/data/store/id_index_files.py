"""The sidecar files of the id index: sorted runs, and the table of repeated hashes.

Both are Parquet files of entries (hash, file, row) in hash order. A file of the store is named by
a key, the hash of its path below the store, and entries refer to it by its number among the keys
of the sidecar. When a sidecar is opened for a version, its numbers are translated to those of the
version's files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq.data.duplicate_ids import BATCH, ENTRY, Entries, RowRef
from raypq.data.storage import join, json_text, open_parquet
from raypq.data.store import sidecars
from raypq.data.store.sidecars import Draft, Sidecar
from raypq.data.texts import strings
from raypq.errors import InputError

RUNS, REPEATED = "ids", "repeated"  # kinds of sidecars
_FORMAT = b"1"  # of the files, and of the hash
_BLOCK, _BLOCKS = 1 << 20, 4  # cache of an object: thirty runs may be open at a time
_KEY_BYTES = 16
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

FileNumbers = NDArray[np.int64]  # by number in a sidecar: number in the version, −1 where absent


class UnusableIndexError(Exception):
    """A sidecar of the index cannot be used; the index must be made anew."""


def file_key(path: str) -> bytes:
    """The name of a file in the index: a hash of its path below the store."""
    return hashlib.sha256(path.encode()).digest()[:_KEY_BYTES]


@dataclass(kw_only=True, eq=False)
class SortedRun:
    """A stored run: the entries of all ids of some code files.

    Attributes:
        keys: of its files.
        file_numbers: of its files in the version; −1 for a file that another run covers, or that
            left the store.
        low, high: first and last hash of each row group.
        unpublished: made by this update, so that no version names it yet.
    """

    sidecar: Sidecar
    uri: str
    keys: list[bytes]
    entries: int
    low: NDArray[np.uint64]
    high: NDArray[np.uint64]
    file_numbers: FileNumbers
    unpublished: bool = False

    @classmethod
    def open(cls, store: str, sidecar: Sidecar) -> SortedRun:
        """Reads the footer.

        Raises:
            UnusableIndexError: the file is missing, damaged or of another format.
        """
        uri = join(store, sidecar.path)
        with _opened(uri, sidecar) as file:
            footer = file.metadata
            if footer.num_rows != sidecar.about.get("entries"):
                raise InputError(
                    uri,
                    expected=f"{sidecar.about.get('entries')} entries",
                    found=str(footer.num_rows),
                )
            groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
            bounds = [group.column(0).statistics for group in groups]
            if any(bound is None or not bound.has_min_max for bound in bounds):
                raise InputError(uri, expected="statistics of hashes", found="none")
            keys = _keys(file)
            return cls(
                sidecar=sidecar,
                uri=uri,
                keys=keys,
                entries=footer.num_rows,
                low=np.array([bound.min for bound in bounds], np.uint64),
                high=np.array([bound.max for bound in bounds], np.uint64),
                file_numbers=np.full(len(keys), -1, np.int64),
            )

    @property
    def covered_keys(self) -> list[bytes]:
        """Keys of the files of the version whose ids this run holds."""
        return [
            key for key, number in zip(self.keys, self.file_numbers, strict=True) if number >= 0
        ]

    def all_entries(self) -> Iterator[Entries]:
        """The entries of files of the version.

        Raises:
            UnusableIndexError: the file is damaged.
        """
        with _opened(self.uri, self.sidecar) as file:
            order = _OrderCheck(self.uri)
            for batch in file.iter_batches(batch_size=BATCH, columns=["hash", "file", "row"]):
                order.check(_column(batch, 0))
                yield _renumbered(_entries(batch), self.file_numbers, self.uri)

    def matching(self, hashes: NDArray[np.uint64]) -> Iterator[Entries]:
        """The entries of files of the version that have one of these hashes [n], which ascend.

        Only row groups that may hold one are read.

        Raises:
            UnusableIndexError: the file is damaged.
        """
        first = np.searchsorted(hashes, self.low, side="left")
        last = np.searchsorted(hashes, self.high, side="right")
        groups = np.flatnonzero(last > first)
        if not len(groups):
            return
        pending: list[Entries] = []
        with _opened(self.uri, self.sidecar) as file:
            for group in groups.tolist():
                group_hashes = _column(file.read_row_group(group, columns=["hash"]), 0)
                _OrderCheck(self.uri).check(group_hashes)
                match = np.flatnonzero(
                    is_in_sorted(group_hashes, hashes[first[group] : last[group]])
                )
                if len(match):
                    table = file.read_row_group(group, columns=["hash", "file", "row"])
                    entries = _entries(table.take(pa.array(match)))
                    pending.append(_renumbered(entries, self.file_numbers, self.uri))
                if sum(len(entries) for entries in pending) >= BATCH:
                    yield np.concatenate(pending)
                    pending = []
        if pending:
            yield np.concatenate(pending)


@dataclass(kw_only=True, eq=False)
class RepeatedTable:
    """The stored table of a version: its files, its repeated hashes, and the ids of some rows.

    Attributes:
        keys: of all files of the version.
    """

    sidecar: Sidecar
    uri: str
    keys: list[bytes]

    @classmethod
    def open(cls, store: str, sidecar: Sidecar) -> RepeatedTable:
        """Reads the footer.

        Raises:
            UnusableIndexError: the file is missing, damaged or of another format.
        """
        uri = join(store, sidecar.path)
        with _opened(uri, sidecar) as file:
            return cls(sidecar=sidecar, uri=uri, keys=_keys(file))

    def entries(self, number_of: Mapping[bytes, int]) -> Iterator[Entries]:
        """The repeated entries of files that are in the new version.

        Args:
            number_of: numbers of the new version's files, by key.
        """
        numbers, order = self._file_numbers(number_of), _OrderCheck(self.uri)
        for batch in self._batches():
            rows = batch.filter(batch.column(3).is_null())
            order.check(_column(rows, 0))
            yield _renumbered(_entries(rows), numbers, self.uri)

    def ids(self, number_of: Mapping[bytes, int]) -> dict[RowRef, Any]:
        """The stored ids, by file and row, of files that are in the new version."""
        numbers, ids = self._file_numbers(number_of), {}
        for batch in self._batches():
            rows = batch.filter(batch.column(3).is_valid())
            if not len(rows):
                continue
            texts = strings(rows.column(3), where=self.uri, nulls=False).to_pylist()
            for entry, text in zip(_entries(rows), texts, strict=True):
                number = numbers[_checked(int(entry["file"]), numbers, self.uri)]
                if number >= 0:
                    ids[int(number), int(entry["row"])] = _parse_id(text, self.uri)
        return ids

    def _file_numbers(self, number_of: Mapping[bytes, int]) -> FileNumbers:
        return np.array([number_of.get(key, -1) for key in self.keys], np.int64)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with _opened(self.uri, self.sidecar) as file:
            yield from file.iter_batches(batch_size=BATCH, columns=["hash", "file", "row", "id"])


class EntryWriter:
    """Writes entries to a sidecar, in row groups of one size."""

    kind = RUNS
    columns: Sequence[pa.Field] = _COLUMNS

    def __init__(self, draft: Draft, writer: pq.ParquetWriter, row_group: int) -> None:
        self.draft, self._writer, self._row_group = draft, writer, row_group
        self._pending: list[Entries] = []
        self._entries = 0

    @classmethod
    @contextmanager
    def create(cls, store: str, keys: Sequence[bytes], row_group: int) -> Iterator[Any]:
        """Opens a writer; the sidecar gets its name when the context ends without an error.

        Args:
            keys: of the files that entries refer to by number.
            row_group: entries of a row group.
        """
        metadata = {b"raypq.format": _FORMAT, b"raypq.files": base64.b64encode(b"".join(keys))}
        schema = pa.schema(cls.columns, metadata=metadata)
        with (
            sidecars.create(store, cls.kind, "parquet") as draft,
            pq.ParquetWriter(draft.file, schema, **_OPTIONS) as writer,
        ):
            entry_writer = cls(draft, writer, row_group)
            yield entry_writer
            entry_writer.close()

    def add(self, entries: Entries, files: NDArray[np.uint32]) -> None:
        """Adds entries [n] with these file numbers [n] in place of their own."""
        copy = entries.copy()
        copy["file"] = files
        self._pending.append(copy)
        self._entries += len(copy)
        if sum(len(part) for part in self._pending) >= self._row_group:
            self._flush(final=False)

    def close(self) -> None:
        """Writes what is left."""
        self._flush(final=True)
        self.draft.about["entries"] = self._entries

    def _flush(self, *, final: bool) -> None:
        if not self._pending:
            return
        entries = np.concatenate(self._pending)
        n = len(entries) if final else len(entries) // self._row_group * self._row_group
        self._pending = [entries[n:]] if n < len(entries) else []
        if n:
            self._write(entries[:n])

    def _write(self, entries: Entries, ids: pa.Array | None = None) -> None:
        columns = [pa.array(np.ascontiguousarray(entries[name])) for name in ENTRY.names or ()]
        if len(self.columns) > len(columns):
            columns.append(ids if ids is not None else pa.nulls(len(entries), _ID.type))
        table = pa.Table.from_arrays(columns, schema=pa.schema(self.columns))
        self._writer.write_table(table, self._row_group)


class RepeatedWriter(EntryWriter):
    """Writes the table of repeated hashes; its file numbers are those of the version."""

    kind = REPEATED
    columns = (*_COLUMNS, _ID)

    def add(self, entries: Entries, files: NDArray[np.uint32] | None = None) -> None:
        """Adds entries [n] with their own file numbers, or with ``files`` [n]."""
        super().add(entries, entries["file"] if files is None else files)

    def add_ids(self, entries: Entries, ids: Mapping[RowRef, Any]) -> None:
        """Appends the ids of some entries, after all entries."""
        self._flush(final=True)
        if len(entries):
            rows = zip(entries["file"].tolist(), entries["row"].tolist(), strict=True)
            texts = [json.dumps(ids[row]) for row in rows]
            self._write(entries, pa.array(texts, pa.string()))


def batches(entries: Entries) -> Iterator[Entries]:
    """Entries in batches of ``BATCH``."""
    for start in range(0, len(entries), BATCH):
        yield entries[start : start + BATCH]


def is_in_sorted(hashes: NDArray[np.uint64], sorted_: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which hashes [n] are among others, which ascend; a mask [n]."""
    if not len(sorted_):
        return np.zeros(len(hashes), np.bool_)
    index = np.minimum(np.searchsorted(sorted_, hashes), len(sorted_) - 1)
    return np.asarray(sorted_[index] == hashes)


@dataclass
class _OrderCheck:
    """Checks that hashes ascend from batch to batch."""

    uri: str
    last: int = 0

    def check(self, hashes: NDArray[np.uint64]) -> None:
        if not len(hashes):
            return
        if int(hashes[0]) < self.last or bool((hashes[1:] < hashes[:-1]).any()):
            raise UnusableIndexError(f"{self.uri}: expected hashes in order, found others")
        self.last = int(hashes[-1])


@contextmanager
def _opened(uri: str, sidecar: Sidecar) -> Iterator[pq.ParquetFile]:
    try:
        with open_parquet(uri, size=sidecar.bytes, block=_BLOCK, blocks=_BLOCKS) as file:
            columns = {field.name: field.type for field in file.schema_arrow}
            expected = {field.name: field.type for field in _COLUMNS}
            if not expected.items() <= columns.items():
                raise InputError(uri, expected="entries of an index of ids", found=str(columns))
            yield file
    except InputError as error:
        raise UnusableIndexError(str(error)) from None


def _keys(file: pq.ParquetFile) -> list[bytes]:
    metadata = file.schema_arrow.metadata or {}
    if metadata.get(b"raypq.format") != _FORMAT:
        raise UnusableIndexError(f"format {metadata.get(b'raypq.format')!r}")
    try:
        keys = base64.b64decode(metadata.get(b"raypq.files", b""), validate=True)
    except binascii.Error as error:
        raise UnusableIndexError(f"files: {error}") from None
    return [keys[start : start + _KEY_BYTES] for start in range(0, len(keys), _KEY_BYTES)]


def _column(batch: pa.RecordBatch | pa.Table, index: int) -> NDArray[Any]:
    return np.asarray(batch.column(index).to_numpy())


def _entries(batch: pa.RecordBatch | pa.Table) -> Entries:
    entries = np.empty(len(batch), ENTRY)
    for index, name in enumerate(ENTRY.names or ()):
        entries[name] = _column(batch, index)
    return entries


def _renumbered(entries: Entries, numbers: FileNumbers, uri: str) -> Entries:
    """Entries with the version's file numbers, without those of files that are not in it."""
    if len(entries):
        _checked(int(entries["file"].max()), numbers, uri)
    files = numbers[entries["file"]]
    present = files >= 0
    entries, files = entries[present], files[present]
    entries["file"] = files
    return entries


def _checked(file: int, numbers: FileNumbers, uri: str) -> int:
    if file >= len(numbers):
        raise UnusableIndexError(f"{uri}: expected {len(numbers)} files, found number {file}")
    return file


def _parse_id(text: str, uri: str) -> Any:
    try:
        return json_text.parse(text)
    except ValueError as error:
        raise UnusableIndexError(f"{uri}: {error}") from None
