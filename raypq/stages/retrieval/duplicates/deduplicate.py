"""Groups of near-duplicates, and what to keep of each.

Images that near pairs connect are a group. Of several images with equal codes, the first stands for
the others. Workers find pairs as edges between numbered rows (``group_edges``); one of them makes a
forest of all edges (``group_forest``); the images of its trees are gathered from the code files and
written by group (``group_members``, ``group_order``).

A run after the first compares only the code files that are new with all; the groups of the last
version tell the edges of the others. Groups that have lost an image are compared again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from raypq.config import DeduplicateJob
from raypq.data.id_list import IdList
from raypq.data.storage import digest, exists
from raypq.data.store import runs, snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.kernels.join import CodeJoin, usable
from raypq.stages.retrieval import rerank
from raypq.stages.retrieval.duplicates.group_run import GroupPlan, GroupRun
from raypq.stages.retrieval.duplicates.group_worker import GroupWorker, Keeping
from raypq.stages.retrieval.duplicates.night_edges import KnownGroups, known_groups
from raypq.stages.retrieval.duplicates.pair_parts import (
    unchanged_version,
)
from raypq.stages.retrieval.duplicates.pair_plan import (
    choose_join,
    pair_plan,
)
from raypq.stages.stores.code_store import open_store
from raypq.stages.stores.shard_task import stored_shards
from raypq.stages.stores.work_id import deduplicate_settings, deduplicate_work

_MOST_ROWS = 1 << 32  # of a store, whose rows are 32-bit numbers


def deduplicate(
    job: DeduplicateJob,
    executor: Executor,
    *,
    pre_commit_check: Callable[[], None] | None = None,
) -> Snapshot:
    """Finds the groups; returns the new version of the result store.

    Args:
        pre_commit_check: as of ``StoreRun``.

    Raises:
        ConfigError, InputError, ModelError, JobError: as ``near_duplicates``.
    """
    record = RunRecord(job, executor)
    prefer = None if job.prefer is None else IdList.read(job.prefer)
    plan = _plan(job, prefer)
    codes = [f"{receipt.shard} {receipt.sha256}" for receipt in plan.version.shards]
    originals = plan.pairs.originals or plan.sources or ()
    work = deduplicate_work(plan.settings, codes=codes, originals=originals)
    if _lists_are_there(job) and (done := unchanged_version("groups", job.output, work)):
        return done
    known = known_groups(job, plan.settings, plan.version, plan.tags)
    plan = replace(plan, pairs=replace(plan.pairs, join=_join(job, plan, known)))
    with (
        runs.active(job.output, "group"),
        executor.start_workers(GroupWorker, plan.pairs, plan.keeping, stage="pair") as pool,
        record.observe(pool),
    ):
        run = GroupRun(job=job, plan=plan, known=known, work=work, pool=pool, record=record)
        return run.execute(prefer, pre_commit_check)


def _plan(job: DeduplicateJob, prefer: IdList | None) -> GroupPlan:
    version = open_store(job.codes, job.version)
    if version.rows >= _MOST_ROWS:
        raise InputError(
            job.codes, expected="fewer than 2³² images to group", found=f"{version.rows:,}"
        )
    pairs = pair_plan(job, version)
    sources = None
    if job.keep_by is not None and job.features is not None:
        sources = rerank.sources(version.shards, job.features, job.columns)
    id_type = pairs.id_type
    keeping = Keeping(
        cliques=job.linkage == "complete",
        column=job.keep_by,
        largest=job.keep == "largest",
        preferred=pa.array([], id_type) if prefer is None else prefer.of_type(id_type),
    )
    starts, row = [], 0
    for receipt in version.shards:
        starts.append(row)
        row += receipt.rows
    settings = deduplicate_settings(
        pairs.model.fingerprint,
        job,
        metric=pairs.metric,
        prefer=None if prefer is None else prefer.work_digest(id_type),
    )
    return GroupPlan(
        pairs=pairs,
        version=version,
        files=list(zip(stored_shards(job.codes, version), starts, strict=True)),
        keeping=keeping,
        settings=settings,
        sources=sources,
    )


def _join(job: DeduplicateJob, plan: GroupPlan, known: KnownGroups | None) -> CodeJoin | None:
    """The join by which edges are found, between all files or those that are new and all."""
    pairs, rows = plan.pairs, plan.version.rows
    if known is None:
        return choose_join(job, pairs, [(job.codes, plan.version)])
    counts = plan.version.shards.column("rows").take(pa.array(known.new, pa.int64()))
    new = pc.sum(counts, min_count=0).as_py()
    if known.parts is None:  # the store was small, or its images are far apart in few parts
        compared = replace(pairs, compared=float(new) * rows)
        return choose_join(job, compared, [(job.codes, plan.version)]) if new else None
    if not usable(pairs.model.C):
        return None
    join_of = CodeJoin.by(pairs.model.C, pairs.metric, pairs.threshold, first=known.parts)
    return join_of if join_of.pays(new, rows) else None


def _lists_are_there(job: DeduplicateJob) -> bool:
    """Whether each list that is wanted is as the last version's run wrote it."""
    latest = snapshot.read(job.output) if snapshot.versions(job.output) else None
    written = (latest.summary if latest else {}).get("lists", {})
    wanted = {"keep_list": job.keep_list, "drop_list": job.drop_list}
    return all(
        name in written and exists(uri) and digest(uri) == written[name]["sha256"]
        for name, uri in wanted.items()
        if uri
    )
