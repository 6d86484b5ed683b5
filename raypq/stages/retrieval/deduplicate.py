"""Groups of near-duplicates, and what to keep of each.

Images that near pairs connect are a group. Pairs are found as by ``near_duplicates``, except that
the first of several images with equal codes stands for the others. Workers write pairs as numbers
of rows; one of them connects the rows, then reads the ids and codes of those in groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raypq import console
from raypq.config import DeduplicateJob
from raypq.data.id_list import IdList, unknown_ids_message
from raypq.data.storage import Shard, delete, digest, exists, join
from raypq.data.store import shard_writer
from raypq.data.store.snapshot import Snapshot
from raypq.execution.executor import Executor, TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.stages.retrieval.group_worker import Grouped, GroupTask, GroupWorker
from raypq.stages.retrieval.pair_plan import (
    PairPlan,
    blocks_of_pairs,
    choose_join,
    pair_plan,
    pair_tasks,
)
from raypq.stages.stores.code_store import open_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.work_id import deduplicate_work


def deduplicate(job: DeduplicateJob, executor: Executor) -> Snapshot:
    """Finds the groups; returns the new version of the result store, which has one file.

    Raises:
        ConfigError, InputError, ModelError, JobError: as ``near_duplicates``.
    """
    record = RunRecord(job, executor)
    version = open_store(job.codes, job.version)
    plan = pair_plan(job, version)
    prefer = None if job.prefer is None else IdList.read(job.prefer)
    run = _plan_run(job, plan, version, prefer)
    lists = {"keep_list": job.keep_list, "drop_list": job.drop_list}
    unwritten = {name for name, uri in lists.items() if uri and not _as_written(run, name, uri)}
    if not unwritten and (finished := run.unchanged_version()):
        return finished
    plan = replace(plan, join=choose_join(job, plan, [(job.codes, version)]))
    numbers: list[Grouped] = []

    def receipt_of(result: Grouped) -> shard_writer.Receipt:
        numbers.append(result)
        return result.receipt

    def summarise(receipts: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("connect")
        return {
            "codes": job.codes,
            "codes_version": version.version,
            "rows": version.rows,
            "metric": plan.metric,
            "threshold": job.threshold,
            **_said(job, prefer, numbers, sum(receipt.rows for receipt in receipts), version.rows),
            "run": record.summary(),
        }

    with (
        executor.start_workers(GroupWorker, plan, stage="pair") as pool,
        record.observe(pool),
    ):
        return run.execute(
            lambda tasks: _groups(job, plan, version, prefer, pool, tasks),
            on_bad_shard="fail",
            on_result=receipt_of,
            summarise=summarise,
            reprocess=lambda run: set(run.kept) if unwritten else (),
        )


def _as_written(run: StoreRun, name: str, uri: str) -> bool:
    """Whether a list is as the last version's run wrote it."""
    written = (run.latest.summary if run.latest else {}).get("lists", {}).get(name)
    return bool(written and exists(uri) and digest(uri) == written["sha256"])


def _said(
    job: DeduplicateJob,
    prefer: IdList | None,
    numbers: Sequence[Grouped],
    members: int,
    rows: int,
) -> dict[str, Any]:
    """Says what was found; the numbers of a version's summary."""
    if not numbers:  # of an interrupted run, whose file was kept
        return {"members": members}
    (found,) = numbers
    if prefer is not None and len(found.unknown):
        total = len(prefer.ids)
        console.warn(unknown_ids_message(prefer.uri, found.unknown, total, job.codes))
    if len(found.repeated):
        console.warn(
            f"{job.drop_list}: {len(found.repeated):,} ids of dropped images are left out, since "
            f"images that are kept have them, too, such as {found.repeated[0].as_py()!r}: ids "
            f"repeat in {job.codes} (raypq snapshots verify shows them)"
        )
    console.say(
        f"{found.groups:,} groups of {members:,} images, the largest of {found.largest:,}; without "
        f"{found.dropped:,} near-duplicates, {rows - found.dropped:,} of {rows:,} images are left"
    )
    return {
        "members": members,
        "groups": found.groups,
        "dropped": found.dropped,
        "largest": found.largest,
        "lists": found.lists,
    }


def _plan_run(
    job: DeduplicateJob, plan: PairPlan, version: Snapshot, prefer: IdList | None
) -> StoreRun:
    """The run, whose one shard is the whole code store."""
    model = plan.model.fingerprint
    codes = [receipt.sha256 for receipt in version.shards]
    preferred = None if prefer is None else prefer.work_digest(plan.id_type)
    work = deduplicate_work(model, job, metric=plan.metric, codes=codes, prefer=preferred)
    shard = Shard(index=0, uri=job.codes, stem="groups", size=0, modified="")
    task = ShardTask(shard=shard, model=model, work=work)
    return StoreRun.plan(kind="groups", store=job.output, tasks=[task])


def _groups(
    job: DeduplicateJob,
    plan: PairPlan,
    version: Snapshot,
    prefer: IdList | None,
    pool: WorkerPool[GroupWorker],
    tasks: Sequence[ShardTask],
) -> Iterator[TaskResult[Grouped]]:
    """The groups of each task (there is one), by two passes."""
    counts = [receipt.rows for receipt in version.shards]
    files = list(zip(stored_shards(job.codes, version), counts, strict=True))
    rows = {shard.uri: count for shard, count in files}
    blocks = blocks_of_pairs(job.codes, plan, version)
    sizes = [sum(rows[shard.uri] for shard in block) for block in blocks]
    starts = [0, *np.cumsum(sizes).tolist()]
    preferred = pa.array([], plan.id_type)
    if prefer is not None:
        preferred = prefer.of_type(plan.id_type)
    if (job.keep_list or job.drop_list) and pa.types.is_string(plan.id_type):
        once = [task for task in pair_tasks(plan, blocks) if task.second is None and not task.parts]
        checked = pool.map(GroupWorker.check_ids, once, blocks)
        for _ in completed(checked, total=len(once), label="check ids", unit="blocks"):
            pass
    for index, task in enumerate(tasks):
        pairs = pair_tasks(plan, blocks)
        results = pool.map(GroupWorker.connect, pairs, blocks, starts, ordered=True)
        found = completed(results, total=len(pairs), label="connect", unit="pairs of blocks")
        paths = [path for part in found for path in part]
        group = GroupTask(
            shard=task.shard,
            work=task.work,
            paths=tuple(paths),
            keep_list=job.keep_list,
            drop_list=job.drop_list,
        )
        for result in pool.map(GroupWorker.group, [group], files, preferred):
            yield replace(result, index=index)
        for path in paths:
            delete(join(plan.store, path))
