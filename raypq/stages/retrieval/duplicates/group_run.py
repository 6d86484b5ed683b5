"""One run of ``raypq deduplicate``: edges, a forest, groups, lists, and the version of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from raypq import console
from raypq.config import DeduplicateJob
from raypq.data.duplicate_groups import add_sizes
from raypq.data.id_list import IdList, unknown_ids_message
from raypq.data.storage import Shard, delete, join
from raypq.data.store import shard_writer, sidecars
from raypq.data.store.snapshot import Snapshot
from raypq.execution.executor import TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.stages.retrieval.code_blocks import groups as groups_of
from raypq.stages.retrieval.duplicates.group_edges import Files
from raypq.stages.retrieval.duplicates.group_forest import ForestTask, Grown
from raypq.stages.retrieval.duplicates.group_lists import CheckTask, Listed, ListKind, ListTask
from raypq.stages.retrieval.duplicates.group_members import GatherTask
from raypq.stages.retrieval.duplicates.group_worker import Grouped, GroupTask, GroupWorker, Keeping
from raypq.stages.retrieval.duplicates.night_edges import (
    FileTag,
    KnownGroups,
    recalled_edges,
    tags_of,
    write_tags,
)
from raypq.stages.retrieval.duplicates.pair_parts import PairParts, find_parts, result_tasks
from raypq.stages.retrieval.duplicates.pair_plan import (
    BlockGroups,
    PairPlan,
    blocks_of_pairs,
    pair_tasks,
)
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask

_FEW, _MANY = 1000, 0.1  # images, and the share of them in one group that is worth a warning
_BLOCK_ROWS = 1 << 22  # of code files whose images are gathered by one task


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupPlan:
    """What a run groups.

    Attributes:
        files: of the code store, in the order of row numbers, with the number of the first row.
        settings: digest of everything but the codes, by which groups are taken over.
        sources: of the code files, where a column of them decides what is kept.
    """

    pairs: PairPlan
    version: Snapshot
    files: Files
    keeping: Keeping
    settings: str
    sources: Sequence[Shard] | None

    @property
    def tags(self) -> dict[str, FileTag]:
        """What identifies the content of each code file, by its shard."""
        return tags_of(self.files, self.pairs.originals)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupRun:
    """A run.

    Attributes:
        known: groups of the last version, where it starts from them.
    """

    job: DeduplicateJob
    plan: GroupPlan
    known: KnownGroups | None
    work: str
    pool: WorkerPool[GroupWorker]
    record: RunRecord

    def execute(
        self, prefer: IdList | None, pre_commit_check: Callable[[], None] | None
    ) -> Snapshot:
        """Commits the next version."""
        job, plan = self.job, self.plan
        self._check_ids()
        edges, parts = self._edges()
        blocks = groups_of([shard for shard, _ in plan.files], self._counts, max_rows=_BLOCK_ROWS)
        grown = self._grow([*edges, *parts.paths], blocks)
        gathered = self._gather(grown, blocks)
        model = plan.pairs.model.fingerprint
        run = StoreRun.plan(
            kind="groups",
            store=job.output,
            tasks=result_tasks(job.codes, "groups", model, self.work, grown.parts),
        )
        found: list[Grouped] = []

        def receipt_of(result: Grouped) -> shard_writer.Receipt:
            found.append(result)
            return result.receipt

        def summarise(_: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
            listed = self._write_lists([item.path for item in found])
            self.record.end_of_work("connect")
            _say(job, prefer, found, listed, plan.version.rows)
            return self._summary(grown, found, listed)

        version = replace(run, pre_commit_check=pre_commit_check).execute(
            lambda tasks: self._group(grown, gathered, tasks),
            on_bad_shard="fail",
            on_result=receipt_of,
            summarise=summarise,
            reprocess=lambda run: set(run.kept),  # the numbers of all are needed
        )
        parts.remove()
        for path in (*edges, grown.members, grown.edges, *gathered, *(x.path for x in found)):
            delete(join(job.output, path))
        return version

    @cached_property
    def _counts(self) -> list[int]:
        return list(self.plan.version.shards.values("rows"))

    def _check_ids(self) -> None:
        """Refuses ids that no line of a list can hold; those of the last version's are known."""
        job, files = self.job, self.plan.files
        if not (job.keep_list or job.drop_list) or not pa.types.is_string(self.plan.pairs.id_type):
            return
        known = self.known if self.known and self.known.version.summary.get("lists") else None
        shards = [files[index][0] for index in (known.new if known else range(len(files)))]
        counts = [self._counts[shard.index] for shard in shards]
        tasks = [CheckTask(shards=block) for block in groups_of(shards, counts, _BLOCK_ROWS)]
        results = self.pool.map(GroupWorker.check_ids, tasks)
        for _ in completed(results, total=len(tasks), label="check ids", unit="blocks"):
            pass

    def _edges(self) -> tuple[list[str], PairParts]:
        """Edges that the last version has, and those that are found."""
        plan, known = self.plan, self.known
        starts = np.array([start for _, start in plan.files], np.int64)
        files = [shard for shard, _ in plan.files]
        recalled: list[str] = []
        if known is None:
            blocks = blocks_of_pairs(plan.pairs, files, self._counts)
            tasks = pair_tasks(plan.pairs, blocks)
        else:
            recalled = recalled_edges(known, self.job.output, self.pool, plan.files)
            new = set(known.new)
            chosen = [[*known.new], [index for index in range(len(plan.files)) if index not in new]]
            own, others = (
                blocks_of_pairs(
                    plan.pairs,
                    [files[index] for index in some],
                    [self._counts[index] for index in some],
                )
                for some in chosen
            )
            blocks = [*own, *others]
            tasks = pair_tasks(plan.pairs, own) + pair_tasks(plan.pairs, blocks, len(own))
        parts = find_parts(
            plan.pairs.store,
            self.work,
            self.pool,
            GroupWorker.connect,
            tasks,
            blocks,
            starts,
            plan_of_tasks=f"{plan.pairs.plan_of_tasks}:{known.digest if known else 'all'}",
            label="connect",
        )
        return recalled, parts

    def _grow(self, paths: Sequence[str], blocks: BlockGroups) -> Grown:
        starts = tuple(self.plan.files[block[0].index][1] for block in blocks)
        task = ForestTask(paths=tuple(paths), rows=self.plan.version.rows, starts=starts)
        (grown,) = completed(
            self.pool.map(GroupWorker.grow, [task]), total=1, label="forest", unit="forests"
        )
        return grown

    def _gather(self, grown: Grown, blocks: BlockGroups) -> list[str]:
        tasks = [
            GatherTask(
                name=block[0].uri, block=number, first=block[0].index, end=block[-1].index + 1
            )
            for number, block in enumerate(blocks)
        ]
        shared = grown, len(blocks), self.plan.files, self.plan.sources
        results = self.pool.map(GroupWorker.gather, tasks, *shared, ordered=True)
        return list(completed(results, total=len(tasks), label="gather", unit="blocks"))

    def _group(
        self, grown: Grown, gathered: Sequence[str], tasks: Sequence[ShardTask]
    ) -> Iterator[TaskResult[Grouped]]:
        parts = [
            GroupTask(shard=task.shard, work=task.work, part=task.shard.index) for task in tasks
        ]
        names = [receipt.shard for receipt in self.plan.version.shards]
        return self.pool.map(GroupWorker.group, parts, grown, gathered, names)

    def _write_lists(self, dropped: Sequence[str]) -> dict[str, Listed]:
        """The results of each list, and of the search for preferred ids."""
        job, plan = self.job, self.plan
        wanted: dict[ListKind, str | None] = {
            "keep_list": job.keep_list,
            "drop_list": job.drop_list,
            "preferred": job.prefer,
        }
        tasks = [
            ListTask(kind=kind, uri=uri, dropped=dropped, rows=plan.version.rows)
            for kind, uri in wanted.items()
            if uri is not None
        ]
        results = self.pool.map(GroupWorker.write_list, tasks, plan.files)
        listed = completed(results, total=len(tasks), label="lists", unit="lists")
        return {item.kind: item for item in listed}

    def _summary(
        self, grown: Grown, found: Sequence[Grouped], listed: Mapping[str, Listed]
    ) -> dict[str, Any]:
        """The summary of the version."""
        job, plan, join_of = self.job, self.plan, self.plan.pairs.join
        parts = None if join_of is None else list(join_of.first)
        if parts is None and self.known is not None and self.known.parts is not None:
            parts = list(self.known.parts)
        return {
            "codes": job.codes,
            "codes_version": plan.version.version,
            "rows": plan.version.rows,
            "metric": plan.pairs.metric,
            "threshold": job.threshold,
            "linkage": job.linkage,
            "settings": plan.settings,
            "parts": parts,
            "members": sum(item.receipt.rows for item in found),
            "groups": sum(item.groups for item in found),
            "dropped": sum(item.dropped for item in found),
            "largest": max(item.largest for item in found),
            "sizes": add_sizes(item.sizes for item in found),
            **({"dropped_at": grown.dropped_at} if job.linkage == "single" else {}),
            "lists": {kind: item.written for kind, item in listed.items() if item.written},
            "run": self.record.summary(),
            **sidecars.as_summary(write_tags(job.output, plan.tags)),
        }


