"""Settings of the result file and the metrics of a run."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from raypq.config.option import Option
from raypq.config.places import NewFile, Text
from raypq.config.settings import UserSettings


class MonitoringSettings(UserSettings):
    """Where the result and the metrics of a run go when it ends, also where it fails."""

    result_file: NewFile | None = Field(
        None, description="file to write the result, or the error with the failed shards, to (JSON)"
    )
    metrics_file: NewFile | None = Field(
        None,
        description="file to write metrics to, for the textfile collector of Prometheus's "
        "node_exporter (NAME.prom)",
    )
    pushgateway: Annotated[Text | None, Option(metavar="URL")] = Field(
        None, description="Prometheus Pushgateway to send metrics to, such as http://host:9091"
    )

    @field_validator("pushgateway")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError(f"expected http://HOST:PORT or https://HOST, found {value!r}")
        if url.username is not None:  # settings are stored in the record of a run
            raise ValueError("expected a URL without credentials")
        return value.rstrip("/")
