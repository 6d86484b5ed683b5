"""Nights over time: what each version added, changed and lost, and the shards that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from raypq.data.store import snapshot_summary
from raypq.data.store.snapshot import Snapshot
from raypq.reporting import charts
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, Store, shorten
from raypq.reporting.tables import DASH, Table, count, moment

_COUNTS = ("new", "changed", "encoded_again", "removed", "kept", "left_out")  # of images
_MOST_ROWS = 60  # of the latest nights of a store
_MOST_SHARDS = 200  # that are named
_SINCE = "quarantined_since"  # key of a summary
_HEAD = [
    "store", "version", "made (UTC)", "new", "changed", "encoded again", "removed", "kept",
    "not decoded", "shards left out", "rolled out", "drifted shards", "seconds",
]  # fmt: skip
_NOTE = (
    "Images of each night, compared one by one with the version before. Rolled out: shards of the "
    "model of that night. Versions without counts were made by another command."
)


def chapter(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """The nights of each code store that has any, and the shards that stores leave out."""
    short = shorten([store.place for store in findings.stores])
    stores = [store for store in findings.codes if any(map(_is_night, store.versions))]
    rows, drawn, cut = [], [], False
    for number, store in enumerate(stores):
        rows += [_row(short, store, version) for version in store.versions[-_MOST_ROWS:]]
        cut = cut or len(store.versions) > _MOST_ROWS
        if len(store.versions) > 1:
            drawn.append(_images(number, short[store.place], store))
    note = _NOTE + (f" The latest {_MOST_ROWS} of each store are shown." if cut else "")
    tables = [Table(title="Nights", head=_HEAD, rows=rows, words=(0, 2), note=note)] if rows else []
    return [*tables, *_left_out(findings, short)], drawn


def _is_night(version: Snapshot) -> bool:
    return "night" in version.summary


def _row(short: Mapping[str, str], store: Store, version: Snapshot) -> list[Any]:
    number = partial(snapshot_summary.number, store.place, version, least=0)
    share = number("rollout", "share")
    drifted = snapshot_summary.items(store.place, version, "drift", "shards")
    seconds = number("seconds")
    return [
        short[store.place], version.version, moment(version.created),
        *(count(number("night_images", name)) for name in _COUNTS),
        len(version.quarantined),
        DASH if share is None else f"{100 * share:.0f}%",
        DASH if drifted is None else len(drifted),
        DASH if seconds is None else f"{seconds:.1f}",
    ]  # fmt: skip


def _images(number: int, name: str, store: Store) -> Chart:
    """Images by version: stored, and processed that night."""
    xs = [float(version.version) for version in store.versions]
    stored = [float(version.rows) for version in store.versions]
    worked = [
        snapshot_summary.number(store.place, version, "worked", "images", least=0) or 0.0
        for version in store.versions
    ]
    return charts.lines(
        f"nights-{number}", f"Images by version: {name}",
        "Images that a version holds, and those that its run encoded.",
        {"stored": (xs, stored), "encoded": (xs, worked)}, x="version", y="images",
        from_zero=True, whole_x=True,
    )  # fmt: skip


def _left_out(findings: Findings, short: Mapping[str, str]) -> list[Table]:
    """The shards that the latest versions leave out, by name."""
    rows: list[list[Any]] = []
    for store in findings.stores:
        since = snapshot_summary.section(store.place, store.latest, _SINCE)
        rows += [
            [
                short[store.place], item.uri,
                moment(str(since.get(item.shard, store.latest.created))),
                item.reason.removeprefix(f"{item.uri}: "),
            ]
            for item in store.latest.quarantined
        ]  # fmt: skip
    note = f"{_MOST_SHARDS} of {len(rows)} are named." if len(rows) > _MOST_SHARDS else ""
    head = ["store", "shard", "left out since (UTC)", "reason"]
    table = Table(
        title="Shards that are left out", head=head, rows=rows[:_MOST_SHARDS], words=(0, 1, 2, 3),
        wraps=(1, 3), note=note,
    )  # fmt: skip
    return [table] if rows else []
