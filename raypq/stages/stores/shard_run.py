"""Runs over shards: one output file each, and one version of them all.

What is done already is kept by reference: a shard that has not changed since the last snapshot,
under the same work, or that a run finished before it was cut off. So a rerun does only what is
missing, and a run with nothing to do makes no new version.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raypq import console
from raypq.data.storage import canonical, join, prepare
from raypq.data.store import runs, snapshot
from raypq.data.store.journal import Journal, still_there
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.snapshot import Quarantined, Snapshot
from raypq.errors import ConflictError, InputError, ShardFailure
from raypq.execution.executor import R, TaskResult, completed
from raypq.stages.stores import quarantine
from raypq.stages.stores.shard_task import (
    ShardTask,
    kept_task,
    known_stems,
    not_among,
    under_known_stems,
)

# What is going on, what was done, and the rows that come of it.
_VERBS = {
    "codes": ("encode", "encoded", "images"),
    "predictions": ("classify", "classified", "images"),
    "search": ("search", "answered", "queries"),
    "pairs": ("compare", "found", "pairs"),
}


def _gone(store: str, receipts: Sequence[Receipt]) -> list[Receipt]:
    """The receipts whose files are not in the store in full; by one listing."""
    there = {receipt.path for receipt in still_there(store, receipts)}
    return [receipt for receipt in receipts if receipt.path not in there]


ReadAgain = Callable[["StoreRun"], Collection[str]]


@dataclass(frozen=True, kw_only=True)
class StoreRun:
    """One run that writes a store.

    Attributes:
        tasks: every shard that the version will hold, each with its own model and work.
        latest: the version before, if any.
        kept: receipts of shards that need no work, by stem.
        journals: by work, as far as they were read.
        put_aside: shards that stay out without being tried again.
        guard: for a run that must be alone: called just before its commit, which then must also
            follow ``latest`` directly.
        appends: the version holds what ``latest`` holds, too, so it must follow it directly.
    """

    kind: snapshot.Kind
    store: str
    tasks: Sequence[ShardTask]
    latest: Snapshot | None
    kept: Mapping[str, Receipt]
    put_aside: Sequence[Quarantined] = ()
    guard: Callable[[], None] | None = None
    journals: Mapping[str, Journal] = field(default_factory=dict)
    appends: bool = False

    @classmethod
    def plan(
        cls,
        *,
        kind: snapshot.Kind,
        store: str,
        tasks: Sequence[ShardTask],
        on_bad_shard: str = "fail",
        append: bool = False,
    ) -> StoreRun:
        """Looks at what is there.

        Args:
            on_bad_shard: with ``quarantine``, a shard that was bad and has not changed stays out
                without being tried again.
            append: shards of the last version that none of the tasks is about stay as they are,
                under the model and the work that they have.

        Raises:
            InputError: the store is of another kind, or lacks a file that is to be kept.
        """
        latest = snapshot.read(store) if snapshot.versions(store) else None
        if latest and latest.kind != kind:
            raise InputError(store, expected=f"a store of {kind}", found=f"one of {latest.kind}")
        known = list(latest.shards) if latest else []
        others = not_among(latest, [task.shard for task in tasks]) if latest and append else []
        if latest and (gone := _gone(store, others)):
            raise InputError(
                join(store, gone[0].path),
                expected=f"a file of version {latest.version}, to be kept (--append, append: true)",
                found=f"none, or not all of it; encode {gone[0].source.uri} again, too",
            )
        tasks = [*tasks, *(kept_task(receipt) for receipt in others)]
        journals = {work: Journal(store, work) for work in sorted({task.work for task in tasks})}
        for journal in journals.values():
            known += journal.read()
        stems = known_stems(latest, known)
        shards = under_known_stems([task.shard for task in tasks], stems)
        tasks = [replace(task, shard=shard) for task, shard in zip(tasks, shards, strict=True)]
        put_aside: list[Quarantined] = []
        if latest and append:
            given = {canonical(task.shard.uri) for task in tasks}
            put_aside = [item for item in latest.quarantined if canonical(item.uri) not in given]
        if latest and on_bad_shard == "quarantine":
            tried = {task.shard.stem: (Source.of(task.shard), task.work) for task in tasks}
            aside = quarantine.unchanged(latest, tried)
            put_aside += [item for item in latest.quarantined if item.shard in aside]
            tasks = [task for task in tasks if task.shard.stem not in aside]
        by_stem = {task.shard.stem: task for task in tasks}
        usable = [
            receipt
            for receipt in known
            if (task := by_stem.get(receipt.shard))
            and receipt.work == task.work
            and receipt.source.same_file(Source.of(task.shard))
        ]
        kept: dict[str, Receipt] = {}
        files: set[str] = set()
        for receipt in still_there(store, usable):  # what a version already holds comes first
            if receipt.shard not in kept and receipt.path not in files:
                kept[receipt.shard] = receipt
                files.add(receipt.path)
        return cls(
            kind=kind,
            store=store,
            tasks=tasks,
            latest=latest,
            kept=kept,
            put_aside=put_aside,
            journals=journals,
            appends=append,
        )

    @property
    def dropped(self) -> list[Receipt]:
        """Shards of the last version that this run is not about, so that its version lacks them."""
        if self.latest is None:
            return []
        aside = {canonical(item.uri) for item in self.put_aside}
        found = not_among(self.latest, [task.shard for task in self.tasks])
        return [receipt for receipt in found if canonical(receipt.source.uri) not in aside]

    @property
    def run_id(self) -> str:
        """Names the run by what goes into it: inputs with size and time, and the work."""
        digest = hashlib.sha256()
        for task in self.tasks:
            shard = task.shard
            digest.update(f"{task.work}:{shard.uri}:{shard.size}:{shard.modified}\n".encode())
        return digest.hexdigest()[:32]

    @property
    def missing(self) -> list[ShardTask]:
        """The tasks that are still to be done."""
        return [task for task in self.tasks if task.shard.stem not in self.kept]

    def finished(self) -> Snapshot | None:
        """The latest version, if it is what this run would make."""
        if self.latest is None or {*self.latest.quarantined} != {*self.put_aside}:
            return None
        held = {receipt.shard: receipt for receipt in self.latest.shards}
        if held != dict(self.kept) or len(held) != len(self.tasks):
            return None
        console.say(
            f"nothing to do: {self.store} version {self.latest.version} holds all "
            f"{len(self.tasks)} shards as they are"
        )
        quarantine.tell(self.store, self.latest)
        return self.latest

    def execute(
        self,
        results: Callable[[Sequence[ShardTask]], Iterator[TaskResult[R]]],
        *,
        on_bad_shard: str,
        reduce: Callable[[R], Receipt],
        summarise: Callable[[Sequence[Receipt]], dict[str, Any]],
        read_again: ReadAgain = lambda _: (),
        before: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Does what is missing and commits the next version.

        Args:
            results: does the tasks, such as a pass of a worker pool or a search of several.
            reduce: takes each result as it arrives and gives its receipt; what it gathers beside
                must not depend on the order.
            summarise: what the snapshot says of the run, given every receipt before they are
                committed; it may refuse them.
            read_again: given the run as it is when gc knows of it, the stems of kept shards for
                which workers are called too (with ``ShardTask.kept``).
            before: called before the first shard, when gc knows of this run.

        Raises:
            JobError: shards failed. Nothing is committed; the finished ones are remembered.
            ConflictError: a file that the version would name is gone.
        """
        prepare(join(self.store, snapshot.FOLDER))  # or hours of work could not be committed
        with runs.at_work(self.store, _VERBS[self.kind][0]):
            before()
            run = self._seen_again()
            return run._execute(results, on_bad_shard, reduce, summarise, read_again(run))

    def _seen_again(self) -> StoreRun:
        """The run without what was taken away since it was planned, before gc knew of it."""
        held = [*self.kept.values(), *(task.kept for task in self.tasks if task.kept)]
        gone = {receipt.path for receipt in _gone(self.store, held)}
        return replace(
            self,
            kept={stem: item for stem, item in self.kept.items() if item.path not in gone},
            tasks=[
                replace(task, kept=None) if task.kept and task.kept.path in gone else task
                for task in self.tasks
            ],
        )

    def _execute(
        self,
        results: Callable[[Sequence[ShardTask]], Iterator[TaskResult[R]]],
        on_bad_shard: str,
        reduce: Callable[[R], Receipt],
        summarise: Callable[[Sequence[Receipt]], dict[str, Any]],
        read_again: Collection[str],
    ) -> Snapshot:
        start = time.monotonic()
        receipts = [item for stem, item in self.kept.items() if stem not in read_again]
        failures: list[ShardFailure] = []
        tasks = [
            replace(task, kept=self.kept.get(task.shard.stem, task.kept))
            for task in self.tasks
            if task.shard.stem in read_again or task.shard.stem not in self.kept
        ]
        journals = {
            task.work: self.journals.get(task.work) or Journal(self.store, task.work)
            for task in self.tasks
        }
        try:
            reduced = (
                TaskResult[Receipt](item.index, failure=item.failure)
                if item.failure
                else TaskResult(item.index, reduce(item.value))
                for item in results(tasks)
            )
            for receipt in completed(
                reduced,
                total=len(tasks),
                label=_VERBS[self.kind][0],
                on_bad_shard=on_bad_shard,
                failures=failures,
                kept=len(receipts),
                images=lambda receipt: receipt.rows,
            ):
                receipts.append(receipt)
                if receipt.shard not in self.kept:
                    self._journal(journals, receipt.work).add(receipt)
        finally:
            for journal in journals.values():
                journal.flush()
        seconds = time.monotonic() - start
        summary = summarise(receipts)
        held = {receipt.path for receipt in self.kept.values()}
        held |= {task.kept.path for task in self.tasks if task.kept}
        fresh = [receipt for receipt in receipts if receipt.path not in held]
        worked = {
            "shards": len(fresh),
            "images": sum(receipt.rows for receipt in fresh),
            "seconds": seconds,
        }
        summary |= {"worked": worked, "seconds": seconds}
        version = self._commit(receipts, failures, summary)
        for journal in journals.values():
            journal.clear(receipt.shard for receipt in version.shards)
        kept = f" ({len(self.kept)} shards kept)" if self.kept else ""
        _, done, rows = _VERBS[self.kind]
        console.say(
            f"{done} {version.rows:,} {rows} in {seconds:.1f} s{kept}: "
            f"{self.store} version {version.version}"
        )
        tried = {task.shard.stem for task in self.tasks}  # those were warned of just now
        quarantine.tell(self.store, version, but=tried)
        return version

    def _journal(self, journals: dict[str, Journal], work: str) -> Journal:
        if work not in journals:  # kept by its content, under a work that is not asked for
            journals[work] = Journal(self.store, work)
        return journals[work]

    def _commit(
        self,
        receipts: Sequence[Receipt],
        failures: Sequence[ShardFailure],
        summary: dict[str, Any],
    ) -> Snapshot:
        tasks = {task.name: task for task in self.tasks}
        left_out = [
            Quarantined(
                shard=tasks[item.shard].shard.stem,
                uri=item.shard,
                reason=item.reason,
                source=Source.of(tasks[item.shard].shard),
                work=tasks[item.shard].work,
            )
            for item in sorted(failures, key=lambda item: item.shard)
        ]
        alone = self.appends or self.guard is not None
        return snapshot.commit(
            self.store,
            kind=self.kind,
            run_id=self.run_id,
            expected=[
                *(task.shard.stem for task in self.tasks),
                *(item.shard for item in self.put_aside),
            ],
            receipts=receipts,
            quarantined=[*self.put_aside, *left_out],
            summary=summary | quarantine.noted(self.latest, [*self.put_aside, *left_out]),
            follows=(self.latest.version if self.latest else 0) if alone else None,
            guard=self._guarding(receipts),
        )

    def _guarding(self, receipts: Sequence[Receipt]) -> Callable[[], None]:
        """What is asked just before the commit: is everything there, and is the lease ours?"""
        sure = False

        def guard() -> None:
            nonlocal sure
            if not sure:
                verify_there(self.store, receipts)
                sure = True  # other tries follow at once
            if self.guard is not None:
                self.guard()

        return guard


def verify_there(store: str, receipts: Sequence[Receipt]) -> None:
    """Makes sure, by one listing, that a version names only what is there in full.

    Raises:
        ConflictError: naming a file that is gone.
    """
    if gone := _gone(store, receipts):
        raise ConflictError(
            f"{store}: {len(gone)} of {len(receipts)} files that the version would name are gone "
            f"or not whole, such as {gone[0].path}; nothing was committed. Run it again: what is "
            "gone is done anew. (A gc of an older raypq must not run beside it.)"
        )
