"""Reindex: brings codes and predictions up to date with a feature store.

Each store is committed by itself: codes first, then the predictions of each section. A night that
stops in between leaves complete versions everywhere, and the next one goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from raypq import console
from raypq.config import ClassificationTarget, ClassifyJob, ReindexJob
from raypq.data.classes import ClassTable
from raypq.data.store import lease
from raypq.data.store.lease import Lease
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, DriftError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.metrics.drift import Drifted, judge, known_baseline
from raypq.stages.classification import classify, scorers, unknown_labels
from raypq.stages.encoding import encode
from raypq.stages.nightly import dry_run
from raypq.stages.nightly.source_diff import ReindexPlan, compare, encode_job
from raypq.stages.stores import model_store, quarantine

_FEW = 5  # shards of each head that a line names
_NAMED = 20  # drifted shards that are told one by one


def reindex(job: ReindexJob, executor: Executor) -> dict[str, Any]:
    """Brings the code store and the predictions up to date; what was done, as plain values.

    Raises:
        ConflictError: another run holds one of the stores, or committed to it meanwhile.
        InputError: the source is empty, or lost too many shards.
        JobError: shards that could not be done; every good one is finished.
        DriftError: on request, after everything is committed: new shards drifted.
        QuarantineError: on request, after everything is committed: shards are left out.
    """
    start = time.monotonic()
    stores = [job.codes, *(answers.output for answers in job.classify)]
    if len(set(stores)) < len(stores):
        raise ConfigError(f"each store needs a place of its own, found {', '.join(sorted(stores))}")
    model = model_store.completed(job.codes, registry.load(job.model))
    for section in job.classify:
        _check(job, section, model)
    if job.dry_run:
        return _rehearse(job, model)
    with ExitStack() as stack:
        leases = {
            store: stack.enter_context(lease.held(store, seconds=job.lease_seconds))
            for store in sorted(stores)
        }
        record = RunRecord(job, executor)
        night = compare(job, model)
        codes = _encode(job, model, night, executor, record, leases)
        answers = [
            _classify(job, section, model, codes, executor, leases) for section in job.classify
        ]
    return _report(job, night, codes, answers, time.monotonic() - start)


def _rehearse(job: ReindexJob, model: Model) -> dict[str, Any]:
    night = compare(job, model)
    images = dry_run.images_of(night)
    answers = []
    for section in job.classify:
        todo = images
        if night.latest:
            plan = classify.Plan.make(_classify_job(job, section), own=model)
            stay = {task.shard.stem for task in (*night.kept, *night.waiting)}
            missing = {task.shard.stem for task in plan.run.missing} & stay
            todo += sum(item.rows for item in night.latest.shards if item.shard in missing)
        answers.append({"store": section.output, "images": todo})
    return {"dry_run": True, **dry_run.plan_of(job, night, answers)}


def _encode(
    job: ReindexJob,
    model: Model,
    night: ReindexPlan,
    executor: Executor,
    record: RunRecord,
    leases: Mapping[str, Lease],
) -> Snapshot:
    if night.idle:
        assert night.latest is not None, "a source without a version has shards to encode"
        console.say(
            f"no new, changed or removed shards: {job.codes} version {night.latest.version} stays"
        )
        if model.fingerprint in {receipt.model for receipt in night.latest.shards}:
            model_store.keep(job.codes, model)  # it may have been tuned since
        return night.latest
    console.say(
        f"{len(night.new)} new, {len(night.changed)} changed, {len(night.touched)} touched, "
        f"{len(night.lost)} lost, {len(night.rolled)} to another model or settings "
        f"({len(night.waiting)} wait), {len(night.removed)} removed, {len(night.kept)} kept"
    )
    _name(night)
    model_store.keep(job.codes, model)  # before any version can name it
    run = replace(night.run(job.codes), guard=leases[job.codes].check)

    def describe(fresh: Sequence[Receipt]) -> dict[str, Any]:
        return {
            "night": _counts(night),
            "rollout": _rollout(night),
            "drift": _drift(job, model, night, fresh),
        }

    return encode.carry_out(
        encode_job(job),
        model,
        run,
        executor,
        record,
        content=job.compare == "content",
        describe=describe,
    )


def _check(job: ReindexJob, section: ClassificationTarget, model: Model) -> None:
    """Refuses classes that the model cannot serve, before hours go into codes.

    Raises:
        ConfigError: a split or calibration that the class table does not have.
        InputError: a class table that cannot be read, or does not fit the model.
    """
    table = ClassTable.open(section.classes)
    candidates = scorers.Candidates.of(section, table)
    task = ClassifyJob(model=job.model, features=job.features, **section.model_dump())
    scorers.build_scorers(task, None, candidates, own=model)


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
    plan = classify.Plan.make(task, own=model)
    if found := classify.finished(task, plan):
        return found, False
    run = replace(plan.run, guard=leases[section.output].check)
    return classify.carry_out(task, replace(plan, run=run), executor, record), True


def _counts(night: ReindexPlan) -> dict[str, int]:
    return {
        name: len(getattr(night, name))
        for name in (
            "new", "changed", "lost", "touched", "rolled", "waiting", "kept", "removed", "put_aside"
        )
    }  # fmt: skip


def _name(night: ReindexPlan) -> None:
    """Names a few of the shards whose codes the next version does not take over."""
    heads = {
        "changed": [task.name for task in night.changed],
        "lost their code file": [task.name for task in night.lost],
        "removed": [receipt.source.uri for receipt in night.removed],
    }
    for head, uris in heads.items():
        if uris:
            more = f" and {len(uris) - _FEW} more" if len(uris) > _FEW else ""
            console.say(f"{head}: {', '.join(sorted(uris)[:_FEW])}{more}", shards=len(uris))


def _rollout(night: ReindexPlan) -> dict[str, Any]:
    """How far the shards are under the job's model and settings."""
    total = len(night.tasks)
    done = total - len(night.waiting)
    return {"done": done, "of": total, "share": round(done / total, 4) if total else 1.0}


