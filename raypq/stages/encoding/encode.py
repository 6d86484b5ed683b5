"""Encode: one code file for each feature shard, then one version of the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raypq import console
from raypq.config import Columns, EncodeJob, ReindexJob
from raypq.data.duplicate_ids import DuplicateIds, IdFile
from raypq.data.layouts import open_shard
from raypq.data.network_info import BackboneInfo
from raypq.data.storage import Shard, join
from raypq.data.store import id_index, shard_writer, sidecars
from raypq.data.store.snapshot import Snapshot
from raypq.data.store.sources import open_sources
from raypq.errors import InputError, ModelError, RaypqError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.encoding.encode_worker import Encoded, EncodeWorker
from raypq.stages.stores import model_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask
from raypq.stages.stores.shard_types import MADE_IDS, check_label_column, id_rule
from raypq.stages.stores.work_id import encode_work


def encode(job: EncodeJob, executor: Executor) -> Snapshot:
    """Encodes a feature store with a model; returns the new version of the code store.

    The version holds these features only, and a warning names shards of the last version that it
    lacks. With ``append`` it also holds the other shards of the last version, unchanged.

    Raises:
        ConflictError: with ``append``, another run committed meanwhile.
        InputError: with ``append``, the store lacks a file of its last version.
        ModelError: the model cannot be read.
        JobError: some shards could not be encoded; as ``completed``.
    """
    record = RunRecord(job, executor)
    shards = open_sources(job.source, job.columns, job.source_kind).shards
    model = model_of(job, shards)
    work = encode_work(model.fingerprint, job)
    tasks = [ShardTask(shard=shard, model=model.fingerprint, work=work) for shard in shards]
    run = StoreRun.plan(
        kind="codes",
        store=job.output,
        tasks=tasks,
        on_bad_shard=job.on_bad_shard,
        append=job.append,
    )
    model_store.save(job.output, model)  # before any version can name it
    if finished := run.unchanged_version():
        return finished
    remedy = "--append (append: true) keeps them; "
    dropped = run.warn_of_dropped("features", remedy)
    return execute(job, model, run, executor, record, describe=lambda _: dropped)


def model_of(job: EncodeJob | ReindexJob, shards: Sequence[Shard]) -> Model:
    """The model of a job, bound to the backbone that the job names, or that its features name.

    Raises:
        ConfigError: the backbone cannot be loaded.
        ModelError: the model cannot be read, or is for features of another backbone or width.
    """
    model = registry.load(job.model)
    if job.backbone is None:
        if model.backbone is not None:  # workers check every shard
            return model
        return model.bound_to(_backbone_of_features(shards, job.columns), where=job.model)
    from raypq.backbones import backbone_of  # here, since it imports torch

    backbone = backbone_of(job)
    if backbone.width != model.dx:
        raise ModelError(
            job.model,
            expected=f"a model for features of width {backbone.width}, as {job.backbone} gives",
            found=f"one for features of width {model.dx}",
        )
    return model.bound_to(backbone.info, where=job.model)


def _backbone_of_features(shards: Sequence[Shard], columns: Columns) -> BackboneInfo | None:
    """The backbone that the first readable shard names; workers check the other shards."""
    for shard in shards:
        try:
            with open_shard(shard, columns) as file:
                if file.rows:
                    return BackboneInfo.of(file.field(columns.feature), where=shard.uri)
        except (RaypqError, OSError):
            continue
    return None


Receipts = Sequence[shard_writer.Receipt]
Describe = Callable[[Receipts], dict[str, Any]]


def execute(
    job: EncodeJob,
    model: Model,
    run: StoreRun,
    executor: Executor,
    record: RunRecord,
    *,
    by_content: bool = False,
    describe: Describe = lambda _: {},
) -> Snapshot:
    """Encodes the missing shards of a run and commits its version.

    Args:
        by_content: whether shards are compared by the hash of their content; a task whose kept
            receipt has the same hash keeps it.
        describe: further entries of the version's summary, given its receipts.

    Raises:
        InputError: no shard has the label column that the user named.
        JobError: some shards could not be encoded; as ``completed``.
    """
    work = encode_work(model.fingerprint, job)
    check_label_column([task.shard for task in run.tasks if task.work == work], job.columns)
    rule = id_rule(run, job.columns)
    fresh: list[Encoded] = []

    def on_result(result: Encoded) -> shard_writer.Receipt:
        fresh.append(result)
        record.finished(result.receipt.rows)
        return result.receipt

    def summarise(receipts: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("encode")
        ids = index_ids(job, receipts, run.latest)
        record.lap("check ids")
        described = describe(receipts)
        summary = {**_settings(job, model), **described, **ids, **_counts(receipts, fresh)}
        if rule is not None and rule.made:
            summary[MADE_IDS] = True
        return {**summary, "run": record.summary()}

    args = (model, job, by_content, rule, work)
    with (
        executor.start_workers(EncodeWorker, *args, stage="encode") as pool,
        record.observe(pool),
    ):
        return run.execute(
            lambda tasks: pool.map(EncodeWorker.encode, tasks),
            on_bad_shard=job.on_bad_shard,
            on_result=on_result,
            summarise=summarise,
            on_start=lambda: model_store.save(job.output, model),
        )


def _settings(job: EncodeJob, model: Model) -> dict[str, Any]:
    """The settings that a version records."""
    return {
        "model": job.model,
        "fingerprint": model.fingerprint,
        "M": model.M,
        "K": model.K,
        "precision": job.precision,
        **({"backbone": model.backbone.model_dump(mode="json")} if model.backbone else {}),
    }


def _counts(receipts: Receipts, results: Sequence[Encoded]) -> dict[str, Any]:
    """Images left out and codes changed by the precision, where there are any.

    Args:
        receipts: those of an interrupted run have counts, too. results: of this run.
    """
    counts: dict[str, Any] = {}
    read = [receipt.counts for receipt in receipts if receipt.counts]
    if left_out := sum(item.left_out for item in read):
        counts["images_left_out"] = left_out
    if unchanged := sum(item.unchanged for item in read):
        counts["images_unchanged"] = unchanged  # of the shards encoded: not decoded again
    if codes_checked := sum(result.precision.codes for result in results):
        different = sum(result.precision.different for result in results)
        counts["codes_changed_by_precision"] = different / codes_checked
    return counts


def index_ids(
    job: EncodeJob, receipts: Sequence[shard_writer.Receipt], latest: Snapshot | None
) -> dict[str, Any]:
    """Updates the index of ids, and finds ids that the version holds more than once.

    New ids are looked up in the index of the last version.

    Returns:
        Entries of the summary: repeated ids, and the index of the new version.

    Raises:
        InputError: ids are repeated and ``duplicate_ids`` is ``refuse``; the finished shards are
            kept for a rerun.
    """
    before = latest.sidecars(job.output) if latest else {}
    if job.duplicate_ids == "ignore":  # the index of older files stays valid
        return sidecars.as_summary(sidecars.still_there(job.output, before))
    files = [
        IdFile(
            uri=join(job.output, item.path),
            name=item.source.uri,
            rows=item.rows,
            path=item.path,
        )
        for item in sorted(receipts, key=lambda item: item.shard)
    ]
    if latest and latest.shards and not id_index.is_indexed(before):
        console.say(f"{job.output}: reading all ids once, for an index of them")

    def check_duplicates(repeated: DuplicateIds | None) -> None:
        if repeated and job.duplicate_ids == "refuse":
            raise InputError(job.output, expected="every id once", found=str(repeated))

    repeated, index = id_index.update(job.output, files, before, check_duplicates=check_duplicates)
    if repeated is None:
        return sidecars.as_summary(index)
    console.warn(f"duplicate ids: {repeated}", rows=repeated.rows)
    entry = {"rows": repeated.rows, "examples": str(repeated)}
    return {"duplicate_ids": entry, **sidecars.as_summary(index)}
