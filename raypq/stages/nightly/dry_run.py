"""Dry run of a nightly job: the work that it would do, and an estimate of its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypq.config import Columns, ReindexJob
from raypq.data.store import snapshot, snapshot_summary
from raypq.data.survey import count_rows
from raypq.stages.nightly.source_diff import ReindexPlan
from raypq.stages.stores.shard_task import ShardTask

_MAX_NAMES = 20  # shards of each kind that are named
_MAX_VERSIONS = 10  # searched for the rate of an earlier run


def report(
    job: ReindexJob, plan: ReindexPlan, classify: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The plan as plain values.

    Args:
        classify: for each prediction store its ``store``, and the ``images`` to classify.
    """
    images = images_to_encode(plan, job.columns)
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
    known = [value for value in seconds.values() if value is not None]
    return {
        **{name: _names([task.name for task in tasks]) for name, tasks in to_read.items()},
        "removed": _names([receipt.source.uri for receipt in plan.removed]),
        "removed_images": sum(receipt.rows for receipt in plan.removed),
        "kept": len(plan.kept),
        "kept_images": _rows_of(plan, [*plan.kept, *plan.pending]),
        "pending": len(plan.pending),
        "quarantined": len(plan.quarantined),
        "images": images,
        "bytes": sum(task.shard.size for task in plan.to_read),
        "classify": list(classify),
        "seconds": seconds,  # None where no version tells a rate
        "estimated_seconds": sum(known) if len(known) == len(seconds) else None,
    }


def images_to_encode(plan: ReindexPlan, columns: Columns) -> int:
    """Images of unchanged shards by their receipts, of others estimated from their bytes, or
    counted by their footers where there is no earlier version."""
    before = plan.latest.shards if plan.latest else ()
    rows = {receipt.shard: receipt.rows for receipt in before}
    known = [*plan.migrating, *plan.mtime_changed, *plan.output_missing]
    counted = sum(rows[task.shard.stem] for task in known)
    unknown = [task.shard for task in (*plan.new, *plan.changed)]
    size = sum(receipt.source.size for receipt in before)
    if size and (total := sum(rows.values())):
        return counted + round(sum(shard.size for shard in unknown) * total / size)
    return counted + count_rows(unknown, columns)


def _rows_of(plan: ReindexPlan, tasks: Sequence[ShardTask]) -> int:
    """Images of shards that the last version holds."""
    rows = {receipt.shard: receipt.rows for receipt in (plan.latest.shards if plan.latest else ())}
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
