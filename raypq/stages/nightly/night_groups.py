"""Groups of near-duplicates as a section of a night."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raypq import console
from raypq.config import DeduplicateJob, DeduplicationTarget, ReindexJob
from raypq.data.id_list import IdList
from raypq.data.store import snapshot
from raypq.data.store.lease import Lease
from raypq.data.store.snapshot import Snapshot
from raypq.data.store.sources import open_sources
from raypq.errors import ConfigError
from raypq.execution.executor import Executor
from raypq.methods.base import Model
from raypq.stages.retrieval.duplicates.deduplicate import deduplicate
from raypq.stages.retrieval.duplicates.pair_plan import check_settings
from raypq.stages.retrieval.duplicates.source_column import check_column
from raypq.stages.stores.shard_run import StoreRun


def job_of(
    job: ReindexJob, section: DeduplicationTarget, version: int | None = None
) -> DeduplicateJob:
    """The job of a section.

    Args:
        version: of the code store.
    """
    reads = section.rerank or section.keep_by is not None
    return DeduplicateJob(
        codes=job.codes,
        version=version,
        features=job.features if reads else None,
        columns=job.columns,
        where=job.where,
        **section.model_dump(),
    )


def check(job: ReindexJob, section: DeduplicationTarget, model: Model) -> None:
    """Checks a section before hours are spent on codes.

    Raises:
        ConfigError: settings that do not go together, or with this model or source.
        InputError: an output of another kind, a list of preferred ids or a column that cannot be
            read.
    """
    if (section.rerank or section.keep_by is not None) and not job.features:
        raise ConfigError(
            "deduplicate: rerank and keep_by read a store of features, and this night encodes "
            "images; extract them first (raypq extract)"
        )
    if model.stores_classes:
        raise ConfigError(
            f"deduplicate: codes of class probabilities ({model.method}) are as near for two "
            "images of one class as for duplicates; encode with another model, such as pq or opq"
        )
    check_settings(job_of(job, section), section.metric or model.metric)
    StoreRun.plan(kind="groups", store=section.output, tasks=[])
    if section.prefer is not None:
        IdList.read(section.prefer)
    if section.keep_by is not None:
        shards = open_sources(job.features, job.columns).shards
        for shard in shards[:1]:
            check_column(shard, job.columns, section.keep_by)


def update(
    job: ReindexJob,
    section: DeduplicationTarget,
    codes: Snapshot,
    executor: Executor,
    leases: Mapping[str, Lease],
) -> tuple[Snapshot, bool] | None:
    """The version of the groups that belongs to the codes, and whether it is new; None while the
    codes are of several models, or there are none."""
    models = codes.shards.totals.models
    if len(models) > 1:
        console.warn(
            f"{section.output}: its groups stay as they are while a roll-out is not complete, "
            f"since codes of {len(models)} models cannot be compared"
        )
        return None
    if not codes.rows:
        console.warn(f"{section.output}: no images to group")
        return None
    before = max(snapshot.versions(section.output), default=0)
    version = deduplicate(
        job_of(job, section, codes.version),
        executor,
        pre_commit_check=leases[section.output].check,
    )
    return version, version.version != before


def report(section: DeduplicationTarget, done: tuple[Snapshot, bool] | None) -> dict[str, Any]:
    """What was done, as plain values."""
    if done is None:
        return {"store": section.output, "skipped": True}
    version, new = done
    numbers = ("groups", "dropped", "largest")
    return {
        "store": section.output,
        "version": version.version,
        "new": new,
        **{name: version.summary[name] for name in numbers if name in version.summary},
    }
