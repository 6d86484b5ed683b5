"""Delivery of an outcome: nothing that is wrong with it fails a run or hides its error."""

from __future__ import annotations

import http.client
import logging
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from raypq import api
from raypq.config import ClusterSettings, EncodeJob, MonitoringSettings
from raypq.errors import InputError
from raypq.monitoring import delivery, gauges, outcome

GATEWAY = MonitoringSettings(pushgateway="http://gateway:9091")


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    log = logging.getLogger("raypq")
    before, log.propagate = log.propagate, True
    with caplog.at_level(logging.WARNING, "raypq"):
        yield caplog
    log.propagate = before


def job(tmp_path: Path, monitoring: MonitoringSettings) -> EncodeJob:
    return EncodeJob(
        model=str(tmp_path / "no-model"),
        features=[str(tmp_path / "features")],
        output=str(tmp_path / "codes"),
        where=ClusterSettings(cluster="none", workers=1),
        monitoring=monitoring,
    )


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


class BrokenAnswer:
    """The text of an answer whose connection breaks."""

    def read(self, *_: Any) -> bytes:
        raise http.client.IncompleteRead(b"")

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "error",
    [
        http.client.BadStatusLine("no HTTP"),
        http.client.LineTooLong("header"),
        urllib.error.HTTPError("http://gateway", 502, "Bad", Message(), BrokenAnswer()),  # type: ignore[arg-type]  # only read
    ],
)
def test_a_gateway_that_answers_nonsense_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", raising(error))
    delivery.deliver(outcome.of_run(job(tmp_path, GATEWAY), dict))
    assert "the metrics could not be sent to http://gateway:9091: " in warnings.text


def test_metrics_that_cannot_be_computed_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gauges, "of_outcome", raising(KeyError("share")))
    result = tmp_path / "result.json"
    settings = MonitoringSettings(metrics_file=str(tmp_path / "x.prom"), result_file=str(result))
    delivery.deliver(outcome.of_run(job(tmp_path, settings), dict))
    assert "the metrics could not be delivered: KeyError: 'share'" in warnings.text
    assert result.exists()


@pytest.mark.parametrize("error", [KeyError("delivery"), KeyboardInterrupt()])
def test_the_error_of_the_job_is_raised_whatever_the_delivery_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(delivery, "deliver", raising(error))
    with pytest.raises(InputError, match="features"):
        api.encode(job(tmp_path, GATEWAY))


def test_a_result_file_of_a_failed_run_that_cannot_be_written_is_a_warning(
    tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="features"):
        api.encode(job(tmp_path, MonitoringSettings(result_file="/dev/full")))
    assert "the result file could not be written" in warnings.text


def test_sigterm_while_ray_starts_has_the_exit_code_of_sigterm(tmp_path: Path) -> None:
    ended = outcome.of_run(job(tmp_path, GATEWAY), lambda: sys.exit(signal.SIGTERM))
    assert ended.exit_code == 143
    assert ended.document()["error"]["kind"] == "Terminated"
