"""The id index of a code store, updated from version to version.

A new version looks its new ids up here, instead of reading the ids of every code file. It finds
exactly what ``find_duplicate_ids`` finds in all files of the version. Two kinds of sidecars:

* *sorted runs* (``ids``): hash, file and row of every id of some code files, in hash order. These
  are the runs of a log-structured merge tree, and have nothing to do with runs of jobs
  (``raypq.data.store.runs``). An update adds one for its new files. Runs are merged so that each is
  at least twice as large as the next one, and entries of files that left the store are dropped on
  the way: there are few runs, and an entry is rewritten few times. Only row groups that may hold a
  hash are read.
* *repeated hashes* (``repeated``), of the version itself: the entries whose hash occurs more than
  once; the files of the version; and the ids of the first entries, so that they need not be read
  from their files again.

If a sidecar is missing or damaged, all ids are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from raypq import console
from raypq.data.duplicate_ids import (
    BATCH,
    ENTRY,
    IN_MEMORY,
    DuplicateIds,
    Entries,
    IdFile,
    RepeatedHashes,
    merge_sorted,
    repeated_hashes,
    sorted_entries,
)
from raypq.data.storage import delete
from raypq.data.store.id_index_files import (
    REPEATED,
    RUNS,
    EntryWriter,
    RepeatedTable,
    RepeatedWriter,
    SortedRun,
    UnusableIndexError,
    batches,
    file_key,
    is_in_sorted,
)
from raypq.data.store.sidecars import Sidecar, Sidecars

CheckDuplicates = Callable[[DuplicateIds | None], None]


def is_indexed(sidecars: Sidecars) -> bool:
    """Whether a version with these sidecars has an id index."""
    return bool(sidecars.get(REPEATED))


def update(
    store: str,
    files: Sequence[IdFile],
    before: Sidecars,
    *,
    check_duplicates: CheckDuplicates = lambda _: None,
    in_memory: int = IN_MEMORY,
    row_group: int = BATCH,
) -> tuple[DuplicateIds | None, dict[str, list[Sidecar]]]:
    """Finds the duplicate ids of a version's files, and writes the version's sidecars.

    Args:
        files: all code files of the new version, by ``path`` below the store.
        before: the sidecars of the version before, if any.
        check_duplicates: called with the duplicate ids before any sidecar gets its name; may raise.
        in_memory: entries of 16 bytes to hold and sort at once.
        row_group: entries of a row group, the least that is read of a run.
    """
    try:
        return _Update(store, files, before, in_memory, row_group).run(check_duplicates)
    except UnusableIndexError as error:
        console.warn(f"the index of ids cannot be used, so all ids are read again: {error}")
    return _Update(store, files, {}, in_memory, row_group).run(check_duplicates)


class _Update:
    """One update, from the index of a version to that of the next one."""

    def __init__(
        self,
        store: str,
        files: Sequence[IdFile],
        before: Sidecars,
        in_memory: int,
        row_group: int,
    ) -> None:
        self._store, self._files = store, files
        self._in_memory, self._row_group = in_memory, row_group
        self._keys = [file_key(file.path) for file in files]
        self._number_of = {key: number for number, key in enumerate(self._keys)}
        self._before: RepeatedTable | None = None
        self._runs: list[SortedRun] = []
        if is_indexed(before):
            self._before = RepeatedTable.open(store, before[REPEATED][0])
            self._runs = [SortedRun.open(store, sidecar) for sidecar in before.get(RUNS, ())]
        self._new = self._assign_files(set(self._before.keys) if self._before else set())

    def _assign_files(self, known: set[bytes]) -> list[int]:
        """Assigns each file of the version to the run that covers it; returns the other files.

        A file counts as indexed only if the version before had it. Of several runs that hold it
        the newest covers it (a file can leave the store, come back, and be indexed again).
        """
        missing = {key for key, number in self._number_of.items() if self._files[number].rows}
        for run in reversed(self._runs):
            covered = missing & known & set(run.keys)
            run.file_numbers = np.array(
                [self._number_of[key] if key in covered else -1 for key in run.keys], np.int64
            )
            missing -= covered
        self._runs = [run for run in self._runs if (run.file_numbers >= 0).any()]
        return sorted(self._number_of[key] for key in missing)

    def run(
        self, check_duplicates: CheckDuplicates
    ) -> tuple[DuplicateIds | None, dict[str, list[Sidecar]]]:
        repeated = RepeatedHashes()
        with ExitStack() as stack:
            table = stack.enter_context(
                RepeatedWriter.create(self._store, self._keys, self._row_group)
            )
            writer = None
            if self._new:
                keys = [self._keys[number] for number in self._new]
                writer = stack.enter_context(EntryWriter.create(self._store, keys, self._row_group))
            for entries in repeated_hashes(self._entries(writer)):
                repeated.add(entries)
                table.add(entries)
            known_ids = self._before.ids(self._number_of) if self._before else {}
            ids = repeated.ids(self._files, known_ids)
            duplicates = repeated.compare(self._files, ids)
            table.add_ids(repeated.first, ids)
            check_duplicates(duplicates)
        if writer is not None:
            run = SortedRun.open(self._store, writer.draft.sidecar())
            run.file_numbers, run.unpublished = np.array(self._new, np.int64), True
            self._runs.append(run)
        return duplicates, {
            REPEATED: [table.draft.sidecar()],
            RUNS: [run.sidecar for run in self._compact()],
        }

    def _entries(self, writer: EntryWriter | None) -> Iterator[Entries]:
        """All entries whose hash may occur more than once, in hash order.

        New entries are written to their run on the way.
        """
        old = _Cursor(self._before.entries(self._number_of) if self._before else iter(()))
        position = self._positions(self._new)
        new_files = [(number, self._files[number]) for number in self._new]
        last: np.uint64 | None = None
        for entries in sorted_entries(new_files, self._in_memory):
            assert writer is not None, "there are new files"
            for batch in batches(entries):
                writer.add(batch, position[batch["file"]])
            hashes = _distinct(entries["hash"])
            if hashes[0] == last:  # one hash that fills several batches
                hashes = hashes[1:]
            last = entries["hash"][-1]
            # For a new hash the runs give every old entry, those that were repeated before too.
            matches = [run.matching(hashes) for run in self._runs]
            yield from merge_sorted([batches(entries), old.up_to(last, without=hashes), *matches])
        yield from old.up_to(None, without=np.empty(0, np.uint64))

    def _positions(self, numbers: Sequence[int]) -> NDArray[np.uint32]:
        """Positions in a list of files [len(files)], by number in the version."""
        position = np.zeros(len(self._files), np.uint32)
        position[numbers] = np.arange(len(numbers))
        return position

    def _compact(self) -> list[SortedRun]:
        """The runs of the new version: the last ones merged, or all if half of them is stale."""
        runs, count = self._runs, self._runs_to_merge()
        if not count:
            return runs
        kept, merging = runs[:-count], runs[-count:]
        keys = [key for run in merging for key in run.covered_keys]
        position = self._positions([self._number_of[key] for key in keys])
        with EntryWriter.create(self._store, keys, self._row_group) as writer:
            for entries in merge_sorted([run.all_entries() for run in merging]):
                for batch in batches(entries):
                    writer.add(batch, position[batch["file"]])
        for run in merging:
            if run.unpublished:
                delete(run.uri)
        return [*kept, SortedRun.open(self._store, writer.draft.sidecar())]

    def _runs_to_merge(self) -> int:
        """How many of the last runs to write anew as one; 0 if all are fine as they are."""
        sizes = [run.entries for run in self._runs]
        rows = sum(file.rows for file in self._files)
        if sum(sizes) > 2 * rows + self._row_group:  # less is not worth a rewrite
            return len(sizes)
        count, total = 1, sum(sizes[-1:])
        while count < len(sizes) and sizes[-count - 1] < 2 * total:
            total += sizes[-count - 1]
            count += 1
        return count if count > 1 else 0


class _Cursor:
    """A stream of entries in hash order, consumed up to one hash at a time."""

    def __init__(self, stream: Iterator[Entries]) -> None:
        self._stream, self._pending = stream, np.empty(0, ENTRY)

    def up_to(self, last: np.uint64 | None, *, without: NDArray[np.uint64]) -> Iterator[Entries]:
        """The next entries, up to this hash (None: all), without those of the hashes [n]."""
        while True:
            entries, cut = self._pending, len(self._pending)
            if last is not None:
                cut = int(np.searchsorted(entries["hash"], last, side="right"))
            if cut:
                yield entries[:cut][~is_in_sorted(entries["hash"][:cut], without)]
            self._pending = entries[cut:]
            if len(self._pending):
                return
            following = next(self._stream, None)
            if following is None:
                return
            self._pending = following


def _distinct(ordered: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The distinct values of hashes in order."""
    is_first = np.ones(len(ordered), np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]
