"""Near-duplicates: every pair of stored codes within a threshold, as a store of pairs.

Two passes: workers find the pairs of every two blocks of codes, and write them partitioned by their
first id; then they write the result files, each of which has some partitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raypq import console
from raypq.config import DuplicatesJob
from raypq.data import intermediate, pairs
from raypq.data.duplicate_ids import hashes
from raypq.data.storage import Shard, canonical, file_size, join
from raypq.data.store import runs, shard_writer
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, ModelError
from raypq.execution.executor import Executor, TaskResult, WorkerPool
from raypq.execution.run_record import RunRecord
from raypq.stages.retrieval.duplicates.pair_originals import LeftOut
from raypq.stages.retrieval.duplicates.pair_parts import (
    PairPart,
    PairParts,
    find_parts,
    result_tasks,
    unchanged_version,
)
from raypq.stages.retrieval.duplicates.pair_plan import (
    BlockGroups,
    PairPlan,
    PairTask,
    StoreVersion,
    allowing,
    blocks_of_pairs,
    choose_join,
    pair_plan,
    pair_tasks,
)
from raypq.stages.retrieval.duplicates.pair_search import PairSearch
from raypq.stages.stores.code_store import id_type_of, open_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.work_id import duplicates_work

_MANY = 0.05  # share of all pairs that near-duplicates hardly are
_FEW = 20  # images, of which most pairs may well be near
_PARTITIONS = 256
_FILE_PAIRS = 4_000_000  # of a result file, about, which are sorted in memory


@dataclass(frozen=True, kw_only=True)
class ResultTask:
    """A result file, to be written from some partitions of all intermediate files."""

    shard: Shard
    work: str
    partitions: range

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shard.uri


class PairWorker(PairSearch):
    """Compares groups of shards, and writes result files."""

    def compare(self, task: PairTask, groups: BlockGroups) -> PairPart:
        """Writes the pairs of two groups, or within one, to an intermediate file."""
        plan = self.plan
        first, second = self.read_sides(task, groups)
        schema, left_out = pairs.schema(plan.id_type, plan.other_type), LeftOut()
        with intermediate.partitioned(plan.store, schema, _PARTITIONS) as file:
            for i, j, score in self.near_pairs(task, first, second, left_out):
                a = first.ids.take(i).cast(plan.id_type)
                b = second.ids.take(j).cast(plan.other_type)
                part = pairs.table(a, b, pa.array(score), within=not plan.across)
                file.write(part, _partition(part["id_a"].combine_chunks()))
                if file.rows > plan.max_pairs:
                    break
        size = file_size(join(plan.store, file.path))
        return PairPart(
            key=task.key, path=file.path, bytes=size, pairs=file.rows, left_out=left_out.pairs
        )

    def write(self, task: ResultTask, paths: Sequence[str]) -> shard_writer.Receipt:
        """Writes a result file."""
        plan = self.plan
        plain = pairs.schema(plan.id_type, plan.other_type)
        found = intermediate.read_partitions(plan.store, paths, plain, _PARTITIONS, task.partitions)
        schema = pairs.schema(plan.id_type, plan.other_type, plan.metadata)
        ordered = pairs.ordered(found).cast(schema)
        return shard_writer.write_shard(
            plan.store,
            task.shard,
            model=plan.model.fingerprint,
            work=task.work,
            schema=schema,
            batches=ordered.combine_chunks().to_batches(shard_writer.ROW_GROUP),
            options=pairs.WRITE_OPTIONS,
        )


def _partition(ids: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The partition of each pair [n], by its first id."""
    return (hashes(ids) >> np.uint64(56)).astype(np.int64)


