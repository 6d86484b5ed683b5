"""Near-duplicates: every pair of stored codes within a threshold, as a store of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raypq import console
from raypq.config import DuplicatesJob
from raypq.data import intermediate, pairs
from raypq.data.storage import Shard, canonical, delete, join
from raypq.data.store import shard_writer
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, ModelError
from raypq.execution.executor import Executor, TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.stages.retrieval.pair_plan import (
    BlockGroups,
    PairPlan,
    PairTask,
    StoreVersion,
    blocks_of_pairs,
    choose_join,
    pair_plan,
    pair_tasks,
    too_many,
)
from raypq.stages.retrieval.pair_search import PairSearch
from raypq.stages.stores.code_store import id_type_of, open_store
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
            a, b = first.ids.take(i), second.ids.take(j)
            part = pairs.table(a, b, pa.array(score), within=not plan.across)
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
        schema = pairs.schema(plan.id_type, plan.other_type, plan.metadata)
        ordered = pairs.ordered(parts, schema).cast(schema)
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
        ConfigError: a threshold that no pair can reach, or a store against itself.
        InputError: an empty store, or more pairs than allowed.
        ModelError: several models made the codes, whose distances are meaningless.
        JobError: some code shards could not be read.
    """
    record = RunRecord(job, executor)
    version = open_store(job.codes, job.version)
    plan = pair_plan(job, version)
    stores = [(job.codes, version)]
    if job.against is not None:
        if canonical(job.against) == canonical(job.codes):
            raise ConfigError(
                "against: it is the store of --codes (codes), where each image would be a pair "
                "with itself; leave it out, to find the pairs within it"
            )
        other = open_store(job.against, None)
        plan = replace(plan, other_type=_type_of_other(job.against, other, plan), across=True)
        stores.append((job.against, other))
    run = _plan_run(job, plan, stores)
    if finished := run.unchanged_version():
        return finished
    plan = replace(plan, join=choose_join(job, plan, stores))
    own, *others = (blocks_of_pairs(store, plan, of) for store, of in stores)
    blocks = [*own, *(block for part in others for block in part)]

    def summarise(receipts: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("compare")
        _say_pairs(plan, sum(receipt.rows for receipt in receipts), [of.rows for _, of in stores])
        against = {} if job.against is None else {"against": job.against}
        return {
            "codes": job.codes,
            "codes_version": version.version,
            **against,
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
            lambda tasks: _pairs(plan, blocks, len(own) if others else None, pool, tasks),
            on_bad_shard=job.on_bad_shard,
            on_result=lambda receipt: receipt,
            summarise=summarise,
        )


def _type_of_other(store: str, version: Snapshot, plan: PairPlan) -> pa.DataType:
    """The type of the ids of a store that is compared with the first.

    Raises:
        ModelError: codes of another model.
    """
    others = {receipt.model for receipt in version.shards} - {plan.model.fingerprint}
    if others:
        raise ModelError(
            store,
            expected=f"codes of the model of --codes, {plan.model.fingerprint[:12]}, to compare "
            "them with each other",
            found=f"some of model {min(others)[:12]}; encode it with the same one",
        )
    return id_type_of(store, version)


def _say_pairs(plan: PairPlan, count: int, rows: Sequence[int]) -> None:
    """Says what the threshold means, and warns where it takes many of all pairs."""
    what = (
        "a squared distance of at most" if plan.metric == "l2" else f"a {plan.metric} of at least"
    )
    images = " and ".join(f"{n:,}" for n in rows)
    text = f"{count:,} pairs of {images} images with {what} {plan.threshold:g}"
    console.say(text)
    possible = math.prod(rows) if len(rows) > 1 else rows[0] * (rows[0] - 1) / 2
    if sum(rows) > _FEW and count > _MANY * possible:
        console.warn(
            f"{text} are many; use a stricter threshold, or --metric cosine (metric: cosine) with "
            "one near 1"
        )


def _plan_run(job: DuplicatesJob, plan: PairPlan, stores: Sequence[StoreVersion]) -> StoreRun:
    """The run, whose one shard is the whole code store."""
    model = plan.model.fingerprint
    codes, *others = ([receipt.sha256 for receipt in version.shards] for _, version in stores)
    against = others[0] if others else None
    work = duplicates_work(model, job, metric=plan.metric, codes=codes, against=against)
    shard = Shard(index=0, uri=job.codes, stem="pairs", size=0, modified="")
    task = ShardTask(shard=shard, model=model, work=work)
    return StoreRun.plan(
        kind="pairs", store=job.output, tasks=[task], on_bad_shard=job.on_bad_shard
    )


def _pairs(
    plan: PairPlan,
    blocks: BlockGroups,
    own: int | None,
    pool: WorkerPool[PairWorker],
    tasks: Sequence[ShardTask],
) -> Iterator[TaskResult[shard_writer.Receipt]]:
    """The receipt of each task (there is one), by two passes."""
    for index, task in enumerate(tasks):
        files = _compare(plan, blocks, own, pool)
        paths = tuple(file.path for file in files if file.path is not None)
        join_task = JoinTask(shard=task.shard, work=task.work, paths=paths)
        for result in pool.map(PairWorker.join, [join_task]):
            yield replace(result, index=index)
        for path in paths:
            delete(join(plan.store, path))


def _compare(
    plan: PairPlan, blocks: BlockGroups, own: int | None, pool: WorkerPool[PairWorker]
) -> list[PairFile]:
    """The pairs of every two blocks, in the order of the tasks; ``own`` as in ``pair_tasks``.

    Raises:
        JobError: a task failed; pairs from a part of the store would look complete.
        InputError: more pairs than allowed.
    """
    tasks = pair_tasks(plan, blocks, own)
    files: list[PairFile] = []
    count = 0
    results = pool.map(PairWorker.compare, tasks, blocks, ordered=True)
    for part in completed(results, total=len(tasks), label="compare", unit="pairs of blocks"):
        files.append(part)
        count += part.count
        if count > plan.max_pairs:
            raise too_many(plan.max_pairs)
    return files
