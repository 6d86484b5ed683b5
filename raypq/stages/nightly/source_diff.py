"""Differences between the feature shards of a source and the last version of their codes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.config import EncodeJob, ReindexJob
from raypq.data.storage import Shard
from raypq.data.store import snapshot
from raypq.data.store.journal import are_present
from raypq.data.store.manifest import COLUMNS
from raypq.data.store.receipts import Receipts
from raypq.data.store.shard_writer import UNKNOWN_TAG, Receipt, Source
from raypq.data.store.snapshot import Quarantined, Snapshot
from raypq.data.store.sources import list_sources
from raypq.errors import EmptySourceError, InputError, MissingSourceError
from raypq.methods.base import Model
from raypq.stages.nightly.vanished import refuse_vanished_images, refuse_vanished_shards
from raypq.stages.stores import quarantine
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import KeptTasks, ShardTask, known_stems, with_known_stems
from raypq.stages.stores.source_index import SourceIndex
from raypq.stages.stores.work_id import encode_work


@dataclass(kw_only=True, eq=False)
class ReindexPlan:
    """Every shard of the source and of the last version, by what a night does with it.

    Attributes:
        latest: the last version, if there is one.
        work: work id of shards under the job's model and settings.
        new, changed: to encode.
        output_missing: to encode because their code file is gone.
        mtime_changed: of equal size, with another time or etag; their content decides. Those of
            another model or settings that do not migrate tonight are here, too, not in ``pending``.
        migrating: to encode tonight under the job's model and settings.
        pending: to encode again on a later night.
        kept: no work.
        removed: in the last version, but not in the source.
        quarantined: left out before, and unchanged since.
    """

    latest: Snapshot | None
    work: str
    new: list[ShardTask]
    changed: list[ShardTask]
    output_missing: list[ShardTask]
    mtime_changed: list[ShardTask]
    migrating: list[ShardTask]
    pending: list[ShardTask]
    kept: KeptTasks
    removed: list[Receipt]
    quarantined: list[Quarantined]

    @property
    def tasks(self) -> list[ShardTask]:
        """Every shard of the next version, ordered by name."""
        tasks = [*self.to_read, *self.pending, *self.kept]
        return sorted(tasks, key=lambda task: task.name)

    @property
    def to_read(self) -> list[ShardTask]:
        """The shards that are read tonight."""
        return [
            *self.new,
            *self.changed,
            *self.output_missing,
            *self.mtime_changed,
            *self.migrating,
        ]

    @property
    def idle(self) -> bool:
        """Whether the next version would equal the last one."""
        before = self.latest.quarantined if self.latest else ()
        return not self.to_read and not self.removed and len(before) == len(self.quarantined)

    def run(self, store: str) -> StoreRun:
        """The run that makes the next version; shards that an interrupted run finished count as
        done."""
        run = StoreRun.plan(kind="codes", store=store, tasks=self.tasks)
        return replace(run, quarantined=self.quarantined)


def diff_source(job: ReindexJob, model: Model, listed: Sequence[Shard]) -> ReindexPlan:
    """Compares the source, as ``list_source`` found it, with the last version of the codes.

    Raises:
        InputError: the source lost more shards, or images, than ``max_removed`` allows.
    """
    latest = _latest(job)
    held = latest.shards if latest else Receipts.of(())
    intact = _are_intact(job.codes, held)  # first, while little else is in memory
    quarantined = {item.shard: item for item in latest.quarantined} if latest else {}
    shards = with_known_stems(listed, known_stems(listed, latest))
    stems = pa.array((shard.stem for shard in shards), COLUMNS["shard"])
    work = encode_work(model.fingerprint, encode_job(job))
    plan = ReindexPlan(
        latest=latest, work=work, new=[], changed=[], output_missing=[], mtime_changed=[],
        migrating=[], pending=[], quarantined=[], removed=_removed(held, stems, shards),
        kept=KeptTasks([], model=model.fingerprint, work=work),
    )  # fmt: skip
    refuse_vanished_shards(job, latest, plan.removed)
    refuse_vanished_images(job, latest, shards)
    rows = held.find(stems)
    is_intact = intact[rows] & (rows >= 0)
    is_kept = is_intact & _are_same(held, rows, shards, work)
    plan.kept.add(shards[number] for number in np.flatnonzero(is_kept).tolist())
    others = np.flatnonzero(~is_kept)
    receipts = iter(held.select(rows[others][rows[others] >= 0]))
    outdated = []
    for number in others.tolist():
        shard = shards[number]
        task = ShardTask(shard=shard, model=model.fingerprint, work=work)
        receipt = next(receipts) if rows[number] >= 0 else None
        if receipt is None:
            _add_unknown(plan, quarantined.get(shard.stem), task, retry=job.on_bad_shard == "fail")
        elif not is_intact[number]:
            plan.output_missing.append(task)
        elif not _may_be_equal(receipt, shard, by_content=job.compare == "content"):
            plan.changed.append(task)
        elif receipt.work != work:
            outdated.append((task, receipt))
        else:
            _add_unmigrated(plan, receipt, task)
    _migrate(plan, outdated, math.ceil(job.rollout * len(shards)))
    return plan


def _removed(held: Receipts, stems: pa.Array, shards: Sequence[Shard]) -> list[Receipt]:
    """The receipts of shards that the source lacks, also as parts of other shards."""
    rows = np.flatnonzero(~np.asarray(pc.is_in(held.column("shard"), value_set=stems)))
    if not len(rows):
        return []
    given = SourceIndex(shard.uri for shard in shards)
    return [item for item in held.select(rows) if not given.overlapping(item.source.uri)]


def _are_intact(store: str, held: Receipts) -> NDArray[np.bool_]:
    """Which receipts have their files [len(held) + 1]; the last entry stands for no receipt."""
    present = are_present(store, held.files()) if len(held) else []
    return np.array([*present, False], np.bool_)


def _are_same(
    held: Receipts, rows: NDArray[np.int64], shards: Sequence[Shard], work: str
) -> NDArray[np.bool_]:
    """Which shards have the work, and by URI, size and tag the file, of their receipts; others may
    be equal, too.

    Args:
        rows: the receipt of each shard; −1 for none.
    """
    if not len(held):
        return np.zeros(len(shards), np.bool_)
    at = pa.array(np.maximum(rows, 0))
    given = {
        "source_size": (shard.size for shard in shards),
        "source_uri": (shard.uri for shard in shards),
        "source_modified": (shard.modified for shard in shards),
    }
    same = (rows >= 0) & np.asarray(pc.equal(held.column("work").take(at), work))
    for name, values in given.items():
        same &= np.asarray(pc.equal(pa.array(values, COLUMNS[name]), held.column(name).take(at)))
    return same & np.asarray(pc.not_equal(held.column("source_modified").take(at), UNKNOWN_TAG))


def encode_job(job: ReindexJob) -> EncodeJob:
    """The equal job of ``raypq encode``: the work ids agree, so each keeps the other's shards."""
    return EncodeJob(
        model=job.model,
        features=job.features,
        images=job.images,
        backbone=job.backbone,
        network=job.network,
        output=job.codes,
        precision=job.precision,
        duplicate_ids=job.duplicate_ids,
        columns=job.columns,
        where=job.where,
        on_bad_shard=job.on_bad_shard,
    )


