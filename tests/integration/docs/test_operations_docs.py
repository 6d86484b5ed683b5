"""Every command of the pages of operations is run, or is at least a valid one.

raypq's own are run in the order of the pages. Ray's are parsed by Ray's own command line; those
that submit jobs are run by ``test_cluster.py``. Of the others the files that they name must exist.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from raypq.cli import main
from raypq.data.store import snapshot

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("nightly.md", "operations.md", "upgrading.md")
BLOCK = re.compile(r"^ *```\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
MADE_ON_THE_WAY = {"nightly.yaml", "s3.env"}


def commands(*pages: str) -> list[list[str]]:
    """Each line of the pages' plain code blocks, as words."""
    found = []
    for page in pages:
        for block in BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
            found += [shlex.split(line, comments=True) for line in block.splitlines()]
    return [words for words in found if words]


def of(program: str) -> list[list[str]]:
    return [words for words in commands(*PAGES) if words[0] == program]


def test_no_command_escapes() -> None:
    known = {"raypq", "ray", "kubectl", "docker", "cp", "export", "chmod", "grep"}
    assert {words[0] for words in commands(*PAGES)} == known
    assert len(of("raypq")) >= 11


def test_the_commands_of_raypq_run(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.root)
    values = yaml.safe_load((ROOT / "jobs" / "configs" / "reindex.yaml").read_text())
    values |= {"model": "old", "features": ["features"], "codes": "codes", "where": {}}
    values["where"] = {"cluster": "none", "workers": 1}
    values["classify"][0] |= {"classes": "classes.parquet", "output": "predictions"}
    values["classify"][0]["calibration"] = 0.0  # these models were not tuned
    values["deduplicate"][0] |= {"output": "groups", "drop_list": "drop.txt"}
    night = Path("nightly.yaml")
    for words in of("raypq"):
        model = "new" if "--rollout" in words else values["model"]
        night.write_text(yaml.safe_dump(values | {"model": model}), encoding="utf-8")
        result = CliRunner().invoke(main, words[1:])
        assert result.exit_code == 0, (words, result.output)
        if "--log-json" in words:
            lines = [json.loads(line) for line in result.stderr.splitlines()]
            assert lines
            assert all({"time", "level", "message"} <= set(line) for line in lines)
    versions = snapshot.versions("codes")
    assert len(versions) >= 3  # the first night, the roll-out, going back
    assert snapshot.read("codes", 2).summary["rollout"]["done"] < home.shards
    assert snapshot.read("codes", 3).summary["restored"] == 1


@pytest.mark.ray
def test_the_commands_of_ray_are_valid() -> None:
    from ray.scripts.scripts import cli

    for words in of("ray"):
        command: Any = cli
        rest = words[1:]
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        if "--" in rest:  # the job's own words
            job = rest[rest.index("--") + 1 :]
            assert (ROOT / job[1]).exists()
            assert (ROOT / job[3]).exists()
        elif rest and rest[0].endswith(".yaml"):
            assert (ROOT / rest[0]).exists()
        command.make_context(words[1], list(rest), resilient_parsing=False)


def test_the_files_of_the_other_commands_are_there() -> None:
    for words in of("kubectl") + of("docker") + of("cp"):
        named = [word.partition("=")[2] or word for word in words[1:]]
        for name in named:
            if name.startswith(
                ("cronjob/", "job/")
            ):  # objects of cluster/kubernetes/base/jobs.yaml
                continue
            if ("/" in name or "." in name) and ":" not in name and name != ".":
                assert (ROOT / name).exists() or name in MADE_ON_THE_WAY, (words, name)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / "docs" / target).exists(), target
    anchors = {re.sub(r"[^\w\s-]", "", line).strip().lower().replace(" ", "-")
               for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}  # fmt: skip
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in anchors, anchor


def test_the_metrics_of_the_page_are_those_that_there_are() -> None:
    source = (ROOT / "raypq" / "distributed" / "pool_metrics.py").read_text(encoding="utf-8")
    counters = {f"ray_raypq_{name}_total" for name in re.findall(r'counter\("(\w+)"', source)}
    gauges = {f"ray_raypq_{name}" for name in re.findall(r'gauge\("(\w+)"', source)}
    histograms = {f"ray_{name}" for name in re.findall(r'"(raypq_\w+)"', source)}
    told = set(
        re.findall(
            r"^\| `(ray_raypq_\w+)`", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE
        )
    )
    assert told == counters | gauges | histograms


def _messages() -> str:
    """Every string of the package; values of f-strings as an ellipsis."""
    texts: list[str] = []
    for path in (ROOT / "raypq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                texts.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_of_the_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.split("## Troubleshooting")[1]
    quoted = re.findall(r"`([^`]+)`", "\n".join(row.split(" | ")[0] for row in table.splitlines()
                                               if row.startswith("| `")))  # fmt: skip
    assert len(quoted) > 15
    source = _messages()
    for message in quoted:
        for part in message.split("…"):
            assert part.strip(" ,:;'") in source, message
