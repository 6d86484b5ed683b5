"""Dry run of a nightly job: the work that it would do, and an estimate of its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raypq.config import Columns, ReindexJob
from raypq.data.storage import join
from raypq.data.store import snapshot, snapshot_summary
from raypq.data.store.receipts import Receipts
from raypq.data.survey import count_rows
from raypq.stages.nightly.source_diff import ReindexPlan
from raypq.stages.nightly.vanished import ids_of
from raypq.stages.stores import known_rows
from raypq.stages.stores.shard_task import ShardTask, with_earlier

_MAX_NAMES = 20  # shards of each kind that are named
_MAX_VERSIONS = 10  # searched for the rate of an earlier run


def report(
    job: ReindexJob,
    plan: ReindexPlan,
    forecast: Forecast,
    classify: Sequence[dict[str, Any]],
    groups: Sequence[str],
) -> dict[str, Any]:
    """The plan as plain values.

    Args:
        classify: for each prediction store its ``store``, and the ``images`` to classify.
        groups: stores of groups of near-duplicates.
    """
    images = forecast.images
    to_read = {
        "new": plan.new,
        "changed": plan.changed,
        "output_missing": plan.output_missing,
        "mtime_changed": plan.mtime_changed,
        "migrating": plan.migrating,
    }
    seconds = {"encode": _seconds(job.codes, images)}
    for section in classify:
        seconds[section["store"]] = _seconds(section["store"], section["images"])
    for store in groups:
        seconds[store] = _seconds_of_last_run(store)
    known = [value for value in seconds.values() if value is not None]
    return {
        **{name: _names([task.name for task in tasks]) for name, tasks in to_read.items()},
        "removed": _names([receipt.source.uri for receipt in plan.removed]),
        "removed_images": forecast.removed,
        "kept": len(plan.kept),
        "kept_images": forecast.kept,
        "pending": len(plan.pending),
        "quarantined": len(plan.quarantined),
        "images": images,
        "estimated_shards": forecast.estimated,
        "bytes": sum(task.shard.size for task in plan.to_read),
        "classify": list(classify),
        "deduplicate": [{"store": store} for store in groups],
        "seconds": seconds,  # None where no version tells a rate
        "estimated_seconds": sum(known) if len(known) == len(seconds) else None,
    }


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Images by what a night would do with them.

    Attributes:
        images: to encode. kept: with their codes. removed: no longer in the source.
        estimated: number of shards whose images to encode are estimated, not counted; what such
            a shard keeps or loses is not known before it is read.
    """

    images: int
    kept: int
    removed: int
    estimated: int = 0


def forecast(job: ReindexJob, plan: ReindexPlan) -> Forecast:
    """What a night would do with images: of folders image by image, as they were listed; of other
    shards by their receipts, or estimated."""
    parts: list[ShardTask] = []
    if job.compare == "listing" and plan.latest:  # otherwise versions are digests of the content
        changed = [task for task in (*plan.new, *plan.changed) if task.shard.files is not None]
        parts = with_earlier(changed, plan.latest.shards, plan.latest)
    stems = {task.shard.stem for task in parts}
    others = [task for task in (*plan.new, *plan.changed) if task.shard.stem not in stems]
    compared = _compared(job, plan, parts)
    first = plan.latest is None or not plan.latest.rows
    return Forecast(
        images=_images_to_encode(plan, others, job.columns) + compared.images,
        kept=_rows_of(plan, [*plan.kept, *plan.pending]) + compared.kept,
        removed=sum(receipt.rows for receipt in plan.removed) + compared.removed,
        estimated=0 if first else len(others),
    )


def _compared(job: ReindexJob, plan: ReindexPlan, parts: Sequence[ShardTask]) -> Forecast:
    """Compares the files of parts of folders with the images of the last version: parts divide and
    unite, so their number tells nothing."""
    images = kept = held = 0
    for task in parts:
        assert task.shard.files is not None, "chosen by forecast"
        names, versions = (task.shard.files.column(name) for name in ("name", "version"))
        work = [receipt for receipt in task.before if receipt.work == task.work]
        same = known_rows.changes(job.codes, work)
        if same is not None:
            same.add(names, versions)
            kept += same.again
            images -= same.again
        images += len(names)
        listed = set(names.to_pylist())
        for receipt in task.before:
            for ids in ids_of(join(job.codes, receipt.path)):
                held += sum(name in listed for name in ids.to_pylist())
    unread = {task.shard.stem for task in plan.tasks} - {task.shard.stem for task in parts}
    before = {receipt.path: receipt for task in parts for receipt in task.before}
    rows = sum(item.rows for item in before.values() if item.shard not in unread)
    return Forecast(images=images, kept=kept, removed=max(rows - held, 0))


def _images_to_encode(plan: ReindexPlan, others: Sequence[ShardTask], columns: Columns) -> int:
    """Images of unchanged shards by their receipts, of others estimated from their bytes, or
    counted by their footers where there is no earlier version.

    Args:
        others: new and changed shards.
    """
    before = plan.latest.shards if plan.latest else Receipts.of(())
    rows = dict(zip(before.values("shard"), before.values("rows"), strict=True))
    known = [*plan.migrating, *plan.mtime_changed, *plan.output_missing]
    counted = sum(rows[task.shard.stem] for task in known)
    unknown = [task.shard for task in others]
    size = sum(before.values("source_size"))
    if size and (total := sum(rows.values())):
        return counted + round(sum(shard.size for shard in unknown) * total / size)
    return counted + count_rows(unknown, columns)


def _rows_of(plan: ReindexPlan, tasks: Sequence[ShardTask]) -> int:
    """Images of shards that the last version holds."""
    before = plan.latest.shards if plan.latest else Receipts.of(())
    rows = dict(zip(before.values("shard"), before.values("rows"), strict=True))
    return sum(rows[task.shard.stem] for task in tasks)


def _names(names: Sequence[str]) -> dict[str, Any]:
    summary: dict[str, Any] = {"shards": len(names)}
    if names:
        summary["names"] = sorted(names)[:_MAX_NAMES]
    if len(names) > _MAX_NAMES:
        summary["and"] = f"{len(names) - _MAX_NAMES} more"
    return summary


def _seconds(store: str, images: int) -> float | None:
    """Time at the rate of the latest run that did work; None where none did."""
    if not images:
        return 0.0
    for version in reversed(snapshot.versions(store)[-_MAX_VERSIONS:]):
        committed = snapshot.read(store, version)
        worked, seconds = (
            snapshot_summary.number(store, committed, "worked", key, least=0)
            for key in ("images", "seconds")
        )
        if worked and seconds:
            return float(f"{images * seconds / worked:.3g}")
    return None


def _seconds_of_last_run(store: str) -> float | None:
    """Time of the run that made the last version; None without one."""
    if not (versions := snapshot.versions(store)):
        return None
    run = snapshot.read(store, versions[-1]).summary.get("run", {})
    return float(f"{sum(run.get('seconds', {}).values()):.3g}")
