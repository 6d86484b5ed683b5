"""Reindex: brings codes, predictions and groups up to date with a feature store.

Each store is committed separately: the codes first, then the predictions and groups of each
section. A night
that stops in between leaves complete versions everywhere, and the next one goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from raypq import console, heartbeat
from raypq.config import ClassificationTarget, ClassifyJob, ReindexJob
from raypq.data.classes import ClassTable
from raypq.data.storage import Shard
from raypq.data.store import lease
from raypq.data.store.lease import Lease
from raypq.data.store.receipts import Receipts
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, DriftError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Model
from raypq.metrics.drift import Drifted, detect_drift, known_baseline, reason_not_judged
from raypq.stages.classification import classify, scorers, unknown_labels
from raypq.stages.classification.candidates import Candidates
from raypq.stages.encoding import encode
from raypq.stages.nightly import dry_run, image_counts, night_groups
from raypq.stages.nightly.source_diff import ReindexPlan, diff_source, encode_job, list_source
from raypq.stages.stores import model_store, quarantine

_MAX_NAMES = 5  # shards that a log line names
_MAX_DRIFT_WARNINGS = 20
# Fields of ``ReindexPlan`` by their names in results and summaries.
_COUNTS = {
    "new": "new",
    "changed": "changed",
    "output_missing": "output_missing",
    "mtime_changed": "mtime_changed",
    "migrating": "migrating",
    "pending": "pending",
    "kept": "kept",
    "removed": "removed",
    "put_aside": "quarantined",
}


def reindex(job: ReindexJob, executor: Executor) -> dict[str, Any]:
    """Brings the code store, the predictions and the groups up to date.

    Returns:
        What was done, as plain values.

    Raises:
        ConflictError: another run holds one of the stores, or committed to it meanwhile.
        InputError: the source is empty, or lost too many shards.
        JobError: some shards failed; as ``completed``.
        DriftError: with ``fail_on_drift``, after all commits: new shards drifted.
        QuarantineError: with ``fail_on_quarantined``, after all commits: shards are left out.
    """
    start = time.monotonic()
    stores = [job.codes, *(section.output for section in job.classify)]
    stores += [target.output for target in job.deduplicate]
    if len(set(stores)) < len(stores):
        raise ConfigError(f"each store needs a path of its own, found {', '.join(sorted(stores))}")
    with heartbeat.phase("listing the source"):
        shards = list_source(job)
    model = model_store.completed(job.codes, encode.model_of(job, shards))
    for section in job.classify:
        _check(job, section, model)
    for target in job.deduplicate:
        night_groups.check(job, target, model)
    if job.dry_run:
        return _dry_run(job, model, shards)
    with lease.held_all(stores, seconds=job.lease_seconds) as leases:
        record = RunRecord(job, executor)
        with heartbeat.phase("comparing the source with the last version"):
            plan = diff_source(job, model, shards)
        codes = _encode(job, model, plan, executor, record, leases)
        predictions = [
            _classify(job, section, model, codes, executor, leases) for section in job.classify
        ]
        groups = [
            night_groups.update(job, target, codes, executor, leases) for target in job.deduplicate
        ]
    return _report(job, plan, codes, predictions, groups, time.monotonic() - start)


def _dry_run(job: ReindexJob, model: Model, shards: Sequence[Shard]) -> dict[str, Any]:
    with heartbeat.phase("comparing the source with the last version"):
        plan = diff_source(job, model, shards)
        forecast = dry_run.forecast(job, plan)
    sections = []
    for section in job.classify:
        images = forecast.images
        if plan.latest:
            classify_plan = classify.ClassifyPlan.make(
                _classify_job(job, section), nightly_model=model
            )
            unread = {task.shard.stem for task in (*plan.kept, *plan.pending)}
            missing = {task.shard.stem for task in classify_plan.run.missing} & unread
            images += sum(
                rows
                for shard, rows in zip(
                    *map(plan.latest.shards.values, ("shard", "rows")), strict=True
                )
                if shard in missing
            )
        sections.append({"store": section.output, "images": images})
    groups = [target.output for target in job.deduplicate]
    return {"dry_run": True, **dry_run.report(job, plan, forecast, sections, groups)}


def _encode(
    job: ReindexJob,
    model: Model,
    plan: ReindexPlan,
    executor: Executor,
    record: RunRecord,
    leases: Mapping[str, Lease],
) -> Snapshot:
    """The version of the codes that belongs to the source."""
    if plan.idle:
        assert plan.latest is not None, "a source without a version has shards to encode"
        console.say(
            f"no new, changed or removed shards: {job.codes} version {plan.latest.version} stays"
        )
        if model.fingerprint in plan.latest.shards.totals.models:
            model_store.save(job.codes, model)  # it may have been tuned since
        return plan.latest
    console.say(
        f"{len(plan.new)} new, {len(plan.changed)} changed, {len(plan.mtime_changed)} with another "
        f"time only, {len(plan.output_missing)} without their code file, {len(plan.migrating)} to "
        f"another model or settings ({len(plan.pending)} on later nights), {len(plan.removed)} "
        f"removed, {len(plan.kept)} kept"
    )
    _log_names(plan)
    model_store.save(job.codes, model)  # before any version can name it
    run = replace(plan.run(job.codes), pre_commit_check=leases[job.codes].check)

    def describe(receipts: Sequence[Receipt]) -> dict[str, Any]:
        counts = image_counts.of_night(plan, run.tasks, receipts, encode_job(job))
        console.say(f"images: {counts}", **counts.as_dict())
        return {
            "night": _counts(plan),
            "night_images": counts.as_dict(),
            "rollout": _rollout(plan, receipts),
            "drift": _drift(job, model, plan, receipts),
        }

    version = encode.execute(
        encode_job(job),
        model,
        run,
        executor,
        record,
        by_content=job.compare == "content",
        describe=describe,
    )
    drift = version.summary["drift"]
    _warn_of_drift(_drifted(drift), drift["judged"])  # even if the classification fails then
    return version


def _check(job: ReindexJob, section: ClassificationTarget, model: Model) -> None:
    """Checks the class table of a section before hours are spent on codes.

    Raises:
        ConfigError: a split or calibration that the class table does not have.
        InputError: a class table that cannot be read, or does not fit the model.
    """
    table = ClassTable.open(section.classes)
    candidates = Candidates.of(section, table)
    task = ClassifyJob(model=job.model, features=job.source, **section.model_dump())
    scorers.build_scorers(task, None, candidates, nightly_model=model)


def _classify_job(
    job: ReindexJob, section: ClassificationTarget, version: int | None = None
) -> ClassifyJob:
    return ClassifyJob(
        codes=job.codes,
        version=version,
        where=job.where,
        on_bad_shard=job.on_bad_shard,
        **section.model_dump(),
    )


def _classify(
    job: ReindexJob,
    section: ClassificationTarget,
    model: Model,
    codes: Snapshot,
    executor: Executor,
    leases: Mapping[str, Lease],
) -> tuple[Snapshot, bool]:
    """The version of the predictions that belongs to the codes, and whether it is new."""
    task = _classify_job(job, section, codes.version)
    record = RunRecord(task, executor)
    plan = classify.ClassifyPlan.make(task, nightly_model=model)
    if latest := classify.finished(task, plan):
        return latest, False
    run = replace(plan.run, pre_commit_check=leases[section.output].check)
    return classify.execute(task, replace(plan, run=run), executor, record), True


def _counts(plan: ReindexPlan) -> dict[str, int]:
    return {name: len(getattr(plan, attribute)) for name, attribute in _COUNTS.items()}


def _log_names(plan: ReindexPlan) -> None:
    """Logs a few of the shards whose codes are replaced or removed."""
    groups = {
        "changed": [task.name for task in plan.changed],
        "code file missing": [task.name for task in plan.output_missing],
        "removed": [receipt.source.uri for receipt in plan.removed],
    }
    for group, uris in groups.items():
        if uris:
            more = f" and {len(uris) - _MAX_NAMES} more" if len(uris) > _MAX_NAMES else ""
            console.say(f"{group}: {', '.join(sorted(uris)[:_MAX_NAMES])}{more}", shards=len(uris))


def _rollout(plan: ReindexPlan, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """How many shards of a version are under the job's model and settings, by their receipts."""
    total = len(receipts)
    done = sum(work == plan.work for work in Receipts.of(receipts).values("work"))
    return {"done": done, "of": total, "share": round(done / total, 4) if total else 1.0}


