"""Errors of an S3 server say what happened and what to do, by every operation that meets them."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
from s3server import S3Server, reachable

from raypq.data.storage import (
    create,
    exists,
    file_size,
    list_names,
    list_shards,
    open_parquet,
    read_bytes,
    write_bytes,
)
from raypq.errors import DamagedError, InputError, WriteError, message_of
from raypq.execution.retries import is_transient

# Status and code of an answer: what the message says, the remedy in it, and whether to try again.
# Requests without a body in their answer (HEAD) tell the status alone.
TOKEN = ("session token has expired", "renew the credentials", False)
KNOWN: dict[tuple[int, str], tuple[str, str, bool]] = {
    (400, "ExpiredToken"): TOKEN,
    (403, "ExpiredToken"): TOKEN,
    (400, "TokenRefreshRequired"): TOKEN,
    (400, "InvalidToken"): ("session token is not valid", "renew the credentials", False),
    (403, "InvalidAccessKeyId"): ("does not know the access key", "AWS_ACCESS_KEY_ID", False),
    (403, "SignatureDoesNotMatch"): ("secret key does not belong", "AWS_SECRET_ACCESS_KEY", False),
    (403, "AccessDenied"): ("access is denied", "grant these credentials", False),
    (403, "RequestTimeTooSkewed"): ("clock of this machine differs", "NTP", False),
    (400, "AuthorizationHeaderMalformed"): ("another region", "AWS_DEFAULT_REGION", False),
    (404, "NoSuchBucket"): ("no such bucket", "check its name", False),
    (503, "SlowDown"): ("server is overloaded", "RAYPQ_STORAGE_ATTEMPTS", True),
    (500, "InternalError"): ("server failed", "RAYPQ_STORAGE_ATTEMPTS", True),
    (507, "XMinioStorageFull"): ("storage is full", "raise the quota", False),
}
OF_STATUS = {
    400: ("without a reason: an expired session token", "renew the credentials", False),
    403: ("without a reason: missing rights", "grant these credentials", False),
    500: KNOWN[500, "InternalError"],
    503: KNOWN[503, "SlowDown"],
    507: KNOWN[507, "XMinioStorageFull"],
}


@pytest.fixture
def shard(bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    write_bytes(f"{bucket}/f/x.parquet", b"no Parquet, but it is there")
    yield f"{bucket}/f/x.parquet"
    s3.refused = {}


def opened(uri: str) -> None:
    with open_parquet(uri):
        pass


# By the requests that they begin with: with a reason in the answer, or by HEAD.
LISTING: list[Callable[[str], Any]] = [list_names]
WRITING: list[Callable[[str], Any]] = [lambda uri: write_bytes(uri, b"x"),
                                       lambda uri: create(f"{uri}.new", b"x")]  # fmt: skip
HEADS: list[Callable[[str], Any]] = [read_bytes, file_size, exists, opened]


def error_of(operation: Callable[[str], Any], uri: str) -> Exception:
    with pytest.raises((OSError, InputError)) as caught:
        operation(uri)
    return caught.value


@pytest.mark.parametrize(("status", "code"), KNOWN, ids=lambda part: str(part))
def test_each_answer_is_explained(shard: str, s3: S3Server, status: int, code: str) -> None:
    s3.refused = {shard.removeprefix("s3://").split("/")[0]: (status, code)}
    without_reason = OF_STATUS.get(status, KNOWN[status, code])
    cases = [
        *((operation, KNOWN[status, code]) for operation in (*LISTING, *WRITING)),
        *((operation, without_reason) for operation in HEADS),
    ]
    for operation, (happened, remedy, transient) in cases:
        if (operation, code) in ((list_names, "NoSuchBucket"), (exists, "NoSuchBucket")):
            continue  # as InputError, and False
        error = error_of(operation, shard)
        text = message_of(error)
        assert happened in text, (operation, text)
        assert remedy in text, (operation, text)
        assert shard in text
        assert isinstance(error, OSError), "a server's answer is no bad input"
        assert is_transient(error) == transient, (operation, text)
        assert message_of(pickle.loads(pickle.dumps(error))) == text
        if operation in WRITING:
            assert isinstance(error, WriteError)
            assert text.endswith("then run it again")
            assert "see whether its disk" not in text
    with pytest.raises((OSError, InputError)) as caught:
        list_shards([shard.rpartition("/")[0]])
    assert any(words in str(caught.value) for words in (KNOWN[status, code][0], without_reason[0]))


def test_a_bucket_that_vanishes_damages_no_shard(shard: str, s3: S3Server) -> None:
    s3.refused = {"/f/x": (404, "NoSuchBucket"), "?": (404, "NoSuchBucket")}
    error = error_of(opened, shard)
    assert not isinstance(error, DamagedError)
    assert isinstance(error, OSError)
    assert error.errno == errno.ENXIO
    s3.refused = {}
    assert isinstance(error_of(opened, f"{shard}.none"), DamagedError)


def test_no_server_and_no_credentials(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", "1")
    server = S3Server()
    server.close()
    with reachable(server.environment()):
        text = message_of(error_of(read_bytes, "s3://none/x"))
        assert "check the network and AWS_ENDPOINT_URL" in text
    environment = s3.environment()
    with reachable(environment):
        for name in environment:
            if name.startswith("AWS_") and name not in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
                monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        error = error_of(read_bytes, "s3://none/x")
        assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message_of(error)
        assert not is_transient(error)
