"""The counts of a prediction version, carried from one version to the next.

A version keeps the sum of its shards' counts in a sidecar. The next version subtracts the counts of
removed shards and adds those of new ones, so only these are read. The counts are integers, so the
result is exactly that of counting all shards. If the sidecar is missing, damaged, or of other
classes or shards, all shards are counted again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from raypq import console
from raypq.data.classes import ClassTable
from raypq.data.storage import json_text
from raypq.data.store import sidecars
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.sidecars import Sidecar
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.executor import TaskResult
from raypq.metrics.accuracy import ClassCounts
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, task_of

_KIND = "counts"
_FORMAT = 1

# Counts prediction shards of a store.
ReadCounts = Callable[[Sequence[ShardTask]], Iterator[TaskResult[tuple[Receipt, ClassCounts]]]]


def write(
    store: str, table: ClassTable, receipts: Sequence[Receipt], total: ClassCounts
) -> dict[str, list[Sidecar]]:
    """Writes the counts of these shards as a sidecar of the next version."""
    document = {
        "format": _FORMAT,
        "classes": table.digest,
        "shards": _digest(receipts),
        "counts": total.plain(),
    }
    with sidecars.create(store, _KIND, "json") as draft:
        draft.file.write(json.dumps(document).encode())
    return {_KIND: [draft.sidecar()]}


def begin(
    read_counts: ReadCounts, run: StoreRun, table: ClassTable
) -> tuple[ClassCounts, frozenset[str]]:
    """The initial counts of a run, and the stems of kept shards that must still be counted.

    The counts of shards that the next version lacks are subtracted; this reads their files.
    """
    from_nothing = ClassCounts.empty(len(table)), frozenset(run.kept)
    if run.latest is None or not run.kept:
        return from_nothing
    kept = {receipt.path for receipt in run.kept.values()}
    removed = [receipt for receipt in run.latest.shards if receipt.path not in kept]
    retained = [receipt for receipt in run.latest.shards if receipt.path in kept]
    if _rows(removed) > _rows(retained):  # counting the retained ones reads less
        return from_nothing
    total = _read(run.store, run.latest, table)
    if total is None or not _subtract(read_counts, removed, total, rows=_rows(retained)):
        return from_nothing
    counted = {receipt.path for receipt in retained}
    uncounted = {stem for stem, receipt in run.kept.items() if receipt.path not in counted}
    return total, frozenset(uncounted)  # of an interrupted run, which did not commit them


def _read(store: str, latest: Snapshot, table: ClassTable) -> ClassCounts | None:
    written = latest.sidecars(store).get(_KIND)
    if not written:
        console.say(f"{store}: version {latest.version} has no counts of its own; all its shards "
                    "are counted once")  # fmt: skip
        return None
    try:
        document = json_text.parse(sidecars.read(store, written[0]))
        if document["format"] != _FORMAT or document["shards"] != _digest(latest.shards):
            return None
        if document["classes"] != table.digest:
            return None
        return ClassCounts.of_plain(document["counts"], len(table))
    except (InputError, ValueError, KeyError, TypeError) as error:
        console.warn(f"counts cannot be used, so all shards are counted again: {error}")
        return None


def _subtract(
    read_counts: ReadCounts, removed: Sequence[Receipt], total: ClassCounts, *, rows: int
) -> bool:
    """Subtracts the counts of shards; false where one cannot be read, or other than ``rows`` images
    are left."""
    tasks = [replace(task_of(item), previous=item) for item in removed]
    for result in read_counts(tasks):
        if result.failure:
            console.say(f"all shards are counted again: {result.failure}")
            return False
        _, shard_counts = result.value
        total.subtract(shard_counts)
    return total.valid and total.exact and int(total.rows[0]) == rows


def _rows(receipts: Iterable[Receipt]) -> int:
    return sum(receipt.rows for receipt in receipts)


def _digest(receipts: Iterable[Receipt]) -> str:
    """Identifies a set of shard files."""
    paths = "\n".join(sorted(receipt.path for receipt in receipts))
    return hashlib.sha256(paths.encode()).hexdigest()
