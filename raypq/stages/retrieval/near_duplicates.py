"""Near-duplicates: every pair of stored codes within a threshold, by symmetric distance.

All pairs of blocks of rows are compared (DPQ section 4: all pairwise distances), N²/2 distances in
all. The range kernel finds what may be within reach, codes of one side decoded as queries; the
tables [M, K, K] of both sides then say the score. So the result depends neither on the shards nor
on the workers, nor on which of a pair asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import DuplicatesJob, Metric
from raypq.data import intermediate, pairs
from raypq.data.storage import Shard, delete, join
from raypq.data.store import shard_writer
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, ModelError
from raypq.execution.executor import Executor, TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.kernels.sdc import SymmetricTables
from raypq.methods.base import Model
from raypq.stages.retrieval.code_blocks import CodeBlock, groups, id_type_of, read_block
from raypq.stages.stores.code_store import metric_of, models_for, open_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.work_id import duplicates_work

_GROUP_ROWS = 1 << 17  # rows of a side of a task
# Rows compared at once: should all pairs be within, under 1 GB. Never fewer asked than asking.
_ASKING, _ASKED = 512, 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class PairPlan:
    """What holds for a whole run.

    Attributes:
        most: pairs that are allowed in all. id_type: of the store.
    """

    store: str
    model: Model
    id_type: pa.DataType
    metric: Metric
    threshold: float
    most: int
    device: str


Groups = Sequence[tuple[Shard, ...]]  # of shards that are compared together


@dataclass(frozen=True, kw_only=True)
class PairTask:
    """Two groups of shards, by number; or one and None, for the pairs within it.

    The groups themselves are shared: a store has N² / 2 tasks.
    """

    name: str
    one: int
    other: int | None


@dataclass(frozen=True, kw_only=True)
class JoinTask:
    """The result file, from what the pair tasks found."""

    shard: Shard
    work: str
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.shard.uri


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a pair task found: a file of so many pairs, or none."""

    path: str | None
    count: int


class PairWorker:
    """Compares groups of rows; writes the result."""

    def __init__(self, plan: PairPlan) -> None:
        self._plan = plan
        self._symmetric = SymmetricTables(plan.model.C, plan.metric)

    def compare(self, task: PairTask, groups: Groups) -> Found:
        """The pairs of two groups, or within one."""
        plan = self._plan
        one = other = self._read(groups[task.one])
        if task.other is not None:
            other = self._read(groups[task.other])
        parts: list[pa.Table] = []
        count = 0
        for i, j, score in self._within(one, other, same=task.other is None):
            part = pairs.table(one.ids.take(i), other.ids.take(j), pa.array(score))
            parts.append(part)
            count += len(part)
            if count > plan.most:
                raise too_many(plan.most)
        if not count:
            return Found(path=None, count=0)
        path = intermediate.write(plan.store, pa.concat_tables(parts))
        return Found(path=path, count=count)

    def _read(self, shards: Sequence[Shard]) -> CodeBlock:
        plan = self._plan
        models = {plan.model.fingerprint: plan.model}
        return CodeBlock.join([read_block(shard, models, plan.id_type) for shard in shards])

    def _within(
        self, one: CodeBlock, other: CodeBlock, *, same: bool
    ) -> Iterator[tuple[pa.Array, pa.Array, NDArray[np.float32]]]:
        """Rows of the two blocks and their score, pair by pair."""
        plan = self._plan
        threshold = np.float32(plan.threshold)
        slack = 2.0**-20 * abs(plan.threshold) + self._symmetric.tolerance
        least = (-plan.threshold if plan.metric == "l2" else plan.threshold) - slack
        for start in range(0, len(one.B), _ASKING):
            A = one.B[start : start + _ASKING]
            tables = plan.model.tables(plan.model.decode(A), None, plan.metric)
            begin = start if same else 0
            for at in range(begin, len(other.B), _ASKED):
                B = other.B[at : at + _ASKED]
                # Within one block the first rows asked are those that ask.
                after = same and at == start
                i, j, _ = kernels.range_search(
                    B, tables, least, upper_triangle=after, device=plan.device
                )
                score = self._symmetric(A[i], B[j])
                near = score <= threshold if plan.metric == "l2" else score >= threshold
                if near.any():
                    yield pa.array(i[near] + start), pa.array(j[near] + at), score[near]

    def join(self, task: JoinTask) -> shard_writer.Receipt:
        """Writes the result file."""
        plan = self._plan
        parts = [intermediate.read(plan.store, path) for path in task.paths]
        metadata = {
            "raypq.model": plan.model.fingerprint,
            "raypq.metric": plan.metric,
            "raypq.threshold": repr(plan.threshold),
        }
        schema = pairs.schema(plan.id_type, metadata)
        found = pairs.ordered(parts, plan.id_type).cast(schema)
        return shard_writer.write_shard(
            plan.store,
            task.shard,
            model=plan.model.fingerprint,
            work=task.work,
            schema=schema,
            batches=found.combine_chunks().to_batches(shard_writer.ROW_GROUP),
            options=pairs.WRITE_OPTIONS,
        )


