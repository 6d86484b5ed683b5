"""The counts of a prediction version, carried from one version to the next.

A version keeps the sum of its shards' counts in a sidecar. The next version takes off what the
shards that went counted and adds what the new ones count, so only these are read. The result is
exactly what counting all shards gives: the counts are integers. Where the sidecar is missing,
damaged, of other classes or of other shards, all shards are counted again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from raypq import console
from raypq.data import json_text
from raypq.data.classes import ClassTable
from raypq.data.store import sidecars
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.sidecars import Sidecar
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.executor import TaskResult
from raypq.metrics.accuracy import ClassCounts
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, kept_task

_KIND = "counts"
_FORMAT = 1

# Reads the counts of shards that are in a store.
ReadCounts = Callable[[Sequence[ShardTask]], Iterator[TaskResult[tuple[Receipt, ClassCounts]]]]


def write(
    store: str, table: ClassTable, receipts: Sequence[Receipt], total: ClassCounts
) -> dict[str, list[Sidecar]]:
    """Writes the counts of these shards as a sidecar for the version that will hold them."""
    document = {
        "format": _FORMAT,
        "classes": table.digest,
        "shards": _digest(receipts),
        "counts": total.plain(),
    }
    with sidecars.writing(store, _KIND, "json") as draft:
        draft.file.write(json.dumps(document).encode())
    return {_KIND: [draft.sidecar()]}


def begin(
    read_counts: ReadCounts, run: StoreRun, table: ClassTable
) -> tuple[ClassCounts, frozenset[str]]:
    """The counts to begin a run with, and the stems of kept shards that must be counted again.

    Counts of shards that the next version lacks are taken off; their files are read for that.
    """
    everything = ClassCounts.empty(len(table)), frozenset(run.kept)
    if run.latest is None or not run.kept:
        return everything
    kept = {receipt.path for receipt in run.kept.values()}
    gone = [receipt for receipt in run.latest.shards if receipt.path not in kept]
    stay = [receipt for receipt in run.latest.shards if receipt.path in kept]
    if _rows(gone) > _rows(stay):  # counting those that stay reads less
        return everything
    total = _read(run.store, run.latest, table)
    if total is None or not _take_off(read_counts, gone, total, rows=_rows(stay)):
        return everything
    counted = {receipt.path for receipt in stay}
    more = {stem for stem, receipt in run.kept.items() if receipt.path not in counted}
    return total, frozenset(more)  # an earlier run made these and did not come to commit them


def _read(store: str, latest: Snapshot, table: ClassTable) -> ClassCounts | None:
    found = latest.sidecars(store).get(_KIND)
    if not found:
        console.say(f"{store}: version {latest.version} has no counts of its own; all its shards "
                    "are counted once")  # fmt: skip
        return None
    try:
        document = json_text.parse(sidecars.read(store, found[0]))
        if document["format"] != _FORMAT or document["shards"] != _digest(latest.shards):
            return None
        if document["classes"] != table.digest:
            return None
        return ClassCounts.of_plain(document["counts"], len(table))
    except (InputError, ValueError, KeyError, TypeError) as error:
        console.warn(f"counts cannot be used, so all shards are counted again: {error}")
        return None


def _take_off(
    read_counts: ReadCounts, gone: Sequence[Receipt], total: ClassCounts, *, rows: int
) -> bool:
    """Whether the counts of these shards could be taken off, which leaves so many rows."""
    tasks = [replace(kept_task(item), kept=item) for item in gone]
    for result in read_counts(tasks):
        if result.failure:
            console.say(f"all shards are counted again: {result.failure}")
            return False
        _, counted = result.value
        total.subtract(counted)
    return total.valid and total.exact and int(total.rows[0]) == rows


def _rows(receipts: Iterable[Receipt]) -> int:
    return sum(receipt.rows for receipt in receipts)


def _digest(receipts: Iterable[Receipt]) -> str:
    """Names a set of shard files."""
    names = "\n".join(sorted(receipt.path for receipt in receipts))
    return hashlib.sha256(names.encode()).hexdigest()
