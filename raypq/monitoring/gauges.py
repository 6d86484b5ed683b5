"""Metrics of a run that has ended, and of the stores that it writes.

A run that fails sets neither the time of the last success nor what only a result has; whoever
delivers the metrics keeps these from the last run (``raypq.monitoring.delivery``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from raypq import console
from raypq.config import ReindexJob
from raypq.config.places import Place, Writes, places
from raypq.data.store import snapshot, snapshot_summary
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError, RaypqError
from raypq.monitoring.outcome import Outcome
from raypq.monitoring.prometheus_text import Gauge

_NIGHT_SHARDS = "Shards of the last night that succeeded, by what was done with them."
_NIGHT_IMAGES = "Images of the last night that succeeded, by what was done with them."


def labels_of(outcome: Outcome) -> dict[str, str]:
    """The labels of all metrics of a job: its verb, and the first place that it writes."""
    outputs = [place.uri for place in places(outcome.job) if _is_output(place)]
    verb = outcome.job.verb.removeprefix("raypq ")
    return {"verb": verb, "output": outputs[0] if outputs else ""}


def of_outcome(outcome: Outcome) -> list[Gauge]:
    """The metrics of a run and of its stores."""
    gauges = [*_of_run(outcome), *_of_passes(outcome)]
    versions = dict(_versions(outcome))
    gauges += _of_stores(versions)
    if isinstance(outcome.job, ReindexJob):
        gauges += _of_night(outcome.result or {})
        if codes := versions.get(outcome.job.codes):
            gauges += _of_codes(outcome.job.codes, codes)
    return gauges


def _gauge(name: str, text: str, value: float | None = None) -> Gauge:
    gauge = Gauge(name=f"raypq_{name}", help=text)
    if value is not None:
        gauge.set(value)
    return gauge


def _of_run(outcome: Outcome) -> Iterator[Gauge]:
    end = outcome.began.timestamp() + outcome.seconds
    yield _gauge("run_success", "1 if the last run succeeded, else 0.", not outcome.error)
    yield _gauge("run_exit_code", "Exit code of the last run.", outcome.exit_code)
    yield _gauge("run_end_timestamp_seconds", "Time of the end of the last run.", end)
    yield _gauge("run_duration_seconds", "Seconds that the last run took.", outcome.seconds)
    if not outcome.error:
        yield _gauge("last_success_timestamp_seconds", "Time of the last success.", end)


def _of_passes(outcome: Outcome) -> Iterator[Gauge]:
    """Shards and images of the run, done or not; the totals are there where it did no work, too."""
    failed = len(outcome.failures)
    yield _gauge("run_shards_failed", "Shards that failed in the last run.", failed)
    not_tried = sum(counts.not_tried for counts in outcome.passes.values())
    yield _gauge(
        "run_shards_not_tried",
        "Shards that the last run did not try, since so many failed alike.",
        not_tried,
    )
    shards = _gauge("run_shards_done", "Shards that the last run finished, by pass.")
    images = _gauge("run_images_done", "Images that the last run finished, by pass.")
    for label, counts in outcome.passes.items():
        shards.set(counts.done, stage=label)
        images.set(counts.images, stage=label)
    yield shards
    yield images


def _versions(outcome: Outcome) -> Iterator[tuple[str, Snapshot]]:
    """The latest version of each store that the job writes."""
    for place in places(outcome.job):
        if not (_is_output(place) and place.use.kind == "store"):
            continue
        try:
            if snapshot.versions(place.uri):
                yield place.uri, snapshot.read(place.uri)
        except (RaypqError, OSError) as error:
            console.warn(f"no metrics of {place.uri}: {error}")


def _of_stores(versions: dict[str, Snapshot]) -> list[Gauge]:
    gauges = {
        "version": _gauge("store_version", "Number of the latest version."),
        "time": _gauge(
            "store_version_timestamp_seconds", "Time at which the latest version was made."
        ),
        "rows": _gauge("store_rows", "Rows (images, queries, pairs) of the latest version."),
        "shards": _gauge("store_shards", "Shards of the latest version."),
        "bytes": _gauge("store_bytes", "Bytes of the shards of the latest version."),
        "quarantined": _gauge(
            "store_quarantined_shards", "Shards that the latest version leaves out."
        ),
    }
    for store, version in versions.items():
        values: dict[str, float] = {
            "version": version.version,
            "time": datetime.fromisoformat(version.created).timestamp(),
            "rows": version.rows,
            "shards": len(version.shards),
            "bytes": version.shards.totals.bytes,
            "quarantined": len(version.quarantined),
        }
        for name, value in values.items():
            gauges[name].set(value, store=store)
    return list(gauges.values())


def _of_night(result: Mapping[str, object]) -> Iterator[Gauge]:
    for name, text in (("shards", _NIGHT_SHARDS), ("images", _NIGHT_IMAGES)):
        gauge = _gauge(f"night_{name}", text)
        counts = result.get(name)
        for kind, count in counts.items() if isinstance(counts, dict) else ():
            if isinstance(count, int | float):
                gauge.set(count, kind=kind)
        yield gauge


def _of_codes(store: str, codes: Snapshot) -> Iterator[Gauge]:
    """Roll-out and drift, which the version of the codes has, also where a later step failed."""
    try:
        share = snapshot_summary.number(store, codes, "rollout", "share")
        yield _gauge("rollout_share", "Share of the shards that are under the job's model.", share)
        drifted = snapshot_summary.items(store, codes, "drift", "shards")
        count = None if drifted is None else len(drifted)
        yield _gauge("drifted_shards", "Shards that drifted in the latest version.", count)
        judged = snapshot_summary.number(store, codes, "drift", "judged")
        yield _gauge(
            "drift_judged_shards", "Shards of the latest version judged for drift.", judged
        )
    except InputError as error:  # people edit summaries
        console.warn(f"no metrics of roll-out or drift: {error}")


def _is_output(place: Place) -> bool:
    return isinstance(place.use, Writes) and not place.field.startswith("monitoring.")