def _say(
    job: DeduplicateJob,
    prefer: IdList | None,
    found: Sequence[Grouped],
    listed: Mapping[str, Listed],
    rows: int,
) -> None:
    """Says what was found."""
    if prefer is not None and len(unknown := listed["preferred"].unknown):
        console.warn(unknown_ids_message(prefer.uri, unknown, len(prefer.ids), job.codes))
    if "drop_list" in listed and len(repeated := listed["drop_list"].repeated):
        console.warn(
            f"{job.drop_list}: {len(repeated):,} ids of dropped images are left out, since images "
            f"that are kept have them, too, such as {repeated[0].as_py()!r}: ids repeat in "
            f"{job.codes} (raypq snapshots verify shows them)"
        )
    groups, dropped = (sum(getattr(x, name) for x in found) for name in ("groups", "dropped"))
    console.say(
        f"{groups:,} groups of {groups + dropped:,} images, the largest of "
        f"{max(item.largest for item in found):,}; without {dropped:,} near-duplicates, "
        f"{rows - dropped:,} of {rows:,} images are left"
    )
    largest = max(item.largest for item in found)
    if rows > _FEW and largest > _MANY * rows:
        console.warn(
            f"one group has {largest:,} of {rows:,} images: look at it (raypq report) before "
            "images are dropped; a stricter threshold, or --linkage complete (linkage), gives "
            "smaller ones"
        )
