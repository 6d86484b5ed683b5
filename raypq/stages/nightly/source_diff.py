"""Differences between a feature store and the last version of its codes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

from raypq.config import EncodeJob, ReindexJob
from raypq.data.storage import Shard, list_shards
from raypq.data.store import snapshot
from raypq.data.store.journal import still_there
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.snapshot import Quarantined, Snapshot
from raypq.errors import EmptySourceError, InputError, MissingSourceError
from raypq.methods.base import Model
from raypq.stages.stores import quarantine
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, known_stems, under_known_stems
from raypq.stages.stores.work_id import encode_work


@dataclass(kw_only=True, eq=False)
class ReindexPlan:
    """Every shard of the source, and of the last version, under one of these heads.

    Attributes:
        latest: the version to go on from, if there is one.
        new, changed: to be encoded. lost: the same, since their code file is gone.
        touched: changed by the listing, of equal size; their content decides.
        rolled: under another model or settings, to be encoded tonight. waiting: the same, on
            another night. kept: as they are.
        removed: in the last version, not in the source any more. put_aside: quarantined, unchanged.
    """

    latest: Snapshot | None
    new: list[ShardTask]
    changed: list[ShardTask]
    lost: list[ShardTask]
    touched: list[ShardTask]
    rolled: list[ShardTask]
    waiting: list[ShardTask]
    kept: list[ShardTask]
    removed: list[Receipt]
    put_aside: list[Quarantined]

    @property
    def tasks(self) -> list[ShardTask]:
        """Every shard that the next version holds, in the order of its name."""
        found = [*self.to_do, *self.waiting, *self.kept]
        return sorted(found, key=lambda task: task.name)

    @property
    def to_do(self) -> list[ShardTask]:
        """The shards that are read tonight."""
        return [*self.new, *self.changed, *self.lost, *self.touched, *self.rolled]

    @property
    def idle(self) -> bool:
        """Whether the next version would be the last one again."""
        before = self.latest.quarantined if self.latest else ()
        return not self.to_do and not self.removed and len(before) == len(self.put_aside)

    def run(self, store: str) -> StoreRun:
        """The run that makes the next version; takes over what an earlier try finished."""
        run = StoreRun.plan(kind="codes", store=store, tasks=self.tasks)
        return replace(run, put_aside=self.put_aside)


def compare(job: ReindexJob, model: Model) -> ReindexPlan:
    """Compares the source with the last version of the codes.

    Raises:
        MissingSourceError: a path of the source is not there, whatever ``max_removed`` allows.
        InputError: the source is empty or lost more shards than ``max_removed`` allows; the store
            is not one of codes.
    """
    latest = snapshot.read(job.codes) if snapshot.versions(job.codes) else None
    if latest and latest.kind != "codes":
        raise InputError(job.codes, expected="a store of codes", found=f"one of {latest.kind}")
    known = _Known(latest)
    shards = under_known_stems(_listing(job, latest), known_stems(latest))
    seen = {shard.stem for shard in shards}
    before = latest.shards if latest else ()
    night = ReindexPlan(
        latest=latest, new=[], changed=[], lost=[], touched=[], rolled=[], waiting=[], kept=[],
        put_aside=[], removed=[receipt for receipt in before if receipt.shard not in seen],
    )  # fmt: skip
    _refuse_a_vanished_source(job, night)
    work = encode_work(model.fingerprint, encode_job(job))
    there = {receipt.shard for receipt in still_there(job.codes, before)}
    stale = []
    for shard in shards:
        task = ShardTask(shard=shard, model=model.fingerprint, work=work)
        receipt = known.receipts.get(shard.stem)
        if receipt is None:
            _place_new(night, known, task, retry=job.on_bad_shard == "fail")
        elif shard.stem not in there:
            night.lost.append(task)
        elif not receipt.source.same_file(Source.of(shard)):
            _place_changed(night, receipt, task, content=job.compare == "content")
        elif receipt.work == work:
            night.kept.append(task)
        else:
            stale.append((task, receipt))
    _roll(night, stale, math.ceil(job.rollout * len(shards)))
    return night


def encode_job(job: ReindexJob) -> EncodeJob:
    """The same as a job of ``raypq encode``, so that either takes over what the other did."""
    return EncodeJob(
        model=job.model,
        features=job.features,
        output=job.codes,
        precision=job.precision,
        duplicate_ids=job.duplicate_ids,
        columns=job.columns,
        where=job.where,
        on_bad_shard=job.on_bad_shard,
    )


class _Known:
    """The last version by stem."""

    def __init__(self, latest: Snapshot | None) -> None:
        self.receipts = {receipt.shard: receipt for receipt in latest.shards} if latest else {}
        self.aside = {item.shard: item for item in latest.quarantined} if latest else {}


def _listing(job: ReindexJob, latest: Snapshot | None) -> list[Shard]:
    try:
        try:
            return list_shards(job.features)
        except EmptySourceError as error:
            if latest is None:
                raise
            if job.max_removed < 1:
                raise _refused(job, latest, error) from None
        places = [uri for uri in job.features if _holds_shards(uri)]
    except MissingSourceError as error:
        raise _missing(job, latest, error) from None
    return list_shards(places) if places else []


def _refused(job: ReindexJob, latest: Snapshot, error: EmptySourceError) -> InputError:
    return InputError(
        error.where,
        expected=f"{error.expected} (version {latest.version} of {job.codes} holds "
        f"{len(latest.shards)}; max_removed: 1 lets them go)",
        found=f"{error.found}; nothing was changed",
    )


def _missing(
    job: ReindexJob, latest: Snapshot | None, error: MissingSourceError
) -> MissingSourceError:
    """What is not there says nothing about its shards: a typo and an unmounted disk look alike."""
    held = f"version {latest.version} of {job.codes} keeps its shards; " if latest else ""
    return MissingSourceError(
        error.where,
        expected=error.expected,
        found=f"{error.found}; {held}nothing was changed. Correct the path, mount its disk, or "
        "remove the path from features",
    )


def _holds_shards(uri: str) -> bool:
    try:
        list_shards([uri])
    except EmptySourceError:
        return False
    return True


def _refuse_a_vanished_source(job: ReindexJob, night: ReindexPlan) -> None:
    before = len(night.latest.shards) if night.latest else 0
    gone = len(night.removed)
    if not gone or gone <= job.max_removed * before:
        return
    assert night.latest is not None, "something was there to be removed"
    raise InputError(
        ", ".join(job.features),
        expected=f"at least {math.ceil((1 - job.max_removed) * before)} of the {before} shards of "
        f"{job.codes} version {night.latest.version} (max_removed: {job.max_removed:g})",
        found=f"{gone} of them gone, such as {night.removed[0].source.uri}; nothing was changed",
    )


def _place_new(night: ReindexPlan, known: _Known, task: ShardTask, *, retry: bool) -> None:
    aside = known.aside.get(task.shard.stem)
    if aside and not retry and quarantine.is_unchanged(aside, Source.of(task.shard), task.work):
        night.put_aside.append(aside)  # it was bad, and nothing about it has changed
    else:
        night.new.append(task)


def _place_changed(night: ReindexPlan, receipt: Receipt, task: ShardTask, *, content: bool) -> None:
    if content and receipt.source.sha256 and receipt.source.size == task.shard.size:
        night.touched.append(replace(task, kept=receipt))
    else:
        night.changed.append(task)


def _roll(night: ReindexPlan, stale: list[tuple[ShardTask, Receipt]], share: int) -> None:
    """Chooses which shards move tonight: by hash, so a rerun chooses the same, and any share of
    them is a fair sample of the database."""
    order = sorted(
        stale,
        key=lambda pair: hashlib.sha256(f"{pair[0].work}:{pair[0].shard.stem}".encode()).digest(),
    )
    night.rolled += [task for task, _ in order[:share]]
    night.waiting += [
        replace(task, model=receipt.model, work=receipt.work) for task, receipt in order[share:]
    ]
