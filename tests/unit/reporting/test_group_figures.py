"""Figures of groups of near-duplicates: what thresholds would drop, sizes, versions."""

from __future__ import annotations

import re
from typing import Any

import pytest

from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.reporting import charts, groups
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, Store

SUMMARY: dict[str, Any] = {
    "metric": "l2", "threshold": 0.1, "rows": 1000, "groups": 137, "members": 300, "dropped": 163,
    "largest": 20, "sizes": [[2, 120], [3, 14], [8, 2], [16, 1]],
    "dropped_at": [[0.05, 25], [0.1, 163]],
}  # fmt: skip


def store(name: str, *summaries: dict[str, Any]) -> Store:
    versions = [
        Snapshot(kind="groups", version=number, parent=None, nonce="n", run_id="r",
                 created="2026-01-02T03:04:05+00:00", shards=(), summary=summary)
        for number, summary in enumerate(summaries, start=1)
    ]  # fmt: skip
    return Store(place=f"/s/{name}", versions=versions)


def figures(*stores: Store) -> tuple[dict[str, list[list[Any]]], list[Chart]]:
    """Rows of tables by title, and the charts."""
    tables, drawn = groups.figures(Findings(stores=list(stores)))
    return {table.title: [list(row) for row in table.rows] for table in tables}, drawn


def words(chart: Chart) -> list[str]:
    return re.findall(r">([^<>\n]+)</text>", chart.svg)


def test_thresholds_and_sizes():
    tables, drawn = figures(store("a", SUMMARY))
    assert tables["Images to drop, by threshold"] == [
        ["/s/a", "0.05", "25", "2.50%", "975"],
        ["/s/a", "0.1", "163", "16.30%", "837"],
    ]
    assert [chart.title for chart in drawn] == [
        "Images to drop, by threshold (l2)", "Sizes of groups: /s/a",
    ]  # fmt: skip
    assert "threshold (largest squared distance)" in words(drawn[0])
    shown = words(drawn[1])
    for size, n in (("2", "120"), ("3", "14"), ("4", "0"), ("8+", "2"), ("16+", "1")):
        assert size in shown
        assert n in shown
    assert "32+" not in shown


def test_versions():
    older = {key: SUMMARY[key] for key in ("metric", "threshold", "rows", "groups", "dropped")}
    tables, _ = figures(store("a", older, {"members": 5}, SUMMARY | {"linkage": "complete"}))
    made = "2026-01-02 03:04:05"
    assert tables["Groups by version"] == [
        ["/s/a", 1, made, "l2", "single", 0.1, "1,000", "137", "0", "–", "163", "16.30%"],
        ["/s/a", 2, made, None, "single", None, "–", "–", "0", "–", "–", "–"],
        ["/s/a", 3, made, "l2", "complete", 0.1, "1,000", "137", "0", "20", "163", "16.30%"],
    ]


def test_one_threshold_needs_no_chart():
    tables, drawn = figures(store("a", SUMMARY | {"dropped_at": [[0.0, 3]] * 10}))
    assert tables["Images to drop, by threshold"] == [["/s/a", "0", "3", "0.30%", "997"]]
    assert [chart.title for chart in drawn] == ["Sizes of groups: /s/a"]


@pytest.mark.parametrize("lacks", ["sizes", "dropped_at"])
def test_older_versions_have_no_charts(lacks):
    lacking = {key: value for key, value in SUMMARY.items() if key != lacks}
    tables, drawn = figures(store("a", lacking))
    assert len(drawn) == 1
    assert ("Images to drop, by threshold" in tables) == (lacks == "sizes")
    tables, drawn = figures(store("a", SUMMARY | {"sizes": [], "dropped_at": []}))
    assert (drawn, list(tables)) == ([], ["Groups by version"])
    assert figures() == ({}, [])


def test_a_chart_of_thresholds_for_each_metric():
    cosine = SUMMARY | {"metric": "cosine", "dropped_at": [[0.99, 1], [0.95, 5]]}
    stores = [store(f"l{number}", SUMMARY) for number in range(charts.MAX_SERIES + 2)]
    tables, drawn = figures(*stores, store("c", cosine))
    first, second = (chart for chart in drawn if chart.title.startswith("Images to drop"))
    assert first.caption.endswith(
        f"{charts.MAX_SERIES} of {charts.MAX_SERIES + 2} stores are drawn."
    )
    assert {"l0", "l5"} <= {*words(first)}
    assert "l6" not in words(first)
    assert "threshold (smallest cosine)" in words(second)
    assert len(tables["Images to drop, by threshold"]) == 2 * (charts.MAX_SERIES + 3)
    ids = [name for chart in drawn for name in re.findall(r' id="([^"]+)"', chart.svg)]
    assert len(set(ids)) == len(ids)


def test_names_are_text():
    named = [store("<b>&$x_", SUMMARY), store("$\\frac$", SUMMARY)]
    _, drawn = figures(*named)
    assert all("<b>" not in chart.svg for chart in drawn)
    assert "$\\frac$" in words(drawn[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sizes", {"2": 3}), ("sizes", [2, 3]), ("sizes", [[2, -1]]), ("sizes", [[2, "3"]]),
        ("dropped_at", [[0.1]]), ("dropped_at", [[float("nan"), 3]]), ("dropped_at", [[0.1, True]]),
        ("dropped", "many"),
    ],
)  # fmt: skip
def test_a_summary_that_was_edited_is_named(key, value):
    with pytest.raises(InputError, match=f"key 'summary.{key}': expected"):
        figures(store("a", SUMMARY | {key: value}))


def test_one_huge_group_is_drawn():
    _, drawn = figures(store("a", SUMMARY | {"sizes": [[2, 10**6], [1 << 20, 1]]}))
    shown = words(drawn[1])
    assert {"1,048,576+", "1,000,000", "8+"} <= {*shown}
