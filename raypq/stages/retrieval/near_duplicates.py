"""Near-duplicates: every pair of stored codes within a threshold, by symmetric distance.

All pairs of blocks of rows are compared (DPQ section 4: all pairwise distances), N²/2 distances in
all. The range kernel finds candidates, with the codes of one side decoded as queries; symmetric
tables [M, K, K] then give their scores. So the result depends neither on the shards, nor on the
workers, nor on which code of a pair was the query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console, kernels
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
from raypq.stages.retrieval.code_blocks import CodeBlock, groups, read_block
from raypq.stages.stores.code_store import (
    id_type_of,
    metric_of,
    models_for,
    open_store,
    warn_of_codes_for_classes,
)
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.work_id import duplicates_work

_GROUP_ROWS = 1 << 17  # rows of each side of a task
_MANY = 0.05  # share of all pairs that near-duplicates hardly are
_FEW = 20  # images, of which most pairs may well be near
# Rows of each side that are compared at once: less than 1 GB even if all pairs are within the
# threshold. There are never fewer stored rows than query rows.
_QUERY_ROWS, _STORED_ROWS = 512, 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class PairPlan:
    """Settings of a run that all its tasks share.

    Attributes:
        id_type: of the store. max_pairs: pairs that are allowed in all.
    """

    store: str
    model: Model
    id_type: pa.DataType
    metric: Metric
    threshold: float
    max_pairs: int
    device: str


Groups = Sequence[tuple[Shard, ...]]  # of shards; a task compares two of them


@dataclass(frozen=True, kw_only=True)
class PairTask:
    """Two groups of shards, by index; or one and None, for the pairs within it.

    The groups themselves are shared, since n groups give n²/2 tasks.
    """

    name: str
    first: int
    second: int | None


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


class PairWorker:
    """Compares groups of shards, and writes the result file."""

    def __init__(self, plan: PairPlan) -> None:
        self._plan = plan
        self._symmetric = SymmetricTables(plan.model.C, plan.metric)

    def compare(self, task: PairTask, groups: Groups) -> PairFile:
        """Writes the pairs of two groups, or within one, to an intermediate file."""
        plan = self._plan
        first = second = self._read(groups[task.first])
        if task.second is not None:
            second = self._read(groups[task.second])
        parts: list[pa.Table] = []
        count = 0
        for i, j, score in self._near_pairs(first, second, same=task.second is None):
            part = pairs.table(first.ids.take(i), second.ids.take(j), pa.array(score))
            parts.append(part)
            count += len(part)
            if count > plan.max_pairs:
                raise too_many(plan.max_pairs)
        if not count:
            return PairFile(path=None, count=0)
        path = intermediate.write(plan.store, pa.concat_tables(parts))
        return PairFile(path=path, count=count)

    def _read(self, shards: Sequence[Shard]) -> CodeBlock:
        plan = self._plan
        models = {plan.model.fingerprint: plan.model}
        return CodeBlock.join([read_block(shard, models, plan.id_type) for shard in shards])

    def _near_pairs(
        self, first: CodeBlock, second: CodeBlock, *, same: bool
    ) -> Iterator[tuple[pa.Array, pa.Array, NDArray[np.float32]]]:
        """Pairs within the threshold: rows of the first and the second block, and their scores."""
        plan = self._plan
        threshold = np.float32(plan.threshold)
        tolerance = 2.0**-20 * abs(plan.threshold) + self._symmetric.tolerance
        min_score = (-plan.threshold if plan.metric == "l2" else plan.threshold) - tolerance
        for start in range(0, len(first.B), _QUERY_ROWS):
            A = first.B[start : start + _QUERY_ROWS]
            tables = plan.model.tables(plan.model.decode(A), None, plan.metric)
            for at in range(start if same else 0, len(second.B), _STORED_ROWS):
                B = second.B[at : at + _STORED_ROWS]
                # Within one block, the first stored rows are the query rows themselves.
                i, j, _ = kernels.range_search(
                    B, tables, min_score, upper_triangle=same and at == start, device=plan.device
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


def too_many(max_pairs: int) -> InputError:
    """The error where more than ``max_pairs`` pairs are within the threshold."""
    return InputError(
        "threshold",
        expected=f"at most {max_pairs:,} pairs within it (max_pairs)",
        found="more; a narrower threshold gives fewer",
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
    plan = _plan(job, version)
    run = _plan_run(job, plan, version)
    if finished := run.unchanged_version():
        return finished
    rows = [receipt.rows for receipt in version.shards]
    blocks = groups(stored_shards(job.codes, version), rows, max_rows=_GROUP_ROWS)

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


def _plan(job: DuplicatesJob, version: Snapshot) -> PairPlan:
    models = models_for(job.codes, version, job.model)
    if len(models) > 1:
        raise ModelError(
            job.codes,
            expected="codes of one model, to compare them with each other",
            found=f"{len(models)} models; encode all of the store with one",
        )
    (model,) = models.values()
    if model.stores_classes:
        raise ModelError(
            job.codes,
            expected="codes of images",
            found=f"codes of class probabilities ({model.method}), which are as near for two "
            "images of one class as for duplicates; encode with another model, such as pq or opq, "
            "or train with codes=parts",
        )
    metric = metric_of(models, job.metric)
    warn_of_codes_for_classes(job.codes, models)
    if metric == "l2" and job.threshold < 0:
        raise ConfigError(f"threshold: an l2 distance is at least 0, found {job.threshold}")
    return PairPlan(
        store=job.output,
        model=next(iter(models.values())),
        id_type=id_type_of(job.codes, version),
        metric=metric,
        threshold=job.threshold,
        max_pairs=job.max_pairs,
        device=job.where.device,
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
    plan: PairPlan, blocks: Groups, pool: WorkerPool[PairWorker], tasks: Sequence[ShardTask]
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


def _compare(plan: PairPlan, blocks: Groups, pool: WorkerPool[PairWorker]) -> list[PairFile]:
    """The pairs of every two blocks, in the order of the tasks.

    Raises:
        JobError: a task failed; pairs from a part of the store would look complete.
        InputError: more pairs than allowed.
    """
    tasks = [
        PairTask(name=block[0].uri, first=i, second=None if i == j else j)
        for i, block in enumerate(blocks)
        for j in range(i, len(blocks))
    ]
    files: list[PairFile] = []
    count = 0
    results = pool.map(PairWorker.compare, tasks, blocks, ordered=True)
    for part in completed(results, total=len(tasks), label="compare", unit="pairs of blocks"):
        files.append(part)
        count += part.count
        if count > plan.max_pairs:
            raise too_many(plan.max_pairs)
    return files
