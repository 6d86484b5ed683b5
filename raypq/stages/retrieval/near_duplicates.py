"""Near-duplicates: every pair of stored codes within a threshold, as a store of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raypq import console
from raypq.config import DuplicatesJob
from raypq.data import intermediate, pairs
from raypq.data.storage import Shard, delete, join
from raypq.data.store import shard_writer
from raypq.data.store.snapshot import Snapshot
from raypq.execution.executor import Executor, TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.stages.retrieval.pair_search import (
    BlockGroups,
    PairPlan,
    PairSearch,
    PairTask,
    blocks_of_pairs,
    choose_join,
    pair_plan,
    pair_tasks,
    too_many,
)
from raypq.stages.stores.code_store import (
    open_store,
)
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask
from raypq.stages.stores.work_id import duplicates_work

_MANY = 0.05  # share of all pairs that near-duplicates hardly are
_FEW = 20  # images, of which most pairs may well be near


@dataclass(frozen=True, kw_only=True)
class JoinTask:
    """The result file, to be written from those of pair tasks."""

    shard: Shard
    work: str
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shard.uri


@dataclass(frozen=True, kw_only=True)
class PairFile:
    """Pairs of one task: the path of their file (None without pairs), and their number."""

    path: str | None
    count: int


class PairWorker(PairSearch):
    """Compares groups of shards, and writes the result file."""

    def compare(self, task: PairTask, groups: BlockGroups) -> PairFile:
        """Writes the pairs of two groups, or within one, to an intermediate file."""
        plan = self.plan
        first, second = self.read_sides(task, groups)
        parts: list[pa.Table] = []
        count = 0
        for i, j, score in self.near_pairs(task, first, second):
            part = pairs.table(first.ids.take(i), second.ids.take(j), pa.array(score))
            parts.append(part)
            count += len(part)
            if count > plan.max_pairs:
                raise too_many(plan.max_pairs)
        if not count:
            return PairFile(path=None, count=0)
        path = intermediate.write(plan.store, pa.concat_tables(parts))
        return PairFile(path=path, count=count)

    def join(self, task: JoinTask) -> shard_writer.Receipt:
        """Writes the result file."""
        plan = self.plan
        parts = [intermediate.read(plan.store, path) for path in task.paths]
        metadata = {
            "raypq.model": plan.model.fingerprint,
            "raypq.metric": plan.metric,
            "raypq.threshold": repr(plan.threshold),
        }
        schema = pairs.schema(plan.id_type, metadata)
        ordered = pairs.ordered(parts, plan.id_type).cast(schema)
        return shard_writer.write_shard(
            plan.store,
            task.shard,
            model=plan.model.fingerprint,
            work=task.work,
            schema=schema,
            batches=ordered.combine_chunks().to_batches(shard_writer.ROW_GROUP),
            options=pairs.WRITE_OPTIONS,
        )


def near_duplicates(job: DuplicatesJob, executor: Executor) -> Snapshot:
    """Finds the pairs; returns the new version of the result store, which has one file.

    Raises:
        ConfigError: a threshold that no pair can reach.
        InputError: an empty store, or more pairs than allowed.
        ModelError: several models made the codes, whose distances are meaningless.
        JobError: some code shards could not be read.
    """
    record = RunRecord(job, executor)
    version = open_store(job.codes, job.version)
    plan = pair_plan(job, version)
    run = _plan_run(job, plan, version)
    if finished := run.unchanged_version():
        return finished
    plan = replace(plan, join=choose_join(job, plan, version))
    blocks = blocks_of_pairs(job.codes, plan, version)

    def summarise(receipts: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("compare")
        _say_pairs(plan, sum(receipt.rows for receipt in receipts), version.rows)
        return {
            "codes": job.codes,
            "codes_version": version.version,
            "rows": version.rows,
            "metric": plan.metric,
            "threshold": job.threshold,
            "run": record.summary(),
        }

    with (
        executor.start_workers(PairWorker, plan, stage="pair") as pool,
        record.observe(pool),
    ):
        return run.execute(
            lambda tasks: _pairs(plan, blocks, pool, tasks),
            on_bad_shard=job.on_bad_shard,
            on_result=lambda receipt: receipt,
            summarise=summarise,
        )


def _say_pairs(plan: PairPlan, count: int, rows: int) -> None:
    """Says what the threshold means, and warns where it takes many of all pairs."""
    what = (
        "a squared distance of at most" if plan.metric == "l2" else f"a {plan.metric} of at least"
    )
    text = f"{count:,} pairs of {rows:,} images with {what} {plan.threshold:g}"
    console.say(text)
    if rows > _FEW and count > _MANY * rows * (rows - 1) / 2:
        console.warn(
            f"{text} are many; use a stricter threshold, or --metric cosine (metric: cosine) with "
            "one near 1"
        )


def _plan_run(job: DuplicatesJob, plan: PairPlan, version: Snapshot) -> StoreRun:
    """The run, whose one shard is the whole code store."""
    model = plan.model.fingerprint
    codes = [receipt.sha256 for receipt in version.shards]
    work = duplicates_work(model, job, metric=plan.metric, codes=codes)
    shard = Shard(index=0, uri=job.codes, stem="pairs", size=0, modified="")
    task = ShardTask(shard=shard, model=model, work=work)
    return StoreRun.plan(
        kind="pairs", store=job.output, tasks=[task], on_bad_shard=job.on_bad_shard
    )


def _pairs(
    plan: PairPlan, blocks: BlockGroups, pool: WorkerPool[PairWorker], tasks: Sequence[ShardTask]
) -> Iterator[TaskResult[shard_writer.Receipt]]:
    """The receipt of each task (there is one), by two passes."""
    for index, task in enumerate(tasks):
        files = _compare(plan, blocks, pool)
        paths = tuple(file.path for file in files if file.path is not None)
        join_task = JoinTask(shard=task.shard, work=task.work, paths=paths)
        for result in pool.map(PairWorker.join, [join_task]):
            yield replace(result, index=index)
        for path in paths:
            delete(join(plan.store, path))


def _compare(plan: PairPlan, blocks: BlockGroups, pool: WorkerPool[PairWorker]) -> list[PairFile]:
    """The pairs of every two blocks, in the order of the tasks.

    Raises:
        JobError: a task failed; pairs from a part of the store would look complete.
        InputError: more pairs than allowed.
    """
    tasks = pair_tasks(plan, blocks)
    files: list[PairFile] = []
    count = 0
    results = pool.map(PairWorker.compare, tasks, blocks, ordered=True)
    for part in completed(results, total=len(tasks), label="compare", unit="pairs of blocks"):
        files.append(part)
        count += part.count
        if count > plan.max_pairs:
            raise too_many(plan.max_pairs)
    return files
