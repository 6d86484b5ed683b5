"""The latest run of each store: whether anything needs a look, its workers, and its times."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from raypq.data.store import snapshot_summary
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, Store, shorten
from raypq.reporting.tables import DASH, Table, count, moment

PHASES = ("plan", "start", "check ids", "finish")  # of a run's record: not the work itself
_BUSY = 0.5  # utilisation below which workers mostly waited
_LONG = 60.0  # seconds of work from which that matters


def chapter(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """One row for each store."""
    short = shorten([store.place for store in findings.stores])
    rows: list[list[Any]] = []
    for store in findings.stores:
        number = partial(snapshot_summary.number, store.place, store.latest, least=0)
        asked, most = number("run", "workers", "asked"), number("run", "workers", "most")
        busy = number("run", "workers", "utilisation")
        versions = snapshot_summary.section(store.place, store.latest, "run", "versions")
        rows.append(
            [
                short[store.place], ", ".join(_signs(store)) or "nothing to look at",
                store.latest.version, moment(store.latest.created),
                versions.get("raypq", DASH),
                DASH if asked is None else f"{count(most)} of {count(asked)}",
                DASH if busy is None else f"{100 * busy:.0f}%",
                *(count(number("run", "workers", name)) for name in ("retries", "deaths")),
            ]
        )  # fmt: skip
    head = ["store", "state", "version", "made (UTC)", "raypq", "workers", "busy", "retries",
            "deaths"]  # fmt: skip
    note = (
        "Workers: the most at once, of those asked for. Busy: share of their time in tasks. Deaths "
        "of workers on spot nodes are no fault: their shards were done again."
    )
    table = Table(title="Latest runs", head=head, rows=rows, words=(0, 1, 3, 4), note=note)
    return [table] if rows else [], []


def _signs(store: Store) -> Iterator[str]:
    """What a person should look at."""
    latest = store.latest
    number = partial(snapshot_summary.number, store.place, latest, least=0)
    if latest.quarantined:
        yield f"{len(latest.quarantined)} shard(s) left out"
    if drifted := snapshot_summary.items(store.place, latest, "drift", "shards"):
        yield f"{len(drifted)} shard(s) drifted"
    share = number("rollout", "share")
    if share is not None and share < 1:
        yield f"{100 * share:.0f}% rolled out"
    asked, most = number("run", "workers", "asked") or 0.0, number("run", "workers", "most") or 0.0
    if 0 < most < asked and (number("run", "workers", "tasks") or 0.0) > most:
        yield f"{count(most)} of {count(asked)} workers started"
    busy = number("run", "workers", "utilisation")
    if busy is not None and busy < _BUSY and work_seconds(store) > _LONG:
        yield "workers mostly waited"


def work_seconds(store: Store) -> float:
    """Seconds of the work of the latest run, without its plan, the start of workers and its end."""
    seconds = snapshot_summary.section(store.place, store.latest, "run", "seconds")
    return sum(
        snapshot_summary.number(store.place, store.latest, "run", "seconds", name, least=0) or 0.0
        for name in seconds
        if name not in PHASES
    )