def _drift(
    job: ReindexJob, model: Model, night: ReindexPlan, fresh: Sequence[Receipt]
) -> dict[str, Any]:
    """The shards encoded tonight that are unlike the training data."""
    before = night.latest.shards if night.latest else ()
    old = {receipt.path for receipt in before}
    measured = [
        (receipt.shard, receipt.stats)
        for receipt in fresh
        if receipt.stats and receipt.path not in old
    ]
    earlier = [item.stats for item in before if item.model == model.fingerprint and item.stats]
    baseline = known_baseline(model, earlier)
    if baseline is None:
        return {"judged": 0, "shards": []}
    found = [judge(name, stats, baseline, job.drift, K=model.K) for name, stats in measured]
    drifted = sorted((item for item in found if item), key=lambda item: item.shard)
    return {"judged": len(measured), "shards": [asdict(item) for item in drifted]}


def _report(
    job: ReindexJob,
    night: ReindexPlan,
    codes: Snapshot,
    answers: Sequence[tuple[Snapshot, bool]],
    seconds: float,
) -> dict[str, Any]:
    nothing = night.idle and not any(new for _, new in answers)
    outputs = [section.output for section in job.classify]
    versions = [(job.codes, codes), *zip(outputs, (one for one, _ in answers), strict=True)]
    left_out = sum(len(version.quarantined) for _, version in versions)
    if nothing:
        but = f" but {left_out} shard(s) that are left out" if left_out else ""
        console.say(f"nothing to do: everything is up to date{but} ({seconds:.1f} s)")
    if night.idle:
        quarantine.tell(job.codes, codes)
    rollout = _rollout(night)
    if night.waiting:
        console.say(f"roll-out: {rollout['done']} of {rollout['of']} shards are on {job.model}")
    drift: dict[str, Any] = {"judged": 0, "shards": []}
    if not night.idle:
        drift = codes.summary["drift"]
    drifted = [Drifted(shard=item["shard"], reasons=tuple(item["reasons"]))
               for item in drift["shards"]]  # fmt: skip
    _warn(drifted, drift["judged"])
    if drifted and job.fail_on_drift:
        raise DriftError([str(item) for item in drifted])
    if job.fail_on_quarantined:
        quarantine.refuse(versions)
    found = {} if night.idle else codes.summary.get("duplicate_ids")
    return {
        "nothing_to_do": nothing,
        "codes": {"store": job.codes, **_told(codes, new=not night.idle)},
        **({"duplicate_ids": found} if found else {}),
        "shards": _counts(night),
        "rollout": rollout,
        "drift": drift,
        "predictions": [
            {"store": section.output, **_told(version, new=new), **unknown_labels.told_of(version)}
            for section, (version, new) in zip(job.classify, answers, strict=True)
        ],
        "seconds": seconds,
    }


def _told(version: Snapshot, *, new: bool) -> dict[str, Any]:
    return {
        "version": version.version,
        "new": new,
        "images": version.rows,
        "shards": len(version.shards),
        "quarantined": len(version.quarantined),
        **({"left_out": quarantine.told_of(version)} if version.quarantined else {}),
    }


def _warn(drifted: Sequence[Drifted], judged: int) -> None:
    for item in drifted[:_NAMED]:
        console.warn(f"drift: {item}", shard=item.shard)
    if drifted:
        console.warn(
            f"drift: {len(drifted)} of {judged} shards encoded tonight are unlike the model's "
            "training data; train again on data that includes them, and roll the new model out "
            "(raypq reindex --rollout)"
        )