def near_duplicates(job: DuplicatesJob, executor: Executor) -> Snapshot:
    """Finds the pairs; returns the new version of the result store.

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
        if [item.path for item in other.shards] == [item.path for item in version.shards]:
            raise ConfigError(
                f"against: {job.against} has the same files as --codes (codes), {job.codes}; leave "
                "it out, to find the pairs within it"
            )
        plan = replace(plan, other_type=_type_of_other(job.against, other, plan), across=True)
        plan = allowing(plan, job, float(version.rows) * other.rows)
        stores.append((job.against, other))
    work = _work(job, plan, stores)
    if finished := unchanged_version("pairs", job.output, work):
        return finished
    plan = replace(plan, join=choose_join(job, plan, stores))
    with (
        runs.active(job.output, "compare"),
        executor.start_workers(PairWorker, plan, stage="pair") as pool,
        record.observe(pool),
    ):
        parts = _find(plan, stores, work, pool)
        files = min(_PARTITIONS, -(-parts.pairs // _FILE_PAIRS) or 1)
        run = StoreRun.plan(
            kind="pairs",
            store=job.output,
            tasks=result_tasks(job.codes, "pairs", plan.model.fingerprint, work, files),
            on_bad_shard=job.on_bad_shard,
        )

        def summarise(_: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
            record.end_of_work("compare")
            return _summary(job, plan, stores, parts) | {"run": record.summary()}

        result = run.execute(
            lambda tasks: _write(parts.paths, files, pool, tasks),
            on_bad_shard=job.on_bad_shard,
            on_result=lambda receipt: receipt,
            summarise=summarise,
        )
        parts.remove()
    return result


def _type_of_other(store: str, version: Snapshot, plan: PairPlan) -> pa.DataType:
    """The type of the ids of a store that is compared with the first.

    Raises:
        ModelError: codes of another model.
    """
    others = set(version.shards.totals.models) - {plan.model.fingerprint}
    if others:
        raise ModelError(
            store,
            expected=f"codes of the model of --codes, {plan.model.fingerprint[:12]}, to compare "
            "them with each other",
            found=f"some of model {min(others)[:12]}; encode it with the same one",
        )
    return id_type_of(store, version)


def _say_pairs(plan: PairPlan, parts: PairParts, rows: Sequence[int]) -> None:
    """Says what the threshold means, and warns where it takes many of all pairs."""
    count = parts.pairs
    what = (
        "a squared distance of at most" if plan.metric == "l2" else f"a {plan.metric} of at least"
    )
    images = " and ".join(f"{n:,}" for n in rows)
    text = f"{count:,} pairs of {images} images with {what} {plan.threshold:g}"
    console.say(text)
    if plan.originals is not None:
        candidates = count + parts.left_out
        console.say(
            f"of {candidates:,} pairs by their codes, {_precision(parts):.1%} are near by their "
            "original vectors, too"
        )
    if sum(rows) > _FEW and count > _MANY * plan.compared:
        console.warn(
            f"{text} are many; use a stricter threshold, or --metric cosine (metric: cosine) with "
            "one near 1"
        )


def _precision(parts: PairParts) -> float:
    """The share of pairs by their codes that their original vectors confirm; 1 without any."""
    return parts.pairs / max(1, parts.pairs + parts.left_out) if parts.left_out else 1.0


def _summary(
    job: DuplicatesJob, plan: PairPlan, stores: Sequence[StoreVersion], parts: PairParts
) -> dict[str, Any]:
    """Says what was found; the summary of the version."""
    (_, version), *_ = stores
    _say_pairs(plan, parts, [of.rows for _, of in stores])
    summary: dict[str, Any] = {
        "codes": job.codes,
        "codes_version": version.version,
        "rows": version.rows,
        "metric": plan.metric,
        "threshold": job.threshold,
    }
    if job.against is not None:
        summary["against"] = job.against
    if plan.originals is not None:
        candidates = parts.pairs + parts.left_out
        summary["rerank"] = {"candidates": candidates, "precision": _precision(parts)}
    return summary


def _work(job: DuplicatesJob, plan: PairPlan, stores: Sequence[StoreVersion]) -> str:
    codes, *others = ([receipt.sha256 for receipt in version.shards] for _, version in stores)
    return duplicates_work(
        plan.model.fingerprint,
        job,
        metric=plan.metric,
        codes=codes,
        against=others[0] if others else None,
        originals=plan.originals or (),
    )


def _find(
    plan: PairPlan, stores: Sequence[StoreVersion], work: str, pool: WorkerPool[PairWorker]
) -> PairParts:
    """The pairs of every two blocks.

    Raises:
        JobError: a task failed.
        InputError: more pairs than allowed.
    """
    own, *others = (
        blocks_of_pairs(plan, stored_shards(store, of), [receipt.rows for receipt in of.shards])
        for store, of in stores
    )
    blocks: BlockGroups = [*own, *(block for part in others for block in part)]
    return find_parts(
        plan.store,
        work,
        pool,
        PairWorker.compare,
        pair_tasks(plan, blocks, len(own) if others else None),
        blocks,
        plan_of_tasks=plan.plan_of_tasks,
        label="compare",
        most=plan.max_pairs,
        error=plan.too_many,
    )


def _write(
    paths: Sequence[str], files: int, pool: WorkerPool[PairWorker], tasks: Sequence[ShardTask]
) -> Iterator[TaskResult[shard_writer.Receipt]]:
    """The receipt of each result file, of which there are so many in all."""
    ends = [_PARTITIONS * number // files for number in range(files + 1)]
    results = [
        ResultTask(
            shard=task.shard,
            work=task.work,
            partitions=range(ends[task.shard.index], ends[task.shard.index + 1]),
        )
        for task in tasks
    ]
    return pool.map(PairWorker.write, results, paths)
