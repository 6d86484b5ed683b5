"""Delivery of an outcome: result file, metrics file, Pushgateway.

Metrics that a failed run does not set, such as the time of the last success, stay as the last run
left them: in a file they are copied, and a Pushgateway keeps them on POST and drops them on PUT.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException

from raypq import console
from raypq.config import Job, MonitoredJob, MonitoringSettings, ReindexJob
from raypq.data import result_file
from raypq.data.storage import (
    atomic_write,
    is_local,
    json_text,
    local_path,
    read_bytes,
    write_errors,
)
from raypq.errors import RaypqError, message_of
from raypq.monitoring import gauges, prometheus_text
from raypq.monitoring.outcome import Outcome

_TIMEOUT = 10.0  # seconds for a Pushgateway
_JOB = "raypq"


def deliver(outcome: Outcome) -> None:
    """Writes and sends what the job asks for. Metrics that cannot be delivered are a warning.

    A dry run has a result file, but no metrics: its success is not the success of a night.

    Raises:
        WriteError: the result file of a run that succeeded cannot be written.
    """
    job = outcome.job
    if not isinstance(job, MonitoredJob):
        return
    settings = job.monitoring
    if not _is_dry_run(job):
        try:
            _deliver_metrics(outcome, settings)
        except Exception as error:  # metrics must not fail a night, whatever is wrong with them
            console.warn(f"the metrics could not be delivered: {message_of(error)}")
    if settings.result_file:
        try:
            result_file.write(settings.result_file, json_text.parse(outcome.line()))
        except (RaypqError, OSError) as error:
            if outcome.error is None:
                raise
            console.warn(f"the result file could not be written: {message_of(error)}")


def _is_dry_run(job: Job) -> bool:
    return isinstance(job, ReindexJob) and job.dry_run


def _deliver_metrics(outcome: Outcome, settings: MonitoringSettings) -> None:
    if not (settings.metrics_file or settings.pushgateway):
        return
    families = gauges.of_outcome(outcome)
    labels = gauges.labels_of(outcome)
    failed = outcome.error is not None
    if settings.metrics_file:
        text = prometheus_text.text_of(families, labels)
        _write_metrics(settings.metrics_file, text, keep=failed)
    if settings.pushgateway:
        _push(settings.pushgateway, labels, prometheus_text.text_of(families, {}), keep=failed)


def _write_metrics(uri: str, text: str, *, keep: bool) -> None:
    """Replaces a metrics file in one step.

    Args:
        keep: keep the families of the file that the text does not have.
    """
    try:
        new = prometheus_text.families(text)
        before: Mapping[str, str] = {}
        if is_local(uri) and (device := local_path(uri)).exists() and not device.is_file():
            device.write_text(text)  # /dev/stdout must not be replaced by a file
            return
        if keep:
            with suppress(FileNotFoundError):
                before = prometheus_text.families(read_bytes(uri).decode())
        with write_errors(uri), atomic_write(uri) as file:
            file.write("".join({**before, **new}.values()).encode())
    except (RaypqError, OSError, UnicodeDecodeError) as error:
        console.warn(f"the metrics could not be written: {error}")


def _push(url: str, labels: Mapping[str, str], text: str, *, keep: bool) -> None:
    """Sends metrics to a Pushgateway, grouped by the labels.

    Args:
        keep: keep the families that the gateway has of this group and the text does not.
    """
    group = "".join(f"/{name}@base64/{_base64(value)}" for name, value in labels.items())
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked with the settings
        f"{url}/metrics/job/{_JOB}{group}",
        data=text.encode(),
        method="POST" if keep else "PUT",
        headers={"Content-Type": "text/plain; version=0.0.4"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT):  # noqa: S310
            pass
    except (OSError, ValueError, HTTPException) as error:  # a gateway must not fail a night
        console.warn(f"the metrics could not be sent to {url}: {_reason_of(error)}")


def _reason_of(error: Exception) -> str:
    """Why a gateway did not take the metrics; of an answer, its code and the head of its text."""
    if not isinstance(error, urllib.error.HTTPError):
        return str(getattr(error, "reason", None) or error) or type(error).__name__
    text = b""
    with suppress(OSError, ValueError, HTTPException):  # the connection may break in the answer
        text = error.read(300)
    return f"{error.code} {text.decode(errors='replace').strip()}"


def _base64(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode() or "="
