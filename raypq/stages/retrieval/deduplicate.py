"""Groups of near-duplicates, and what to keep of each.

Images that near pairs connect are a group. Pairs are found as by ``near_duplicates``, except that
the first of several images with equal codes stands for the others. Workers write pairs as numbers
of rows; one of them connects the rows, then reads the ids and codes of those in groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from numpy.typing import NDArray

from raypq import console
from raypq.config import DeduplicateJob
from raypq.data import duplicate_groups, intermediate
from raypq.data.id_list import IdList
from raypq.data.storage import Shard, atomic_write, delete, exists, join
from raypq.data.store import shard_writer
from raypq.data.store.snapshot import Snapshot
from raypq.execution.executor import Executor, TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.stages.retrieval.code_blocks import CodeBlock, read_block
from raypq.stages.retrieval.components import Components
from raypq.stages.retrieval.near_duplicates import (
    BlockGroups,
    PairPlan,
    PairTask,
    PairWorker,
    blocks_of_pairs,
    choose_join,
    pair_plan,
    pair_tasks,
)
from raypq.stages.stores.code_store import open_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.work_id import deduplicate_work

Rows = NDArray[np.int64]
_EDGES = pa.schema([("a", pa.int64()), ("b", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class GroupTask:
    """The groups, to be made of the pairs in some files.

    Attributes:
        files: of the code store with the number of rows of each, in the order of row numbers.
        preferred: ids that are kept where a group has one. keep_list, drop_list: text files to
            write.
    """

    shard: Shard
    work: str
    paths: tuple[str, ...]
    files: tuple[tuple[Shard, int], ...]
    preferred: pa.Array
    keep_list: str | None
    drop_list: str | None

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shard.uri


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """The receipt of the groups, and their numbers."""

    receipt: shard_writer.Receipt
    groups: int
    dropped: int
    largest: int


class GroupWorker(PairWorker):
    """Finds pairs of rows, and makes groups of them."""

    def connect(self, task: PairTask, groups: BlockGroups, starts: Sequence[int]) -> list[str]:
        """Writes the pairs of two blocks, or within one, as row numbers; returns the paths."""
        first, second = self.read_sides(task, groups)
        at_first = starts[task.first]
        at_second = at_first if task.second is None else starts[task.second]
        paths = []
        for i, j, _ in self.near_pairs(task, first, second, once=True):
            columns = [i.cast(pa.int64()).to_numpy() + at_first]
            columns += [j.cast(pa.int64()).to_numpy() + at_second]
            table = pa.table(columns, schema=_EDGES)
            paths.append(intermediate.write(self.plan.store, table))
        return paths

    def group(self, task: GroupTask) -> Grouped:
        """Connects the rows, and writes the groups and the lists."""
        plan = self.plan
        components = Components(sum(rows for _, rows in task.files))
        for path in task.paths:
            edges = intermediate.read(plan.store, path)
            components.connect(edges["a"].to_numpy(), edges["b"].to_numpy())
        members = self._members(task, components.lowest)
        order = _Order.of(members, task.preferred)
        receipt = self._write(task, members, order)
        dropped = members.ids.take(pa.array(order.rows[~order.kept]))
        if task.drop_list is not None:
            _write_list(task.drop_list, [dropped.sort()] if len(dropped) else [])
        if task.keep_list is not None:
            gone = members.row[order.rows[~order.kept]]
            _write_list(task.keep_list, self._others(task, gone))
        sizes = order.size[order.kept]
        return Grouped(
            receipt=receipt,
            groups=len(sizes),
            dropped=len(dropped),
            largest=int(sizes.max(initial=0)),
        )

    def _blocks(self, task: GroupTask) -> Iterator[tuple[int, CodeBlock]]:
        models = {self.plan.model.fingerprint: self.plan.model}
        start = 0
        for shard, rows in task.files:
            yield start, read_block(shard, models, self.plan.id_type)
            start += rows

    def _members(self, task: GroupTask, lowest: Rows) -> _Members:
        """The rows of groups of two or more."""
        connected = lowest != np.arange(len(lowest))
        connected[lowest[connected]] = True
        parts = []
        for start, block in self._blocks(task):
            rows = np.flatnonzero(connected[start : start + len(block.B)])
            parts.append((start + rows, block.ids.take(pa.array(rows)), block.B[rows]))
        row, ids, B = zip(*parts, strict=True)
        numbers = np.concatenate(row)
        return _Members(
            row=numbers,
            root=lowest[numbers],
            ids=pa.concat_arrays(ids),
            B=np.concatenate(B),
        )

    def _write(self, task: GroupTask, members: _Members, order: _Order) -> shard_writer.Receipt:
        plan = self.plan
        metadata = {
            "raypq.model": plan.model.fingerprint,
            "raypq.metric": plan.metric,
            "raypq.threshold": repr(plan.threshold),
        }
        schema = duplicate_groups.schema(plan.id_type, metadata)

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(order.rows), shard_writer.ROW_GROUP):
                part = slice(start, start + shard_writer.ROW_GROUP)
                rows, kept_row = order.rows[part], order.kept_row[part]
                columns = [
                    members.ids.take(pa.array(order.first[part])),
                    members.ids.take(pa.array(rows)),
                    pa.array(order.size[part]),
                    pa.array(order.kept[part]),
                    pa.array(self.symmetric(members.B[rows], members.B[kept_row])),
                ]
                yield pa.record_batch(columns, schema=schema)

        return shard_writer.write_shard(
            plan.store,
            task.shard,
            model=plan.model.fingerprint,
            work=task.work,
            schema=schema,
            batches=batches(),
            options=duplicate_groups.WRITE_OPTIONS,
        )

    def _others(self, task: GroupTask, gone: Rows) -> Iterator[pa.Array]:
        """The ids of all rows but these, in the order of the store."""
        dropped = np.zeros(sum(rows for _, rows in task.files), bool)
        dropped[gone] = True
        for start, block in self._blocks(task):
            stays = ~dropped[start : start + len(block.B)]
            yield block.ids.filter(pa.array(stays))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Members:
    """The m rows of groups: their numbers and the lowest number of their group [m], ids, and codes
    [m, M]."""

    row: Rows
    root: Rows
    ids: pa.Array
    B: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Order:
    """Members by group, the kept one first.

    Attributes:
        rows: members [m]. first: that with the smallest id in the group of each; kept_row: the kept
            one. size: of the group. kept: whether it is kept.
    """

    rows: Rows
    first: Rows
    kept_row: Rows
    size: Rows
    kept: NDArray[np.bool_]

    @classmethod
    def of(cls, members: _Members, preferred: pa.Array) -> _Order:
        m = len(members.row)
        rank = np.empty(m, np.int64)
        rank[pc.array_sort_indices(members.ids).to_numpy()] = np.arange(m)
        by_group = np.lexsort((rank, members.root))
        starts = np.flatnonzero(np.r_[True, np.diff(members.root[by_group]) > 0]) if m else by_group
        size = np.diff(np.r_[starts, m])
        first = by_group[starts]
        other = ~pc.is_in(members.ids, value_set=preferred).to_numpy(zero_copy_only=False)
        best = np.lexsort((rank, other, members.root))[starts]  # a preferred one, else the first
        of_member = np.empty(m, np.int64)
        of_member[by_group] = np.repeat(np.arange(len(starts)), size)
        kept_row = best[of_member]
        kept = kept_row == np.arange(m)
        order = np.lexsort((rank, ~kept, rank[first[of_member]]))
        return cls(
            rows=order,
            first=first[of_member][order],
            kept_row=kept_row[order],
            size=size[of_member][order],
            kept=kept[order],
        )


def _write_list(uri: str, parts: Sequence[pa.Array] | Iterator[pa.Array]) -> None:
    """A text file of ids, one a line, as ``--ids`` reads it."""
    options = csv.WriteOptions(include_header=False, quoting_style="none")
    with atomic_write(uri) as file:
        for ids in parts:
            csv.write_csv(pa.table({"id": ids}), file, options)


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
    lists = [uri for uri in (job.keep_list, job.drop_list) if uri is not None]
    unwritten = [uri for uri in lists if not exists(uri)]
    if not unwritten and (finished := run.unchanged_version()):
        return finished
    plan = replace(plan, join=choose_join(job, plan, version))
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
            **_said(numbers, sum(receipt.rows for receipt in receipts), version.rows),
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


def _said(numbers: Sequence[Grouped], members: int, rows: int) -> dict[str, Any]:
    """Says what was found; the numbers of a version's summary."""
    if not numbers:  # of an interrupted run, whose file was kept
        return {"members": members}
    (found,) = numbers
    console.say(
        f"{found.groups:,} groups of {members:,} images, the largest of {found.largest:,}; without "
        f"{found.dropped:,} near-duplicates, {rows - found.dropped:,} of {rows:,} images are left"
    )
    return {
        "members": members,
        "groups": found.groups,
        "dropped": found.dropped,
        "largest": found.largest,
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
    rows = {shard.uri: receipt.rows for shard, receipt in _files(job, version)}
    blocks = blocks_of_pairs(job.codes, plan, version)
    sizes = [sum(rows[shard.uri] for shard in block) for block in blocks]
    starts = [0, *np.cumsum(sizes).tolist()]
    preferred = pa.array([], plan.id_type)
    if prefer is not None:
        preferred = prefer.of_type(plan.id_type)
    for index, task in enumerate(tasks):
        pairs = pair_tasks(plan, blocks)
        results = pool.map(GroupWorker.connect, pairs, blocks, starts, ordered=True)
        found = completed(results, total=len(pairs), label="connect", unit="pairs of blocks")
        paths = [path for part in found for path in part]
        group = GroupTask(
            shard=task.shard,
            work=task.work,
            paths=tuple(paths),
            files=tuple((shard, receipt.rows) for shard, receipt in _files(job, version)),
            preferred=preferred,
            keep_list=job.keep_list,
            drop_list=job.drop_list,
        )
        for result in pool.map(GroupWorker.group, [group]):
            yield replace(result, index=index)
        for path in paths:
            delete(join(plan.store, path))


def _files(job: DeduplicateJob, version: Snapshot) -> list[tuple[Shard, shard_writer.Receipt]]:
    return list(zip(stored_shards(job.codes, version), version.shards, strict=True))
