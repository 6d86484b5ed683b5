"""What a night leaves when it ends: result file, metrics file, metrics of a Pushgateway."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from click.testing import CliRunner

from raypq import api
from raypq.cli import main
from raypq.config import EncodeJob, MonitoringSettings, ReindexJob
from raypq.errors import ConfigError, JobError, QuarantineError, WriteError
from raypq.monitoring.prometheus_text import families


class Gateway:
    """Keeps the requests that it gets; answers ``status``."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.requests.append((self.command, unquote(self.path), body))
                self.send_response(outer.status)
                self.end_headers()

            do_POST = do_PUT

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    running = Gateway()
    yield running
    running.close()


def night(home: Any, **more: Any) -> dict[str, Any]:
    monitoring = {
        "result_file": home("result.json"),
        "metrics_file": home("raypq.prom"),
        **more.pop("monitoring", {}),
    }
    job = ReindexJob(
        model=home("old"), features=[home("features")], codes=home("codes"), where=home.where,
        monitoring=monitoring, **more,
    )  # fmt: skip
    return api.reindex(job)


def break_shard(home: Any, number: int) -> str:
    path = sorted((home.root / "features").glob("*.parquet"))[number]
    path.write_bytes(b"no parquet, and long enough to be looked at")
    return str(path)


def result(home: Any) -> dict[str, Any]:
    return json.loads((home.root / "result.json").read_text())


def value(home: Any, name: str, *labels: str) -> float:
    (line,) = [
        line
        for line in families((home.root / "raypq.prom").read_text())[name].splitlines()
        if not line.startswith("#") and all(label in line for label in labels)
    ]
    return float(line.rpartition(" ")[2])


def test_a_night_that_succeeds(home: Any) -> None:
    returned = night(home)
    document = result(home)
    assert document["verb"] == "raypq reindex"
    assert (document["status"], document["exit_code"], document["error"]) == ("done", 0, None)
    assert document["result"] == json.loads(json.dumps(returned))
    assert document["passes"]["encode"]["done"] == home.shards
    assert document["failed"] == document["quarantined"] == []
    assert value(home, "raypq_run_success") == 1
    assert value(home, "raypq_run_shards_failed") == 0
    assert value(home, "raypq_store_version", home("codes")) == 1
    assert value(home, "raypq_store_quarantined_shards") == 0
    assert value(home, "raypq_store_rows") == value(home, "raypq_run_images_done", "encode")
    assert value(home, "raypq_night_shards", 'kind="new"') == home.shards
    assert value(home, "raypq_rollout_share") == 1
    assert value(home, "raypq_drifted_shards") == 0
    end = value(home, "raypq_last_success_timestamp_seconds")
    assert end == value(home, "raypq_run_end_timestamp_seconds")
    assert abs(end - (home.root / "raypq.prom").stat().st_mtime) < 5
    assert oct((home.root / "raypq.prom").stat().st_mode & 0o444) == "0o444"  # for node_exporter


def test_a_night_that_fails_names_the_shards_and_keeps_the_last_success(home: Any) -> None:
    night(home)
    success = value(home, "raypq_last_success_timestamp_seconds")
    bad = break_shard(home, 2)
    with pytest.raises(JobError):
        night(home)
    document = result(home)
    assert (document["status"], document["exit_code"]) == ("failed", 1)
    assert document["result"] is None
    assert document["error"]["kind"] == "JobError"
    (failed,) = document["failed"]
    assert failed["shard"] == bad
    assert "Parquet" in failed["reason"]
    assert value(home, "raypq_run_success") == 0
    assert value(home, "raypq_run_shards_failed") == 1
    assert value(home, "raypq_last_success_timestamp_seconds") == success
    assert value(home, "raypq_run_end_timestamp_seconds") > success
    assert value(home, "raypq_night_shards", 'kind="new"') == home.shards  # of the last success
    assert value(home, "raypq_store_version", home("codes")) == 1


def test_a_dry_run_leaves_the_metrics_as_they_are(home: Any, gateway: Gateway) -> None:
    planned = night(home, dry_run=True, monitoring={"pushgateway": gateway.url})
    assert result(home)["result"] == json.loads(json.dumps(planned))
    assert not (home.root / "raypq.prom").exists()
    night(home)
    metrics = (home.root / "raypq.prom").read_text()
    night(home, dry_run=True, monitoring={"pushgateway": gateway.url})
    assert (home.root / "raypq.prom").read_text() == metrics
    assert gateway.requests == []


