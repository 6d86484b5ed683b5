"""Runs over shards: one output file for each shard, and one version of the store.

Finished shards are kept by reference: those of the last version that have not changed under the
same work, and those in the journal of an interrupted run. So a rerun does only what is missing,
and a run with nothing to do makes no new version.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raypq import console, heartbeat
from raypq.data.storage import canonical, check_create, join
from raypq.data.store import runs, snapshot
from raypq.data.store.journal import Journal, still_there
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.snapshot import Quarantined, Snapshot
from raypq.errors import ConflictError, InputError, ShardFailure
from raypq.execution.executor import R, TaskResult, completed
from raypq.stages.stores import quarantine
from raypq.stages.stores.shard_task import (
    ShardTask,
    known_stems,
    receipts_of_others,
    task_of,
    with_earlier,
    with_known_stems,
)
from raypq.stages.stores.source_index import SourceIndex

_MAX_NAMES = 5  # dropped shards that a version names
# By kind of store: the verb of progress lines, that of the result, and what its rows are.
_VERBS = {
    "codes": ("encode", "encoded", "images"),
    "predictions": ("classify", "classified", "images"),
    "search": ("search", "answered", "queries"),
    "pairs": ("compare", "found", "pairs"),
    "groups": ("group", "grouped", "images"),
    "clusters": ("assign", "assigned", "images"),
    "features": ("extract", "extracted", "images"),
}


@dataclass(frozen=True, kw_only=True)
class StoreRun:
    """One run that writes a store.

    Attributes:
        tasks: every shard of the next version, each with its model and work.
        latest: the last version, if there is one.
        kept: receipts of shards that need no work, by stem.
        journals: those that were read, by work.
        quarantined: shards that stay out without another try.
        pre_commit_check: called just before the commit; raises if the run may no longer commit (its
            lease expired).
        appends: whether the version also holds the shards of ``latest``.
    """

    kind: snapshot.Kind
    store: str
    tasks: Sequence[ShardTask]
    latest: Snapshot | None
    kept: Mapping[str, Receipt]
    quarantined: Sequence[Quarantined] = ()
    pre_commit_check: Callable[[], None] | None = None
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
        """Finds the shards that need no work, by the last version and by journals.

        Args:
            on_bad_shard: with ``quarantine``, an unchanged quarantined shard is not tried again.
            append: whether shards of the last version without a task are kept, under the model
                and the work that they have.

        Raises:
            InputError: the store is of another kind, or lacks a file that is to be kept.
        """
        with heartbeat.phase(f"{store}: reading the last version and what is finished"):
            return cls._planned(kind, store, tasks, on_bad_shard, append=append)

    @classmethod
    def _planned(
        cls,
        kind: snapshot.Kind,
        store: str,
        tasks: Sequence[ShardTask],
        on_bad_shard: str,
        *,
        append: bool,
    ) -> StoreRun:
        latest = snapshot.read(store) if snapshot.versions(store) else None
        if latest and latest.kind != kind:
            raise InputError(store, expected=f"a store of {kind}", found=f"one of {latest.kind}")
        if latest and append:
            tasks = [*tasks, *_appended(store, latest, tasks)]
        journals = {work: Journal(store, work) for work in sorted({task.work for task in tasks})}
        journaled = [receipt for journal in journals.values() for receipt in journal.read()]
        receipts = [*(latest.shards if latest else ()), *journaled]
        shards = [task.shard for task in tasks]
        shards = with_known_stems(shards, known_stems(shards, latest, journaled))
        tasks = [replace(task, shard=shard) for task, shard in zip(tasks, shards, strict=True)]
        quarantined: list[Quarantined] = []
        if latest and append:
            given = SourceIndex(task.shard.uri for task in tasks)
            quarantined = [item for item in latest.quarantined if not given.overlapping(item.uri)]
        if latest and on_bad_shard == "quarantine":
            sources = {task.shard.stem: (Source.of(task.shard), task.work) for task in tasks}
            unchanged = quarantine.unchanged(latest, sources)
            quarantined += [item for item in latest.quarantined if item.shard in unchanged]
            tasks = [task for task in tasks if task.shard.stem not in unchanged]
        return cls(
            kind=kind,
            store=store,
            tasks=with_earlier(tasks, receipts, latest) if kind in ("codes", "features") else tasks,
            latest=latest,
            kept=_finished(store, tasks, receipts),
            quarantined=quarantined,
            journals=journals,
            appends=append,
        )

    @property
    def dropped(self) -> list[Receipt]:
        """Shards of the last version that the next one lacks, since they have no task."""
        if self.latest is None:
            return []
        quarantined = {canonical(item.uri) for item in self.quarantined}
        others = receipts_of_others(self.latest, [task.shard for task in self.tasks])
        return [receipt for receipt in others if canonical(receipt.source.uri) not in quarantined]

    def warn_of_dropped(self, source: str, remedy: str = "") -> dict[str, Any]:
        """Warns of shards that the next version drops; returns the summary's entry of them.

        Args:
            source: what the run reads. remedy: an option that keeps them.
        """
        gone = sorted(receipt.source.uri for receipt in self.dropped)
        if not gone or self.latest is None:
            return {}
        before = self.latest.version
        console.warn(
            f"{self.store}: {len(gone)} of the {len(self.latest.shards)} shards of version "
            f"{before} are not among these {source}, such as {gone[0]}, and the next version will "
            f"lack them. {remedy}'raypq snapshots restore {self.store} {before}' brings version "
            f"{before} back",
            shards=len(gone),
        )
        examples = gone[:_MAX_NAMES]
        return {"dropped": {"shards": len(gone), "of_version": before, "examples": examples}}

    @property
    def run_id(self) -> str:
        """Digest of the inputs (URI, size and version tag) and the work of each."""
        digest = hashlib.sha256()
        for task in self.tasks:
            shard = task.shard
            digest.update(f"{task.work}:{shard.uri}:{shard.size}:{shard.modified}\n".encode())
        return digest.hexdigest()[:32]

    @property
    def expected_parent(self) -> int | None:
        """The version that must still be the latest at the commit (0: there must be none).

        None, if other runs may commit meanwhile: the run neither appends nor holds a lease.
        """
        if not self.appends and self.pre_commit_check is None:
            return None
        return self.latest.version if self.latest else 0

    @property
    def missing(self) -> list[ShardTask]:
        """The tasks whose output is still missing."""
        return [task for task in self.tasks if task.shard.stem not in self.kept]

    def unchanged_version(self) -> Snapshot | None:
        """The last version, if it equals the one that this run would make."""
        if self.latest is None or {*self.latest.quarantined} != {*self.quarantined}:
            return None
        shards = {receipt.shard: receipt for receipt in self.latest.shards}
        if shards != dict(self.kept) or len(shards) != len(self.tasks):
            return None
        console.say(
            f"nothing to do: {self.store} version {self.latest.version} holds all "
            f"{len(self.tasks)} shards as they are"
        )
        quarantine.warn(self.store, self.latest)
        return self.latest

    def execute(
        self,
        process: Callable[[Sequence[ShardTask]], Iterator[TaskResult[R]]],
        *,
        on_bad_shard: str,
        on_result: Callable[[R], Receipt],
        summarise: Callable[[Sequence[Receipt]], dict[str, Any]],
        reprocess: Callable[[StoreRun], Collection[str]] = lambda _: (),
        on_start: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Processes the missing shards and commits the next version.

        Args:
            process: processes tasks, for example by a pass of a worker pool.
            on_result: called with each result as it arrives; returns its receipt. What it adds up
                must not depend on the order.
            summarise: called with all receipts before the commit; returns the summary of the
                version. It may raise to refuse them.
            reprocess: returns the stems of kept shards that are processed all the same (with
                ``ShardTask.previous``); called with the run when it is protected from gc.
            on_start: called before the first shard, when the run is protected from gc.

        Raises:
            JobError: shards failed. Nothing is committed; the finished ones are in the journal.
            ConflictError: a file that the version would name is gone.
        """
        check_create(join(self.store, snapshot.FOLDER))  # fails now and not after hours of work
        with (
            runs.active(self.store, _VERBS[self.kind][0]),
            heartbeat.phase(f"{self.store}: preparing and committing a version"),
        ):
            on_start()
            run = self._without_removed()
            return run._execute(process, on_bad_shard, on_result, summarise, reprocess(run))

    def _without_removed(self) -> StoreRun:
        """The run without kept files that were removed between its plan and its mark for gc."""
        held = [*self.kept.values(), *(task.previous for task in self.tasks if task.previous)]
        removed = {receipt.path for receipt in _absent(self.store, held)}
        return replace(
            self,
            kept={stem: item for stem, item in self.kept.items() if item.path not in removed},
            tasks=[
                replace(task, previous=None)
                if task.previous and task.previous.path in removed
                else task
                for task in self.tasks
            ],
        )

    def _execute(
        self,
        process: Callable[[Sequence[ShardTask]], Iterator[TaskResult[R]]],
        on_bad_shard: str,
        on_result: Callable[[R], Receipt],
        summarise: Callable[[Sequence[Receipt]], dict[str, Any]],
        reprocess: Collection[str],
    ) -> Snapshot:
        start = time.monotonic()
        receipts = [item for stem, item in self.kept.items() if stem not in reprocess]
        failures: list[ShardFailure] = []
        tasks = [
            replace(task, previous=self.kept.get(task.shard.stem, task.previous))
            for task in self.tasks
            if task.shard.stem in reprocess or task.shard.stem not in self.kept
        ]
        results = completed(
            _to_receipts(process(tasks), on_result),
            total=len(tasks),
            label=_VERBS[self.kind][0],
            on_bad_shard=on_bad_shard,
            failures=failures,
            kept=len(receipts),
            images=lambda receipt: receipt.rows,
        )
        journals = self._record(results, receipts)
        seconds = time.monotonic() - start
        summary = summarise(receipts)
        summary |= {"worked": self._processed(receipts, seconds), "seconds": seconds}
        version = self._commit(receipts, failures, summary)
        for journal in journals:
            journal.clear(receipt.shard for receipt in version.shards)
        self._log(version, seconds)
        return version

    def _record(self, results: Iterator[Receipt], receipts: list[Receipt]) -> Collection[Journal]:
        """Appends each result to ``receipts``, and those that are new to the journal of its work;
        returns the journals of the run."""
        journals = {
            task.work: self.journals.get(task.work) or Journal(self.store, task.work)
            for task in self.tasks
        }
        try:
            for receipt in results:
                receipts.append(receipt)
                if receipt.shard in self.kept:
                    continue
                if receipt.work not in journals:  # kept by its content, under an earlier work
                    journals[receipt.work] = Journal(self.store, receipt.work)
                journals[receipt.work].add(receipt)
        finally:
            for journal in journals.values():
                journal.flush()
        return journals.values()

    def _processed(self, receipts: Sequence[Receipt], seconds: float) -> dict[str, Any]:
        """Shards and images that this run processed itself."""
        held = {receipt.path for receipt in self.kept.values()}
        held |= {task.previous.path for task in self.tasks if task.previous}
        fresh = [receipt for receipt in receipts if receipt.path not in held]
        images = sum(receipt.rows for receipt in fresh)
        return {"shards": len(fresh), "images": images, "seconds": seconds}

    def _log(self, version: Snapshot, seconds: float) -> None:
        kept = f" ({len(self.kept)} shards kept)" if self.kept else ""
        _, done, rows = _VERBS[self.kind]
        console.say(
            f"{done} {version.rows:,} {rows} in {seconds:.1f} s{kept}: "
            f"{self.store} version {version.version}"
        )
        tried = {task.shard.stem for task in self.tasks}  # ``completed`` has warned of these
        quarantine.warn(self.store, version, except_for=tried)

    def _commit(
        self,
        receipts: Sequence[Receipt],
        failures: Sequence[ShardFailure],
        summary: dict[str, Any],
    ) -> Snapshot:
        tasks = {task.name: task for task in self.tasks}
        failed = [
            Quarantined(
                shard=tasks[item.shard].shard.stem,
                uri=item.shard,
                reason=item.reason,
                source=Source.of(tasks[item.shard].shard),
                work=tasks[item.shard].work,
            )
            for item in sorted(failures, key=lambda item: item.shard)
        ]
        quarantined = [*self.quarantined, *failed]
        return snapshot.commit(
            self.store,
            kind=self.kind,
            run_id=self.run_id,
            expected=[
                *(task.shard.stem for task in self.tasks),
                *(item.shard for item in self.quarantined),
            ],
            receipts=receipts,
            quarantined=quarantined,
            summary=summary | quarantine.summary_entry(self.latest, quarantined),
            expected_parent=self.expected_parent,
            pre_commit_check=self._pre_commit_check_of(receipts),
        )

    def _pre_commit_check_of(self, receipts: Sequence[Receipt]) -> Callable[[], None]:
        """A check that every file is present, followed by the ``pre_commit_check`` of the run."""
        verified = False

        def check() -> None:
            nonlocal verified
            if not verified:
                verify_present(self.store, receipts)
                verified = True  # further attempts follow at once
            if self.pre_commit_check is not None:
                self.pre_commit_check()

        return check


