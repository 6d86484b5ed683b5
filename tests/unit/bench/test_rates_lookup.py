"""A plan stands on the newest quiet rates of a machine alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raypq import kernels
from raypq.bench import rates_lookup, runner
from raypq.bench.harness import Line, Result, processor, processor_seconds
from raypq.bench.other_load import QUIET_SHARE, OtherLoad
from raypq.errors import ConfigError

SPIN = "import time\nwhile time.process_time() < 0.3: pass"


def write(folder: Path, name: str, date: str, share: float | None, **more: Any) -> None:
    """A result file of this machine, whose rate of ``solve`` is its date as a number."""
    known = json.loads(next(rates_lookup.RESULTS.glob("*-rates.json")).read_text("utf-8"))
    result = {"bench": "rates", **({} if share is None else {"other_load": share})}
    document = {
        "date": date, "cpu": processor(), "cores": os.cpu_count(), "threads": 2,
        "kernels": kernels.runtime_info(), "results": [result],
        "rates": {**known["rates"], "solve": float(date.replace("-", ""))}, **more,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(document))


def test_the_newest_quiet_rates_count(tmp_path: Path) -> None:
    write(tmp_path, "a", "2026-11-20", QUIET_SHARE)
    write(tmp_path, "b", "2026-11-24", 0.01)
    write(tmp_path, "c", "2026-11-26", 0.4)
    write(tmp_path, "d", "2026-11-28", None)
    (tmp_path / "e.json").write_text(json.dumps({"results": []}))
    rates, origin = rates_lookup.find(str(tmp_path))
    assert rates.solve == 20261124
    assert origin.startswith("b.json, measured on 2026-11-24")
    assert origin.endswith("other processes took 1% of the processors")


def test_where_none_is_quiet_the_newest_counts_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, "a", "2026-11-26", 0.4)
    write(tmp_path, "b", "2026-11-21", None)
    assert rates_lookup.find(str(tmp_path))[1].endswith("took 40% of the processors")
    write(tmp_path, "c", "2026-11-27", None)
    assert rates_lookup.find(str(tmp_path))[1].endswith("load by other processes not recorded")


def test_a_machine_is_alike_by_its_instructions_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cloud processors of several generations have one name."""
    other = {**kernels.runtime_info(), "isa": "another"}
    write(tmp_path, "old", "2026-11-20", 0.0)
    write(tmp_path, "other", "2026-11-28", 0.0, kernels=other)
    write(tmp_path, "more-cores", "2026-11-28", 0.0, cores=1000)
    monkeypatch.setattr(rates_lookup, "RESULTS", tmp_path)
    assert rates_lookup.find(None)[0].solve == 20261120
    assert rates_lookup.find(str(tmp_path))[0].solve == 20261128


def test_a_folder_without_rates_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a result file of raypq bench with rates"):
        rates_lookup.find(str(tmp_path))


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux has this file")
def test_processes_that_have_ended_are_not_others() -> None:
    before = processor_seconds()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert processor_seconds() - before > 0.25


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux has this file")
def test_other_processes_are_seen() -> None:
    load, start = OtherLoad(), time.perf_counter()
    # Not a child for long: its own parent has ended.
    code = f"import os\nif os.fork() == 0:\n    exec({SPIN!r})\n    os._exit(0)\nos._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    time.sleep(0.6)
    share = load.share()
    assert share is not None
    assert share * (os.cpu_count() or 1) * (time.perf_counter() - start) > 0.2


def test_a_result_file_says_how_busy_others_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(threads: int) -> Iterator[Result]:
        line = Line(name="ours", rate=1.0, seconds=1.0, ours=True)
        for case in ("a", "b"):
            yield Result(bench="read", case=case, unit="images/s", lines=[line], absent=["peer"])

    monkeypatch.setattr("raypq.bench.read.run", two)
    path = tmp_path / "bench.json"
    runner.run(["read"], threads=1, classes=None, json_file=str(path))
    written = json.loads(path.read_text())
    for result in written["results"]:
        assert result["other_load"] is None or 0 <= result["other_load"] <= 1
    assert "faiss" in written
    shown = runner.markdown("read", str(path))
    assert "*absent: peer*" in shown
    if Path("/proc/stat").exists():
        assert "processor time of others" in shown
