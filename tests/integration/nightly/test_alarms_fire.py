"""Alarms of a real Prometheus: a failed shard, a missed night and a quarantine each fire once, and
clear."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raypq import api
from raypq.config import ReindexJob
from raypq.errors import JobError

RULES = Path(__file__).resolve().parents[3] / "cluster" / "prometheus" / "raypq-alerts.yaml"
WAIT = 60.0  # seconds for an alarm; about one on a free machine
SUCCESS = re.compile(r"(?<=^raypq_last_success_timestamp_seconds)(\{.*\}) (.*)$", re.MULTILINE)
CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}}
rule_files: [{rules}]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]}}
scrape_configs: [{{job_name: node, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed"
)


class Site:
    """Serves a metrics file as node_exporter does, and receives alerts as Alertmanager does.

    Attributes:
        fired: the times at which each alarm began, by its name. firing: those that go on.
    """

    def __init__(self, metrics: Path) -> None:
        self.fired: dict[str, set[str]] = {}
        self.firing: set[str] = set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(metrics.read_bytes() if metrics.exists() else b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for alert in json.loads(body):
                    site.receive(alert)
                self._answer(b"{}")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def receive(self, alert: dict[str, Any]) -> None:
        name = alert["labels"]["alertname"]
        self.fired.setdefault(name, set()).add(alert["startsAt"])
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        if alert["endsAt"] > now:  # of an alarm that goes on, some minutes from now
            self.firing.add(name)
        else:
            self.firing.discard(name)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def prometheus(site: Site, folder: Path) -> Iterator[None]:
    """A Prometheus with the rules of the project."""
    config = folder / "prometheus.yaml"
    config.write_text(CONFIG.format(port=site.port, rules=RULES))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--rules.alert.resend-delay=1s",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: ready(port), "Prometheus to start")
        yield
    finally:
        process.terminate()
        process.wait()


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
            return True
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT:g} s for {what}"
        time.sleep(0.1)


def night(home: Any, **more: Any) -> None:
    job = ReindexJob(
        model=home("old"), features=[home("features")], codes=home("codes"), where=home.where,
        monitoring={"metrics_file": home("raypq.prom")}, **more,
    )  # fmt: skip
    api.reindex(job)


def make_older(metrics: Path, hours: float) -> None:
    """Changes a metrics file as if the last success was so long ago."""
    text, count = SUCCESS.subn(
        lambda match: f"{match[1]} {float(match[2]) - hours * 3600}", metrics.read_text()
    )
    assert count == 1
    metrics.write_text(text)


def test_alarms_fire_once_and_clear(home: Any, tmp_path: Path) -> None:
    site = Site(home.root / "raypq.prom")
    shards = sorted((home.root / "features").glob("*.parquet"))
    good = shards[1].read_bytes()

    def wait(alarm: str, *, firing: bool) -> None:
        verb = "fire" if firing else "clear"
        wait_for(lambda: (alarm in site.firing) == firing, f"{alarm} to {verb}")

    try:
        night(home)
        with prometheus(site, tmp_path):
            make_older(home.root / "raypq.prom", hours=27)
            wait("RaypqNightMissed", firing=True)
            night(home)
            wait("RaypqNightMissed", firing=False)

            shards[1].write_bytes(b"no parquet, and long enough to be looked at")
            with pytest.raises(JobError):
                night(home)
            wait("RaypqShardsFailed", firing=True)
            night(home, on_bad_shard="quarantine")
            wait("RaypqShardsFailed", firing=False)
            wait("RaypqShardsQuarantined", firing=True)
            shards[1].write_bytes(good)
            night(home, on_bad_shard="quarantine")
            wait("RaypqShardsQuarantined", firing=False)
    finally:
        site.close()
    assert {name: len(times) for name, times in site.fired.items()} == {
        "RaypqNightMissed": 1,
        "RaypqShardsFailed": 1,
        "RaypqShardsQuarantined": 1,
    }
