"""A night that gets SIGTERM gives its leases back, says so, and the next one goes on at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypq.data.store import lease, snapshot

# Says when the work has begun, which then takes very long.
WITHOUT_RAY = """
import sys, time
from pathlib import Path
from raypq.stages.encoding import encode_worker
begun = Path(sys.argv.pop(1))
encode = encode_worker.EncodeWorker.encode
def slow(self, task, *more):
    begun.touch()
    if "2" in task.name.rpartition("/")[2]:
        time.sleep(600)
    return encode(self, task, *more)
encode_worker.EncodeWorker.encode = slow
from raypq.cli import main
main(sys.argv[1:])
"""
ON_RAY = """
import sys, time
from pathlib import Path
from raypq.distributed import worker_pool
begun = Path(sys.argv.pop(1))
def slow(self):
    begun.touch()
    time.sleep(600)
    yield
worker_pool._Pass.results = slow
from raypq.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("cluster", ["none", pytest.param("local", marks=pytest.mark.ray)])
def test_sigterm_gives_the_leases_back(home: Any, tmp_path: Path, cluster: str) -> None:
    config = tmp_path / "night.yaml"
    values = {
        "model": home("old"), "features": [home("features")], "codes": home("codes"),
        "classify": {"classes": home("classes.parquet"), "output": home("predictions"),
                     "calibration": 0.0},
        "where": {"cluster": cluster, "workers": 1},
        "monitoring": {"result_file": home("result.json")},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(values))
    script, begun = WITHOUT_RAY if cluster == "none" else ON_RAY, tmp_path / "begun"
    command = [sys.executable, "-c", script, str(begun)]
    command += ["reindex", "--config", str(config), "--log-json"]
    night = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 180
    while not begun.exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.0)  # the shard is at work
    night.send_signal(signal.SIGTERM)
    _, told = night.communicate(timeout=180)
    lines = [json.loads(line) for line in told.splitlines()]
    messages = [line["message"] for line in lines if "message" in line]
    assert night.returncode == 143, told
    assert f"{home('codes')}: the lease is given back" in messages, told
    assert f"{home('predictions')}: the lease is given back" in messages
    assert any("terminated (SIGTERM)" in text for text in messages)
    assert lease.current(home("codes")) is lease.current(home("predictions")) is None
    assert json.loads(Path(home("result.json")).read_text())["exit_code"] == 143

    values["where"] = {"cluster": "none", "workers": 1}
    config.write_text(yaml.safe_dump(values))
    start = time.monotonic()
    command = [sys.executable, "-m", "raypq", "reindex", "--config", str(config), "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    assert time.monotonic() - start < 58, "nobody watched a lease for 60 s"
    assert len(snapshot.read(home("predictions")).shards) == home.shards