def _drift(
    job: ReindexJob, model: Model, plan: ReindexPlan, receipts: Sequence[Receipt]
) -> dict[str, Any]:
    """The shards that are encoded since the last version and unlike the training data.

    Args:
        receipts: of the new version. Those that an interrupted run finished are not judged yet.
    """
    before = plan.latest.shards if plan.latest else Receipts.of(())
    old = set(before.values("path"))
    measured = [
        (receipt.shard, receipt.stats)
        for receipt in receipts
        if receipt.stats and receipt.path not in old and receipt.model == model.fingerprint
    ]
    earlier = [item.stats for item in before if item.model == model.fingerprint and item.stats]
    baseline = known_baseline(model, earlier)
    if baseline is None:
        return {"judged": 0, "shards": []}
    checks = [detect_drift(name, stats, baseline, job.drift, K=model.K) for name, stats in measured]
    drifted = sorted((item for item in checks if item), key=lambda item: item.shard)
    found = {"judged": len(measured), "shards": [asdict(item) for item in drifted]}
    if measured and (reason := reason_not_judged(baseline, K=model.K)):
        console.say(f"drift: {reason}")
        found["not_judged"] = reason
    return found


def _report(
    job: ReindexJob,
    plan: ReindexPlan,
    codes: Snapshot,
    predictions: Sequence[tuple[Snapshot, bool]],
    groups: Sequence[tuple[Snapshot, bool] | None],
    seconds: float,
) -> dict[str, Any]:
    """What the night did, as plain values; warns of shards that are left out.

    Args:
        predictions: the version of each prediction store, and whether it is new.
        groups: likewise of each store of groups; None for one that was left as it is.

    Raises:
        DriftError, QuarantineError: as ``reindex``.
    """
    done = [*predictions, *(item for item in groups if item is not None)]
    idle = plan.idle and not any(new for _, new in done)
    outputs = [section.output for section in job.classify]
    versions = [(job.codes, codes)]
    versions += zip(outputs, (version for version, _ in predictions), strict=True)
    left_out = sum(len(version.quarantined) for _, version in versions)
    if idle:
        but = f" but {left_out} shard(s) that are left out" if left_out else ""
        console.say(f"nothing to do: everything is up to date{but} ({seconds:.1f} s)")
    if plan.idle:
        quarantine.warn(job.codes, codes)
    rollout = _rollout(plan, codes.shards)
    if rollout["done"] < rollout["of"]:
        console.say(f"roll-out: {rollout['done']} of {rollout['of']} shards are on {job.model}")
    drift: dict[str, Any] = {"judged": 0, "shards": []}
    if not plan.idle:
        drift = codes.summary["drift"]
    if (drifted := _drifted(drift)) and job.fail_on_drift:
        raise DriftError([str(item) for item in drifted])
    if job.fail_on_quarantined:
        quarantine.refuse(versions)
    duplicate_ids = {} if plan.idle else codes.summary.get("duplicate_ids")
    return {
        "nothing_to_do": idle,
        "codes": {"store": job.codes, **_summary(codes, new=not plan.idle)},
        **({"duplicate_ids": duplicate_ids} if duplicate_ids else {}),
        "shards": _counts(plan),
        "images": image_counts.of_idle_night(plan).as_dict()
        if plan.idle
        else codes.summary["night_images"],
        "rollout": rollout,
        "drift": drift,
        "predictions": [
            _predictions(section, *item)
            for section, item in zip(job.classify, predictions, strict=True)
        ],
        "groups": [
            night_groups.report(target, item)
            for target, item in zip(job.deduplicate, groups, strict=True)
        ],
        "seconds": seconds,
    }


def _predictions(section: ClassificationTarget, version: Snapshot, new: bool) -> dict[str, Any]:
    store = {"store": section.output}
    return store | _summary(version, new=new) | unknown_labels.summary(version)


def _summary(version: Snapshot, *, new: bool) -> dict[str, Any]:
    return {
        "version": version.version,
        "new": new,
        "images": version.rows,
        "shards": len(version.shards),
        "quarantined": len(version.quarantined),
        **({"left_out": quarantine.summary(version)} if version.quarantined else {}),
    }


def _drifted(found: Mapping[str, Any]) -> list[Drifted]:
    return [
        Drifted(shard=item["shard"], reasons=tuple(item["reasons"])) for item in found["shards"]
    ]


def _warn_of_drift(drifted: Sequence[Drifted], judged: int) -> None:
    for item in drifted[:_MAX_DRIFT_WARNINGS]:
        console.warn(f"drift: {item}", shard=item.shard)
    if drifted:
        console.warn(
            f"drift: {len(drifted)} of {judged} shards encoded since the last version are unlike "
            "the model's training data; train again on data that includes them, and roll the new "
            "model out (raypq reindex --rollout)"
        )
