"""The result of each job as plain values: what its command prints, and its log and file have."""

from __future__ import annotations

from typing import Any

from raypq.config import (
    ClassifyJob,
    ClusterJob,
    DeduplicateJob,
    DuplicatesJob,
    EncodeJob,
    ExtractJob,
    Job,
    SearchJob,
)
from raypq.data.store.snapshot import Snapshot
from raypq.stages.stores.quarantine import reason_of

# Entries of a version's summary that the result of a job has.
_SHOWN: dict[type[Job], tuple[str, ...]] = {
    EncodeJob: (
        "backbone",
        "codes_changed_by_precision",
        "dropped",
        "duplicate_ids",
        "images_left_out",
        "images_unchanged",
    ),
    ExtractJob: ("backbone", "dx", "dtype", "dropped", "images_left_out", "images_unchanged"),
    SearchJob: ("refused",),
    DeduplicateJob: ("groups", "dropped", "largest"),
    ClusterJob: ("k", "empty", "largest", "mean_score"),
}
# What the rows of a version are, where they are not images.
_ROWS: dict[type[Job], str] = {
    SearchJob: "queries",
    DuplicatesJob: "pairs",
    DeduplicateJob: "grouped",
}
_OF_CLASSIFY = ("accuracy", "unknown_labels")  # of the entry ``result``


def result_of(job: Job, returned: Any) -> dict[str, Any]:
    """The result of a job, by what its function returned: a version, a trained model, or values."""
    if not isinstance(returned, Snapshot):
        values = getattr(returned, "summary", returned)
        return values if isinstance(values, dict) else {}
    result = version_summary(returned, getattr(job, "output", ""))
    rows = _ROWS.get(type(job), "images")
    result = {rows if key == "images" else key: value for key, value in result.items()}
    shown = {
        key: returned.summary[key] for key in _SHOWN.get(type(job), ()) if key in returned.summary
    }
    if isinstance(job, ClassifyJob):
        counts = returned.summary["result"]
        shown = {key: counts[key] for key in _OF_CLASSIFY if key in counts}
    return result | shown


def version_summary(version: Snapshot, store: str) -> dict[str, Any]:
    """The result of a command that wrote a version."""
    return {
        "store": store,
        "version": version.version,
        "images": version.rows,
        "shards": len(version.shards),
        "bytes": version.shards.totals.bytes,
        "quarantined": [reason_of(item) for item in version.quarantined],
        "seconds": version.summary["seconds"],
    }
