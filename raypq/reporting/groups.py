"""Groups of near-duplicates in figures: versions, sizes, and what each threshold would drop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from raypq.data.store import snapshot_summary
from raypq.reporting import charts
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, Store, shorten
from raypq.reporting.tables import DASH, Table, count, moment

_EXACT = range(2, 8)  # sizes that are counted one by one; from 8 on, from each power of two
_THRESHOLDS = {  # by metric
    "l2": "threshold (largest squared distance)",
    "cosine": "threshold (smallest cosine)",
    "dot": "threshold (smallest inner product)",
}


def figures(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """Tables of versions and thresholds; charts of thresholds, and of the sizes in each store."""
    stores = [store for store in findings.stores if store.kind == "groups"]
    short = shorten([store.place for store in findings.stores])
    tables, drawn = _dropped(stores, short)
    for number, store in enumerate(stores):
        if sizes := snapshot_summary.points(store.place, store.latest, "sizes", least=0):
            drawn.append(_sizes(number, short[store.place], sizes))
    return [*tables, *_versions(stores, short)], drawn


def _dropped(stores: Sequence[Store], short: Mapping[str, str]) -> tuple[list[Table], list[Chart]]:
    """Images to drop by threshold: a table of all stores, and a chart for each metric."""
    rows: list[list[Any]] = []
    series: dict[str, dict[str, tuple[list[float], list[float]]]] = defaultdict(dict)
    for store in stores:
        summary, place = store.latest.summary, store.place
        # Thresholds that differ: of a run at distance 0, all ten are 0.
        points = dict(snapshot_summary.points(place, store.latest, "dropped_at", least=0))
        stored = snapshot_summary.number(place, store.latest, "rows", least=0)
        for threshold, dropped in points.items():
            left = None if stored is None else stored - dropped
            rows.append(
                [
                    short[place], f"{threshold:.4g}", count(dropped), _percent(dropped, stored),
                    count(left),
                ]
            )  # fmt: skip
        if len(points) > 1:
            of_metric = series[str(summary.get("metric"))]
            of_metric[short[place]] = ([*points], [*points.values()])
    head = ["store", "threshold", "images to drop", "share of the store", "images left"]
    tables = [Table(title="Images to drop, by threshold", head=head, rows=rows)] if rows else []
    drawn = []
    for number, (metric, known) in enumerate(series.items()):
        some = dict([*known.items()][: charts.MAX_SERIES])
        drawn.append(
            charts.lines(
                f"groups-dropped-{number}", f"Images to drop, by threshold ({metric})",
                "Images that groups at each threshold would drop, up to the threshold of the run."
                + (f" {len(some)} of {len(known)} stores are drawn." if known != some else ""),
                some, x=_THRESHOLDS.get(metric, "threshold"), y="images to drop", from_zero=True,
            )
        )  # fmt: skip
    return tables, drawn


def _percent(part: float | None, whole: float | None) -> str:
    return f"{100 * part / whole:.2f}%" if whole and part is not None else DASH


def _sizes(number: int, name: str, sizes: Sequence[tuple[float, float]]) -> Chart:
    """The number of groups of each size."""
    known = {int(size): groups for size, groups in sizes}
    most = max(known)
    powers = (1 << exponent for exponent in range(3, most.bit_length()))
    every = sorted({*known, *(size for size in (*_EXACT, *powers) if size <= most)})
    counts = {f"{size:,}" if size in _EXACT else f"{size:,}+": known.get(size, 0) for size in every}
    some = [groups for groups in known.values() if groups]
    return charts.bars(
        f"groups-sizes-{number}", f"Sizes of groups: {name}",
        "Groups by the number of their images; 8+ is 8 to 15, 16+ is 16 to 31, and so on.",
        counts, x="groups", y="images of a group",
        log_x=bool(some) and max(some) > 50 * min(some),
    )  # fmt: skip


def _versions(stores: Sequence[Store], short: Mapping[str, str]) -> list[Table]:
    """What each version found, by its threshold."""
    rows: list[list[Any]] = []
    for store in stores:
        for version in store.versions:
            summary = version.summary
            number = partial(snapshot_summary.number, store.place, version, least=0)
            stored, dropped = number("rows"), number("dropped")
            rows.append(
                [
                    short[store.place], version.version, moment(version.created),
                    summary.get("metric"), summary.get("linkage", "single"),
                    summary.get("threshold"), count(stored), count(number("groups")),
                    count(version.rows), count(number("largest")), count(dropped),
                    _percent(dropped, stored),
                ]
            )  # fmt: skip
    head = ["store", "version", "made (UTC)", "metric", "linkage", "threshold", "images stored",
            "groups", "images in groups", "largest group", "images to drop",
            "share of the store"]  # fmt: skip
    return (
        [Table(title="Groups by version", head=head, rows=rows, words=(0, 2, 3, 4))] if rows else []
    )
