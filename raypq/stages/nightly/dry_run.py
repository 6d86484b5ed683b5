"""Dry run of a nightly job: the work that it would do, and an estimate of its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypq.config import ReindexJob
from raypq.data.features import count_rows
from raypq.data.store import snapshot
from raypq.stages.nightly.source_diff import ReindexPlan

_NAMES = 20  # of each kind that are told one by one
_LOOK_BACK = 10  # versions, for the rate of earlier runs


def plan_of(
    job: ReindexJob, night: ReindexPlan, answers: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The plan as plain values.

    Args:
        answers: for each prediction store its ``store``, and the ``images`` to classify.
    """
    images = images_of(night)
    heads = {
        "new": night.new,
        "changed": night.changed,
        "lost": night.lost,
        "touched": night.touched,
        "rolled": night.rolled,
    }
    seconds = {"encode": _seconds(job.codes, images)}
    for answer in answers:
        seconds[answer["store"]] = _seconds(answer["store"], answer["images"])
    known = [value for value in seconds.values() if value is not None]
    return {
        **{name: _named([task.name for task in tasks]) for name, tasks in heads.items()},
        "removed": _named([receipt.source.uri for receipt in night.removed]),
        "kept": len(night.kept),
        "waiting": len(night.waiting),
        "quarantined": len(night.put_aside),
        "images": images,
        "bytes": sum(task.shard.size for task in night.to_do),
        "classify": list(answers),
        # None: nothing was ever done here to take a rate from.
        "seconds": seconds,
        "estimated_seconds": sum(known) if len(known) == len(seconds) else None,
    }


def images_of(night: ReindexPlan) -> int:
    """Images to encode: known ones by their receipts, others by their bytes or their footers."""
    before = night.latest.shards if night.latest else ()
    rows = {receipt.shard: receipt.rows for receipt in before}
    known = [*night.rolled, *night.touched, *night.lost]
    counted = sum(rows[task.shard.stem] for task in known)
    unknown = [task.shard for task in (*night.new, *night.changed)]
    size = sum(receipt.source.size for receipt in before)
    if size and (total := sum(rows.values())):
        return counted + round(sum(shard.size for shard in unknown) * total / size)
    return counted + count_rows(unknown)


def _named(names: Sequence[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"shards": len(names)}
    if names:
        told["names"] = sorted(names)[:_NAMES]
    if len(names) > _NAMES:
        told["and"] = f"{len(names) - _NAMES} more"
    return told


def _seconds(store: str, images: int) -> float | None:
    """Time at the rate of the latest run that did something."""
    if not images:
        return 0.0
    for version in reversed(snapshot.versions(store)[-_LOOK_BACK:]):
        worked = snapshot.read(store, version).summary.get("worked") or {}
        if worked.get("images") and worked.get("seconds"):
            return float(f"{images * worked['seconds'] / worked['images']:.3g}")
    return None