@pytest.mark.parametrize(
    "edited", [{"rollout": {"share": "all"}}, {"rollout": {}}, {"drift": {"shards": 2}}]
)
def test_a_summary_that_was_edited_costs_its_metrics_alone(
    home: Any, edited: dict[str, Any]
) -> None:
    night(home)
    (file,) = (home.root / "codes" / "snapshots").glob("*.json")
    document = json.loads(file.read_text())
    document["summary"] |= edited
    file.write_text(json.dumps(document))
    night(home)  # makes no version, as nothing changed
    assert value(home, "raypq_run_success") == 1
    assert value(home, "raypq_store_version", home("codes")) == 1


def test_quarantined_shards_are_counted_until_they_are_mended(home: Any) -> None:
    path = Path(break_shard(home, 2))
    with pytest.raises(QuarantineError):
        night(home, on_bad_shard="quarantine", fail_on_quarantined=True)
    document = result(home)
    assert document["failed"] == []
    assert [item["shard"] for item in document["quarantined"]] == [str(path)]
    assert value(home, "raypq_store_quarantined_shards") == 1
    assert value(home, "raypq_run_success") == 0
    path.unlink()
    night(home, on_bad_shard="quarantine", fail_on_quarantined=True)
    assert value(home, "raypq_store_quarantined_shards") == 0
    assert value(home, "raypq_run_success") == 1


def test_a_pushgateway_gets_what_the_file_has(home: Any, gateway: Gateway) -> None:
    night(home, monitoring={"pushgateway": f"{gateway.url}/"})
    break_shard(home, 2)
    with pytest.raises(JobError):
        night(home, monitoring={"pushgateway": gateway.url})
    (put, path, text), (post, again, later) = gateway.requests
    assert (put, post) == ("PUT", "POST")  # PUT replaces all, POST keeps what it does not name
    assert path == again
    assert path.startswith("/metrics/job/raypq/verb@base64/cmVpbmRleA==/output@base64/")
    assert "raypq_run_success 1\n" in text
    assert "raypq_last_success_timestamp_seconds" in text
    assert "raypq_run_success 0\n" in later
    assert "raypq_last_success_timestamp_seconds" not in later


def test_metrics_that_cannot_be_delivered_fail_no_night(
    home: Any, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.status = 503
    blocked = home.root / "file"
    blocked.write_text("")
    logging.getLogger("raypq").propagate = True
    with caplog.at_level(logging.WARNING, "raypq"):
        night(home, monitoring={"pushgateway": gateway.url, "metrics_file": f"{blocked}/x.prom"})
        gateway.close()
        night(home, monitoring={"pushgateway": gateway.url})
    text = caplog.text
    assert "the metrics could not be written" in text
    assert f"the metrics could not be sent to {gateway.url}: 503" in text
    assert f"the metrics could not be sent to {gateway.url}: [Errno 111]" in text


def test_a_result_file_that_cannot_be_written_is_an_error(home: Any) -> None:
    with pytest.raises(WriteError):
        night(home, monitoring={"result_file": "/dev/full"})


@pytest.mark.parametrize(
    "url", ["gateway:9091", "ftp://host", "http://user:pw@host:9091", "http://"]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="pushgateway"):
        MonitoringSettings(pushgateway=url)


def test_other_jobs_have_results_too(home: Any) -> None:
    job = EncodeJob(
        model=home("old"), features=[home("features")], output=home("codes"), where=home.where,
        monitoring=MonitoringSettings(result_file=home("result.json")),
    )  # fmt: skip
    version = api.encode(job)
    document = result(home)
    assert document["result"]["version"] == version.version
    assert document["result"]["images"] == version.rows


def test_the_options_and_the_key_are_the_same(home: Any, tmp_path: Path) -> None:
    config = tmp_path / "night.yaml"
    values = {
        "model": home("old"), "features": [home("features")], "codes": home("codes"),
        "where": {"cluster": "none", "workers": 1},
        "monitoring": {"result_file": home("from-config.json")},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(values))
    words = ["reindex", "--config", str(config), "--metrics-file", home("cli.prom"), "--quiet"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    written = json.loads((home.root / "from-config.json").read_text())
    assert written["result"] == json.loads(done.stdout)
    assert os.path.exists(home("cli.prom"))