def too_many(most: int) -> InputError:
    """The error of a threshold within which more than ``most`` pairs lie."""
    return InputError(
        "threshold",
        expected=f"at most {most:,} pairs within it (max_pairs)",
        found="more; a narrower threshold gives fewer",
    )


def duplicates(job: DuplicatesJob, executor: Executor) -> Snapshot:
    """Finds the pairs; returns the new version of the result store, which has one file.

    Raises:
        ConfigError: a threshold that no pair can have.
        InputError: an empty store, more pairs than allowed.
        ModelError: several models: distances between their codes mean nothing.
        JobError: code shards that could not be read.
    """
    record = RunRecord(job, executor)
    version = open_store(job.codes, job.version)
    models = models_for(job.codes, version, job.model)
    if len(models) > 1:
        raise ModelError(
            job.codes,
            expected="codes of one model, to compare them with each other",
            found=f"{len(models)} models; encode all of the store with one",
        )
    (model,) = models.values()
    metric = metric_of(models, job.metric)
    if metric == "l2" and job.threshold < 0:
        raise ConfigError(f"threshold: an l2 distance is at least 0, found {job.threshold}")
    plan = PairPlan(
        store=job.output,
        model=model,
        id_type=id_type_of(job.codes, version),
        metric=metric,
        threshold=job.threshold,
        most=job.max_pairs,
        device=job.where.device,
    )
    codes = [receipt.sha256 for receipt in version.shards]
    work = duplicates_work(model.fingerprint, job, metric=metric, codes=codes)
    shard = Shard(index=0, uri=job.codes, stem="pairs", size=0, modified="")
    task = ShardTask(shard=shard, model=model.fingerprint, work=work)
    run = StoreRun.plan(kind="pairs", store=job.output, tasks=[task], on_bad_shard=job.on_bad_shard)
    if finished := run.finished():
        return finished
    stored = stored_shards(job.codes, version)
    blocks = groups(stored, [receipt.rows for receipt in version.shards], most=_GROUP_ROWS)
    summary = {
        "codes": job.codes,
        "codes_version": version.version,
        "rows": version.rows,
        "metric": metric,
        "threshold": job.threshold,
    }

    def summarise(_: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("compare")
        return {**summary, "run": record.summary()}

    with (
        executor.start_workers(PairWorker, plan, stage="pair") as pool,
        record.observe(pool),
    ):
        return run.execute(
            lambda tasks: _pairs(plan, blocks, pool, tasks),
            on_bad_shard=job.on_bad_shard,
            reduce=lambda receipt: receipt,
            summarise=summarise,
        )


def _pairs(
    plan: PairPlan, blocks: Groups, pool: WorkerPool[PairWorker], tasks: Sequence[ShardTask]
) -> Iterator[TaskResult[shard_writer.Receipt]]:
    """The result file of each task (there is one), by two passes."""
    for index, task in enumerate(tasks):
        found = _compare(plan, blocks, pool)
        paths = tuple(one.path for one in found if one.path is not None)
        join_task = JoinTask(shard=task.shard, work=task.work, paths=paths)
        for result in pool.map(PairWorker.join, [join_task]):
            yield replace(result, index=index)
        for path in paths:
            delete(join(plan.store, path))


def _compare(plan: PairPlan, blocks: Groups, pool: WorkerPool[PairWorker]) -> list[Found]:
    """What every two blocks have in common, in the order of the tasks.

    Raises:
        JobError: a task failed; pairs from a part of the store would look like all.
        InputError: more pairs than allowed.
    """
    tasks = [
        PairTask(name=block[0].uri, one=i, other=None if i == j else j)
        for i, block in enumerate(blocks)
        for j in range(i, len(blocks))
    ]
    found: list[Found] = []
    count = 0
    results = pool.map(PairWorker.compare, tasks, blocks, ordered=True)
    for part in completed(results, total=len(tasks), label="compare", unit="pairs of blocks"):
        found.append(part)
        count += part.count
        if count > plan.most:
            raise too_many(plan.most)
    return found
