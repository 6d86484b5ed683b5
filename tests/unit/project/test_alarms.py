"""The alarm rules and the dashboard are valid, use metrics that exist, and are documented."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = ROOT / "cluster" / "prometheus"
RULES = FILES / "raypq-alerts.yaml"
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
NAME = re.compile(r"\b(?:ray_)?raypq_\w+")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    board = json.loads((FILES / "raypq-dashboard.json").read_text(encoding="utf-8"))
    yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def metrics() -> set[str]:
    """The names of all metrics, by the sources of those who make them."""
    pool = (ROOT / "raypq" / "distributed" / "pool_metrics.py").read_text(encoding="utf-8")
    names = {f"ray_raypq_{name}_total" for name in re.findall(r'counter\(\s*"(\w+)"', pool)}
    names |= {f"ray_raypq_{name}" for name in re.findall(r'gauge\(\s*"(\w+)"', pool)}
    names |= {f"ray_{name}_bucket" for name in re.findall(r'"(raypq_\w+)"', pool)}
    ended = (ROOT / "raypq" / "monitoring" / "gauges.py").read_text(encoding="utf-8")
    names |= {f"raypq_{name}" for name in re.findall(r'_gauge\(\s*"(\w+)"', ended)}
    return names | {"raypq_night_shards", "raypq_night_images"}


def test_every_metric_of_rules_and_dashboard_exists() -> None:
    used = {name for text in expressions() for name in NAME.findall(text)}
    assert len(used) > 15
    assert used <= metrics(), used - metrics()


def test_every_metric_of_a_run_is_documented() -> None:
    documented = set(re.findall(r"`((?:ray_)?raypq_\w+)", PAGE))
    ended = {name for name in metrics() if name.startswith("raypq_")}
    assert ended <= documented, ended - documented


def test_every_alarm_has_a_row_that_says_what_to_do() -> None:
    rows = dict(re.findall(r"^\| `(Raypq\w+)` \|.*\|(.*)\|$", PAGE, re.MULTILINE))
    assert set(rows) == {rule["alert"] for rule in rules()}
    assert all(len(remedy.split()) > 5 for remedy in rows.values())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
