"""Failures of a pass: logged at once, counted in its progress, and a stop where all fail alike."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator

import pytest

from raypq import console
from raypq.errors import JobError, ShardFailure
from raypq.execution.executor import TaskResult, completed
from raypq.execution.failures import FailureWatch, kind_of

TOTAL = 200


def failure(number: int, reason: str = "", *, bad_input: bool = False) -> ShardFailure:
    shard = f"s3://bucket/{number}.parquet"
    text = reason or f"{shard}: [Errno 13] the token of request {number:#06x} has expired"
    return ShardFailure(shard=shard, reason=text, bad_input=bad_input)


def results(*failed: ShardFailure | None) -> Iterator[TaskResult[int]]:
    for index, item in enumerate(failed):
        yield TaskResult(index, index) if item is None else TaskResult(index, failure=item)


def run(*failed: ShardFailure | None, on_bad_shard: str = "fail") -> list[int]:
    found = completed(results(*failed), total=TOTAL, label="work", on_bad_shard=on_bad_shard)
    return list(found)


def test_shards_that_fail_alike_end_the_pass() -> None:
    with pytest.raises(JobError) as raised:
        run(*map(failure, range(TOTAL)))
    error = raised.value
    assert len(error.failures) == 20
    assert (error.done, error.not_tried) == (0, 180)
    assert "20 shard(s) failed, 0 finished, 180 not tried since so many fail alike:" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_token_that_expires_on_the_way_ends_the_pass() -> None:
    with pytest.raises(JobError) as raised:
        run(*[None] * 100, *map(failure, range(100)))
    assert (raised.value.done, raised.value.not_tried) == (100, 80)


def test_one_kind_among_others_ends_the_pass() -> None:
    """A third of the shards fails alike, never two in a row."""
    alternating = [failure(number) if number % 3 == 0 else None for number in range(TOTAL)]
    with pytest.raises(JobError) as raised:
        run(*alternating)
    assert 0 < raised.value.not_tried < 100


def test_shards_that_fail_unlike_do_not_end_it() -> None:
    reasons = ("connection refused", "no such file", "the disk is full", "out of memory")
    unlike = [failure(number, reasons[number % 4]) for number in range(40)]
    with pytest.raises(JobError) as raised:
        run(*unlike, *[None] * 160)
    assert (raised.value.done, raised.value.not_tried) == (160, 0)


def test_a_few_that_fail_alike_do_not_end_it() -> None:
    with pytest.raises(JobError) as raised:
        run(*map(failure, range(19)), *[None] * 181)
    assert (raised.value.done, raised.value.not_tried) == (181, 0)


def test_bad_input_that_is_quarantined_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    bad = [failure(number, bad_input=True) for number in range(50)]
    with caplog.at_level(logging.WARNING, "raypq"):
        assert len(run(*bad, *[None] * 150, on_bad_shard="quarantine")) == 150
    assert sum("quarantined" in record.message for record in caplog.records) == 50


def test_a_failure_is_told_when_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    found = completed(results(failure(1), None, None), total=3, label="work")
    with caplog.at_level(logging.WARNING, "raypq"):
        assert next(found) == 1
        assert [record.message for record in caplog.records] == [f"failed: {failure(1)}"]
        with pytest.raises(JobError):
            list(found)


def test_many_failures_are_not_told_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    watch = FailureWatch(10_000, quarantine=False)
    with caplog.at_level(logging.WARNING, "raypq"):
        for number in range(100):
            watch.failed(failure(number))
            watch.succeeded()
    assert len(caplog.records) == 10
    assert caplog.records[-1].message.endswith("further failures are counted")


def test_the_progress_counts_failures(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "raypq"), pytest.raises(JobError):
        run(None, failure(1), failure(2), None)
    lines = [record.message for record in caplog.records if record.message.startswith("work: ")]
    assert lines[0].startswith("work: 1/200 shards, ")
    assert lines[-1].startswith("work: 4/200 shards, 2 failed, ")


def test_kinds() -> None:
    assert kind_of(failure(1)) == kind_of(failure(2))
    assert kind_of(failure(1, "row 7: found 'x'")) == kind_of(failure(2, "row 81: found 'yy'"))
    assert kind_of(failure(1, "timed out")) != kind_of(failure(1, "access denied"))
