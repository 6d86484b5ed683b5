"""Whatever the encoding of stdout and whoever reads it, verbs print their results and end well."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api, console
from raypq.cli import main
from raypq.config import ClassifyJob, ClusterSettings, EncodeJob, TrainJob

ALONE = ["--cluster", "none", "--workers", "1"]
RESULT = Path(api.__file__).parent / "bench" / "results" / "2026-11-21-zen4-2-cores.json"


@pytest.fixture(scope="module")
def names(
    world: Any, alone: ClusterSettings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Stores whose classes and folders have names that few encodings have."""
    root = tmp_path_factory.mktemp("streams") / "Größe → 雪"
    root.mkdir()
    table = pq.read_table(world.classes)
    called = pa.array([f"雪{row} → naïve γ" for row in range(len(table))])
    table = table.set_column(table.schema.get_field_index("name"), "name", called)
    classes = root / "classes.parquet"
    pq.write_table(table, classes)
    found = {
        name: str(root / name) for name in ("model", "codes", "predictions", "figures.json", "out")
    }
    job = TrainJob(method="pqzsl", features=world.train, classes=classes, output=root / "model",
                   settings={"M": 4, "K": 16, "iterations": 2}, where=alone)  # fmt: skip
    api.train(job)
    api.encode(EncodeJob(model=root / "model", features=world.test, output=root / "codes",
                         where=alone))  # fmt: skip
    api.classify(ClassifyJob(codes=root / "codes", classes=classes, output=root / "predictions",
                             where=alone))  # fmt: skip
    return {**found, "classes": str(classes), "test": world.test}


Words = Callable[[dict[str, str]], list[str]]
VERBS: dict[str, Words] = {
    "evaluate classification": lambda at: [
        "--predictions", at["predictions"], "--classes", at["classes"], *ALONE],
    "evaluate retrieval": lambda at: ["--codes", at["codes"], "--queries", at["test"], *ALONE],
    "evaluate fewshot": lambda at: [
        "--features", at["test"], "--split", "all", "--ways", "3", "--episodes", "3",
        "--queries", "3"],
    "evaluate clusterability": lambda at: ["--features", at["test"], "--restarts", "1"],
    "infer-semantics": lambda at: [
        "--model", at["model"], "--codes", at["codes"], "--classes", at["classes"],
        "--by", "label", "--output", at["out"], *ALONE],
    "classify": lambda at: [
        "--codes", at["codes"], "--classes", at["classes"], "--output", at["predictions"], *ALONE],
    "snapshots list": lambda at: [at["codes"]],
    "snapshots show": lambda at: [at["codes"]],
    "snapshots verify": lambda at: [at["codes"]],
    "plan": lambda at: ["--images", "1000000", "--rates", str(RESULT)],
    "bench": lambda at: ["all", "--show", str(RESULT)],
    "report": lambda at: [at["codes"], at["predictions"], "--output", f"{at['out']}.html"],
    "doctor": lambda at: [],
}  # fmt: skip


def run(words: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """The exit code, and what is on stdout and stderr, read in this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", streams[0])
        patched.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as ended:
            main(words)
        for stream in streams:
            stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_encoding_takes_what_is_printed(
    verb: str, encoding: str, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run([*verb.split(), *VERBS[verb](names)], encoding, monkeypatch)
    assert code == 0, err
    assert out.strip()
    assert "UnicodeEncodeError" not in err


def test_plain_characters_stand_for_those_that_are_lacking(
    names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["infer-semantics", *VERBS["infer-semantics"](names)]
    assert r"\u96ea0 -> na\xefve gamma" in run(words, "ascii", monkeypatch)[2]
    assert r"\u96ea0 -> naïve gamma" in run(words, "latin-1", monkeypatch)[2]
    assert "雪0 → naïve γ" in run(words, "utf-8", monkeypatch)[2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_json_stays_json(
    encoding: str, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "classification", *VERBS["evaluate classification"](names)]
    code, out, _ = run([*words, "--json", "-", "--quiet"], encoding, monkeypatch)
    assert code == 0
    assert json.loads(out)["predictions"] == names["predictions"]
    words = ["classify", *VERBS["classify"](names)]
    assert json.loads(run(words, encoding, monkeypatch)[1])["store"] == names["predictions"]


def test_an_error_about_a_name_is_told_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(["snapshots", "show", "/nowhere/雪 → é"], "ascii", monkeypatch)
    assert code == 1
    assert r"\u96ea -> \xe9: expected a store" in err
    code, _, err = run(["snapshots", "show", "/nowhere/\udcff"], "utf-8", monkeypatch)
    assert code == 2
    assert r"expected a path or URI in UTF-8, found '/nowhere/\udcff'" in err


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which ``raypq`` is this one."""
    command = f'raypq() {{ "{sys.executable}" -m raypq "$@"; }}; set -o pipefail; {script}'
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False,
        env={**os.environ, **environment}, encoding="utf-8",
    )  # fmt: skip


PLAN = f'plan --images 1000000 --rates "{RESULT}"'


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_error(unbuffered: str) -> None:
    done = shell(f"raypq {PLAN} | head -1", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("| | time |")
    done = shell(f"raypq {PLAN} | true", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    done = shell(f"raypq {PLAN} >&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell(f"raypq {PLAN} >&- 2>&- <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_full_disk_behind_stdout_is_named() -> None:
    done = shell(f"raypq {PLAN} > /dev/full")
    assert done.returncode == 1
    assert "No space left on device: '<stdout>'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ascii_from_the_environment() -> None:
    done = shell(f"raypq {PLAN} --classes 21841 2>&1", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_every_character_of_the_table_has_a_plain_one() -> None:
    assert all(text.isascii() for text in console._ASCII.values())