def _latest(job: ReindexJob) -> Snapshot | None:
    latest = snapshot.read(job.codes) if snapshot.versions(job.codes) else None
    if latest and latest.kind != "codes":
        raise InputError(job.codes, expected="a store of codes", found=f"one of {latest.kind}")
    return latest


def list_source(job: ReindexJob) -> list[Shard]:
    """The shards of the source.

    Raises:
        MissingSourceError: a path of the source does not exist, whatever ``max_removed`` allows.
        InputError: the source is empty, unless ``max_removed`` allows it; the store is not a code
            store.
    """
    latest = _latest(job)
    try:
        try:
            return list_sources(job.source, job.source_kind)
        except EmptySourceError as error:
            if latest is None:
                raise
            if job.max_removed < 1:
                raise _empty(job, latest, error) from None
        paths = [uri for uri in job.source if _holds_shards(uri)]
    except MissingSourceError as error:
        raise _missing(job, latest, error) from None
    return list_sources(paths, job.source_kind) if paths else []


def _empty(job: ReindexJob, latest: Snapshot, error: EmptySourceError) -> InputError:
    return InputError(
        error.location,
        expected=f"{error.expected} (version {latest.version} of {job.codes} holds "
        f"{len(latest.shards)}; max_removed: 1 lets them go)",
        found=f"{error.found}; nothing was changed",
    )


def _missing(
    job: ReindexJob, latest: Snapshot | None, error: MissingSourceError
) -> MissingSourceError:
    """The error of a path that does not exist. It never counts as removed shards: it may be a typo
    or an unmounted disk."""
    held = f"version {latest.version} of {job.codes} keeps its shards; " if latest else ""
    return MissingSourceError(
        error.location,
        expected=error.expected,
        found=f"{error.found}; {held}nothing was changed. Correct the path, mount its disk, or "
        f"remove the path from {job.source_kind}",
    )


def _holds_shards(uri: str) -> bool:
    try:
        list_sources([uri])
    except EmptySourceError:
        return False
    return True


def _add_unknown(
    plan: ReindexPlan, before: Quarantined | None, task: ShardTask, *, retry: bool
) -> None:
    """Adds a shard that the last version does not hold: it is new, or was quarantined."""
    if before and not retry and quarantine.is_unchanged(before, Source.of(task.shard), task.work):
        plan.quarantined.append(before)
    else:
        plan.new.append(task)


def _may_be_equal(receipt: Receipt, shard: Shard, *, by_content: bool) -> bool:
    """Whether a shard is what its codes were made of, or may prove to be when it is hashed."""
    if receipt.source.same_file(Source.of(shard)):
        return True
    return by_content and bool(receipt.source.sha256) and receipt.source.size == shard.size


def _add_unmigrated(plan: ReindexPlan, receipt: Receipt, task: ShardTask) -> None:
    """Adds a shard that does not migrate tonight: its codes are kept, unless its content proves to
    have changed."""
    if not receipt.source.same_file(Source.of(task.shard)):
        # Its content decides; if that is another, it is encoded under the job's model.
        plan.mtime_changed.append(replace(task, previous=receipt))
    elif receipt.work == plan.work:
        plan.kept.add([task.shard])
    else:
        plan.pending.append(replace(task, model=receipt.model, work=receipt.work))


def _migrate(plan: ReindexPlan, outdated: list[tuple[ShardTask, Receipt]], count: int) -> None:
    """Chooses which shards migrate tonight: by hash, so that a rerun chooses the same ones, and
    those under the new model are a fair sample of the store."""
    order = sorted(
        outdated,
        key=lambda pair: hashlib.sha256(f"{pair[0].work}:{pair[0].shard.stem}".encode()).digest(),
    )
    plan.migrating += [task for task, _ in order[:count]]
    for task, receipt in order[count:]:
        _add_unmigrated(plan, receipt, task)
