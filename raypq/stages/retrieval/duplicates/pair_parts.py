"""The first of two passes over near pairs: one intermediate file for each task.

A journal holds the finished ones, so that a rerun after an interruption finds only the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple, Unpack

from raypq.data.storage import Shard, check_create, delete, join
from raypq.data.store import snapshot
from raypq.data.store.journal import Journal, still_there
from raypq.data.store.shard_writer import Receipt, RunCounts, Source
from raypq.data.store.snapshot import Kind, Snapshot
from raypq.errors import InputError
from raypq.execution.executor import WorkerPool, completed
from raypq.stages.retrieval.duplicates.pair_plan import PairTask
from raypq.stages.retrieval.duplicates.pair_search import PairSearch
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, task_of
from raypq.stages.stores.work_id import parts_work

Shared = TypeVarTuple("Shared")


@dataclass(frozen=True, kw_only=True)
class PairPart:
    """The intermediate file of a task.

    Attributes:
        key: of the task. pairs: that it has; more than are allowed where the task stopped there.
        left_out: pairs that are near by their codes, and not by their original vectors.
    """

    key: str
    path: str
    bytes: int
    pairs: int
    left_out: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class PairParts:
    """The files of all tasks, in their order.

    Attributes:
        pairs, left_out: in all.
    """

    store: str
    paths: Sequence[str]
    pairs: int
    left_out: int
    journal: Journal

    def remove(self) -> None:
        """Removes the files, once they are needed no more."""
        self.journal.clear()
        for path in self.paths:
            delete(join(self.store, path))


W = TypeVar("W", bound=PairSearch)


def unchanged_version(kind: Kind, store: str, work: str) -> Snapshot | None:
    """The last version of a result store, if it is of this work, and says so.

    Its number of files is known only when all pairs are found; a rerun takes it from the version.

    Raises:
        InputError: a store of another kind.
    """
    check_create(join(store, snapshot.FOLDER))  # fails now and not after hours of work
    run = StoreRun.plan(kind=kind, store=store, tasks=[])
    if run.latest is None or any(receipt.work != work for receipt in run.latest.shards):
        return None
    tasks = [task_of(receipt) for receipt in run.latest.shards]
    return StoreRun.plan(kind=kind, store=store, tasks=tasks).unchanged_version()


def result_tasks(store: str, name: str, model: str, work: str, files: int) -> list[ShardTask]:
    """The tasks of so many result files of a code store."""
    stems = [name] if files == 1 else [f"{name}-{number:05d}" for number in range(files)]
    uris = [store] if files == 1 else [join(store, stem) for stem in stems]
    shards = [
        Shard(index=index, uri=uri, stem=stem, size=0, modified="")
        for index, (uri, stem) in enumerate(zip(uris, stems, strict=True))
    ]
    return [ShardTask(shard=shard, model=model, work=work) for shard in shards]


def find_parts(
    store: str,
    work: str,
    pool: WorkerPool[W],
    call: Callable[[W, PairTask, Unpack[Shared]], PairPart],
    tasks: Sequence[PairTask],
    *shared: *Shared,
    plan_of_tasks: str,
    label: str,
    most: int | None = None,
    error: Callable[[], InputError] | None = None,
) -> PairParts:
    """The pairs of every task.

    Args:
        work: id of the work that the pairs serve. plan_of_tasks: what the tasks depend on besides.
        label: of the progress line.
        most: number of pairs beyond which ``error`` is raised.

    Raises:
        JobError: a task failed; pairs from a part of the store would look complete.
    """
    journal = Journal(store, parts_work(work, plan_of_tasks))
    done = {receipt.shard: receipt for receipt in still_there(store, journal.read())}
    missing = [task for task in tasks if task.key not in done]
    total = sum(receipt.rows for receipt in done.values())
    results = pool.map(call, missing, *shared)
    try:
        for part in completed(
            results, total=len(missing), label=label, unit="pairs of blocks", kept=len(done)
        ):
            total += part.pairs
            if most is not None and total > most and error is not None:
                raise error()
            done[part.key] = _receipt(part, work)
            journal.add(done[part.key])
    finally:
        journal.flush()
    return PairParts(
        store=store,
        paths=[done[task.key].path for task in tasks],
        pairs=total,
        left_out=sum(item.counts.left_out for item in done.values() if item.counts),
        journal=journal,
    )


def _receipt(part: PairPart, work: str) -> Receipt:
    return Receipt(
        shard=part.key,
        path=part.path,
        bytes=part.bytes,
        rows=part.pairs,
        sha256="",  # it lives as long as the run
        model=work,
        work=work,
        source=Source(uri="", size=0, modified=""),
        counts=RunCounts(left_out=part.left_out),
    )