def verify_present(store: str, receipts: Sequence[Receipt]) -> None:
    """Checks by one listing that a version names only files that are present in full.

    Raises:
        ConflictError: naming a file that is gone.
    """
    if gone := _absent(store, receipts):
        raise ConflictError(
            f"{store}: {len(gone)} of {len(receipts)} files that the version would name are gone "
            f"or not whole, such as {gone[0].path}; nothing was committed. Run it again: only the "
            "missing ones are made anew. (A gc of an older raypq must not run at the same time.)"
        )


def _absent(store: str, receipts: Sequence[Receipt]) -> list[Receipt]:
    """The receipts whose files are missing or incomplete, by one listing."""
    present = {receipt.path for receipt in still_there(store, receipts)}
    return [receipt for receipt in receipts if receipt.path not in present]


def _appended(store: str, latest: Snapshot, tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """Tasks of the shards of the last version that have none yet; their files must be present."""
    others = receipts_of_others(latest, [task.shard for task in tasks])
    if gone := _absent(store, others):
        raise InputError(
            join(store, gone[0].path),
            expected=f"a file of version {latest.version}, to be kept (--append, append: true)",
            found=f"none, or not all of it; encode {gone[0].source.uri} again, too",
        )
    return [task_of(receipt) for receipt in others]


def _finished(
    store: str, tasks: Sequence[ShardTask], receipts: Sequence[Receipt]
) -> dict[str, Receipt]:
    """The receipts, by stem, that a run over these tasks may keep: of the same source under the
    same work, with their file present. Of several for one shard, the first."""
    by_stem = {task.shard.stem: task for task in tasks}
    usable = [
        receipt
        for receipt in receipts
        if (task := by_stem.get(receipt.shard))
        and receipt.work == task.work
        and receipt.source.same_file(Source.of(task.shard))
    ]
    kept: dict[str, Receipt] = {}
    paths: set[str] = set()
    for receipt in still_there(store, usable):
        if receipt.shard not in kept and receipt.path not in paths:
            kept[receipt.shard] = receipt
            paths.add(receipt.path)
    return kept


def _to_receipts(
    results: Iterable[TaskResult[R]], on_result: Callable[[R], Receipt]
) -> Iterator[TaskResult[Receipt]]:
    """The results with ``on_result`` applied to their values; failures as they are."""
    for result in results:
        if result.failure:
            yield TaskResult(result.index, failure=result.failure)
        else:
            yield TaskResult(result.index, on_result(result.value))
