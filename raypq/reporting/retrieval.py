"""Evaluations of retrieval: metrics at R, and precision over recall."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raypq.reporting import charts
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, Named
from raypq.reporting.tables import Table, count, share

_AT_R = ("map", "precision", "recall", "1-recall")
_AT = re.compile(r"(map|precision|recall|1-recall)@(\d+)")
_KINDS = (
    ("precision", "Precision", "Share of rows of the query's label among the first R."),
    (
        "recall",
        "Recall of exact search",
        "Share of the R nearest, by exact search, in the first R.",
    ),
    (
        "1-recall",
        "Recall of the nearest",
        "How often the nearest by exact search is in the first R.",
    ),
)


def chapter(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """One row per result file, and one chart for each kind of curve."""
    if not findings.retrievals:
        return [], []
    rows: list[list[Any]] = []
    at: list[list[Any]] = []
    for item in findings.retrievals:
        content = item.content
        rows.append(
            [
                item.name, content.get("metric"), content.get("distance"), count(content["rows"]),
                count(content["queries"]), count(content.get("queries_in_store")),
                share(content.get("map")),
            ]
        )  # fmt: skip
        depths = {int(match[2]) for key in content if (match := _AT.fullmatch(key))}
        at += [
            [item.name, R, *(share(content.get(f"{kind}@{R}")) for kind in _AT_R)]
            for R in sorted(depths)
        ]
    head = ["", "metric", "distance", "rows", "queries", "of these stored", "mAP"]
    drawn = [chart for kind in _KINDS if (chart := _over_depth(findings, *kind))]
    if chart := _precision_recall(findings):
        drawn.append(chart)
    warning = _finding_themselves(findings)
    table = Table(title="Rankings", head=head, rows=rows, words=(0, 1, 2), warning=warning)
    tables = [table]
    if at:
        tables.append(Table(title="The first R", head=["", "R", *_AT_R], rows=at))
    return tables, drawn


def _finding_themselves(findings: Findings) -> str:
    """A warning of evaluations whose queries are in the store."""
    names = [item.name for item in findings.retrievals if item.content.get("queries_in_store")]
    if not names:
        return ""
    return (
        f"Queries of {', '.join(names)} are stored themselves: each finds itself first, so every "
        "figure is better than it is for new images. Leave them out of the queries, or encode a "
        "store without them."
    )


def _at(content: Mapping[str, Any], kind: str) -> tuple[list[float], list[float]]:
    """R, and the metric at each R."""
    points = sorted(
        (int(key.partition("@")[2]), float(value))
        for key, value in content.items()
        if key.startswith(f"{kind}@") and value is not None
    )
    return [float(R) for R, _ in points], [value for _, value in points]


def _over_depth(findings: Findings, kind: str, title: str, caption: str) -> Chart | None:
    series = {
        item.name: at for item in findings.retrievals if len((at := _at(item.content, kind))[0])
    }
    if not any(len(xs) > 1 for xs, _ in series.values()):
        return None
    return charts.lines(
        f"retrieval-{kind}", title, caption, series, x="R", y=f"{kind}@R", log_x=True,
        from_zero=True,
    )  # fmt: skip


def _precision_recall(findings: Findings) -> Chart | None:
    """The curve of each result that had a relevant row: pairs of recall and precision."""

    def curve(item: Named) -> tuple[list[float], list[float]] | None:
        points = item.content.get("precision_recall")
        if not points:
            return None
        return [float(recall) for recall, _ in points], [float(value) for _, value in points]

    series = {item.name: points for item in findings.retrievals if (points := curve(item))}
    if not series:
        return None
    return charts.lines(
        "precision-recall", "Precision over recall",
        "Down the ranking of the whole store: precision where recall first reaches each level, "
        "mean of the queries.",
        series, x="recall", y="precision", from_zero=True,
    )  # fmt: skip
