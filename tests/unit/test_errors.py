"""Errors cross process borders whole, and read well."""

from __future__ import annotations

import pickle

import pytest

from raypq.errors import (
    ConfigError,
    ConflictError,
    InputError,
    JobError,
    ModelError,
    NotFittedError,
    RaypqError,
    ShardFailure,
)

FAILURES = [
    ShardFailure(shard="/in/a.parquet", reason="/in/a.parquet, row 3: expected x, found y"),
    ShardFailure(shard="/in/b.parquet", reason="OSError: disk", tries=3, bad_input=False),
    ShardFailure(shard="/in/c", reason="/in/cc: expected x, found y"),
]


@pytest.mark.parametrize(
    "error",
    [
        InputError("file, row 3", expected="x", found="y"),
        ModelError("model", expected="x", found="y"),
        ConfigError("key 'K'"),
        ConflictError("taken"),
        NotFittedError("pq"),
        JobError(FAILURES, 2, 7),
    ],
)
def test_errors_survive_pickling(error):
    """Workers answer from other processes."""
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.exit_code == error.exit_code == (2 if isinstance(error, ConfigError) else 1)
    assert isinstance(error, RaypqError)


def test_an_input_error_says_where_what_and_what_else():
    error = InputError("x.parquet, row 3", expected="5 values", found="4")
    assert str(error) == "x.parquet, row 3: expected 5 values, found 4"


def test_a_job_error_tells_what_was_done_from_what_was_kept():
    assert str(JobError(FAILURES, 0, 7)).startswith(
        "3 shard(s) failed, 0 finished, 7 kept as they were:"
    )


def test_a_job_error_lists_every_shard_once():
    lines = str(JobError(FAILURES, 2)).splitlines()
    assert lines == [
        "3 shard(s) failed, 2 finished:",
        "  /in/a.parquet, row 3: expected x, found y",
        "  /in/b.parquet (after 3 tries): OSError: disk",
        "  /in/c: /in/cc: expected x, found y",
    ]
