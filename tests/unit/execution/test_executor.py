"""How work is handed out in this process: order, how far tasks run ahead, what is tried again."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypq.errors import ConfigError, InputError, JobError, ModelError, ShardFailure
from raypq.execution.executor import OrderedWindow, completed, in_order, result_bytes
from raypq.execution.local import LocalExecutor
from raypq.execution.retries import is_transient


@dataclass(frozen=True)
class Job:
    number: int

    @property
    def name(self) -> str:
        return f"job{self.number}"


def jobs(n: int) -> list[Job]:
    return [Job(number) for number in range(n)]


class Turn:
    """A worker that notes what was begun; the first task waits until nothing else can begin."""

    def __init__(self, size: int, slow: int) -> None:
        self.begun: list[int] = []
        self._size, self._slow = size, slow

    def run(self, job: Job) -> Any:
        self.begun.append(job.number)
        if job.number == self._slow:
            count = -1
            while count != len(self.begun):  # until the others stand still
                count = len(self.begun)
                time.sleep(0.1)
        return np.broadcast_to(np.int8(job.number % 100), self._size)


@pytest.mark.parametrize(
    ("workers", "size", "most"),
    # Small results may wait in greater number, and large ones as many as two a worker.
    [(2, 8, 32), (3, 8, 48), (2, 1 << 27, 8), (2, 1 << 29, 4), (1, 1 << 40, 2)],
)
@pytest.mark.parametrize("slow", [0, 100])
def test_tasks_do_not_run_far_ahead_of_a_slow_one(
    workers: int, size: int, most: int, slow: int
) -> None:
    turn = Turn(size, slow)
    seen = []
    with LocalExecutor(workers).start_workers(lambda: turn, stage="turn") as pool:
        for result in pool.map(Turn.run, jobs(300), ordered=True):
            if result.index == slow:
                first = max(turn.begun) + 1 - slow
            seen.append((result.index, int(result.value[0])))
    assert seen == [(number, number % 100) for number in range(300)]
    # Before any result there is, its size is not known.
    assert first <= most if slow else first <= max(2 * workers, most)
    assert first >= workers, "nobody has to wait for nothing"


def test_an_unordered_pass_waits_for_nobody() -> None:
    turn = Turn(8, 0)
    with LocalExecutor(2).start_workers(lambda: turn, stage="turn") as pool:
        results = [result.index for result in pool.map(Turn.run, jobs(300))]
    assert sorted(results) == list(range(300))
    assert results[-1] == 0, "all others overtook the slow one"


def test_failures_do_not_hold_up_an_ordered_pass() -> None:
    class Odd:
        def run(self, job: Job) -> int:
            if job.number % 3 == 0:
                raise InputError(job.name, expected="good input", found="bad input")
            if job.number % 7 == 0:
                raise OSError(errno.EIO, "gone")
            return job.number

    with LocalExecutor(4).start_workers(Odd, stage="test") as pool:
        results = list(pool.map(Odd.run, jobs(200), ordered=True))
    assert [result.index for result in results] == list(range(200))
    failed = {result.index for result in results if result.failure}
    assert failed == {n for n in range(200) if n % 3 == 0 or n % 7 == 0}


@pytest.mark.parametrize("seed", range(5))
def test_a_window_always_admits_the_oldest(seed: int) -> None:
    """Whatever order tasks finish in, and however large results turn out to be."""
    rng = np.random.default_rng(seed)
    window, left, running = OrderedWindow(3, ordered=True), list(range(200)), []
    while left or running:
        while left and left[0] < window.end:
            running.append(left.pop(0))
        assert running, "a standstill"
        assert max(running) - min(running) <= 48
        index = running.pop(int(rng.integers(len(running))))
        window.finished(index, np.broadcast_to(np.int8(0), int(rng.choice([1, 1 << 28, 1 << 40]))))


def test_a_missing_result_is_an_error() -> None:
    with LocalExecutor(1).start_workers(object, stage="test") as pool:
        results = pool.map(lambda worker, job: job, jobs(5))
        results = [one for one in results if one.index != 2]
    with pytest.raises(RuntimeError, match="none of task 2"):
        list(in_order(iter(results)))


def test_the_size_of_a_result() -> None:
    @dataclass
    class Result:
        X: Any
        parts: Any

    X = np.zeros((10, 10), np.float32)
    assert (
        result_bytes(Result(X, {"a": [X, X], "b": (b"12345", "678"), "c": None, "d": 1.5})) == 1208
    )
    assert result_bytes(pa.array([1, 2, 3], pa.int64())) == 24
    assert result_bytes(None) == 0


class BotoError(Exception):
    """As those of botocore, which are no OSError."""

    __module__ = "botocore.exceptions"


class NoCredentialsError(BotoError):
    __module__ = "botocore.exceptions"


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


PASSING = [
    OSError(errno.EIO, "i/o"),
    OSError(errno.ESTALE, "stale"),
    OSError(errno.EBUSY, "slow down"),
    OSError(errno.EMFILE, "too many open files"),
    OSError("said by a library, without a number"),
    TimeoutError("late"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    ConnectionError("lost"),
    BrokenPipeError(),
    InterruptedError(errno.EINTR, "a signal"),
    MemoryError("for now"),
    RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"),
    RuntimeError("NCCL communicator was aborted on rank 0"),
    BotoError("read timed out"),
    caused(RuntimeError("while reading"), OSError(errno.EIO, "i/o")),
]
LASTING = [
    AssertionError("Torch not compiled with CUDA enabled"),
    TypeError("t"),
    ValueError("v"),
    KeyError("k"),
    IndexError("i"),
    AttributeError("a"),
    ZeroDivisionError("z"),
    NotImplementedError("n"),
    RuntimeError("r"),
    ImportError("i"),
    ModuleNotFoundError("No module named 'timm'"),
    UnicodeDecodeError("utf-8", b"", 0, 1, "u"),
    PermissionError(errno.EACCES, "rights"),
    FileNotFoundError(errno.ENOENT, "no file"),
    OSError(errno.ENOSPC, "full"),
    OSError(errno.EROFS, "read-only"),
    OSError(errno.ENAMETOOLONG, "long"),
    caused(PermissionError(errno.EACCES, "403"), BotoError("AccessDenied")),
    caused(ConnectionError(errno.EIO, "s3"), NoCredentialsError("no credentials")),
    InputError("file", expected="a", found="b"),
    ModelError("model", expected="a", found="b"),
    ConfigError("device: no CUDA"),
]


def described(error: BaseException) -> str:
    return f"{type(error).__name__}-{error}"


@pytest.mark.parametrize("error", PASSING + LASTING, ids=described)
def test_what_is_tried_again(error: Exception) -> None:
    passing = any(error is one for one in PASSING)
    tries = []

    def work(worker: object, job: Job) -> None:
        tries.append(job)
        raise error

    with LocalExecutor(1).start_workers(object, stage="test") as pool:
        (result,) = pool.map(work, jobs(1))
        stats = pool.stats
    assert is_transient(error) == passing
    assert len(tries) == (3 if passing else 1)
    assert result.failure
    assert result.failure.tries == len(tries)
    assert (stats.retries, stats.failed) == (len(tries) - 1, 1)
    # Only the content of a shard makes it bad, so that it may be quarantined.
    assert result.failure.bad_input == isinstance(error, InputError)
    assert str(error) in result.failure.reason


def test_what_passes_succeeds() -> None:
    calls: dict[int, int] = {}
    lock = threading.Lock()

    def work(worker: object, job: Job) -> int:
        with lock:
            calls[job.number] = calls.get(job.number, 0) + 1
        if calls[job.number] < 3:
            raise TimeoutError
        return job.number

    with LocalExecutor(2).start_workers(object, stage="test") as pool:
        results = [result.value for result in pool.map(work, jobs(9), ordered=True)]
    assert results == list(range(9))
    assert set(calls.values()) == {3}


def test_a_worker_that_cannot_be_made_is_made_once() -> None:
    made = []

    def make() -> Callable[..., Any]:
        made.append(1)
        raise ModuleNotFoundError("No module named 'timm'")

    with pytest.raises(ModuleNotFoundError), LocalExecutor(4).start_workers(make, stage="test"):
        pass
    assert made == [1]


def test_a_pass_raises_what_failed_at_its_end() -> None:
    def work(worker: object, job: Job) -> int:
        if job.number == 2:
            raise InputError(job.name, expected="good input", found="bad input")
        return job.number

    with LocalExecutor(2).start_workers(object, stage="test") as pool:
        seen: list[int] = []
        all_of_them = completed(pool.map(work, jobs(5)), total=5, label="test")
        with pytest.raises(JobError, match="1 shard\\(s\\) failed, 4 finished"):
            seen.extend(all_of_them)
        assert sorted(seen) == [0, 1, 3, 4]
        left_out: list[ShardFailure] = []
        good = completed(
            pool.map(work, jobs(5)),
            total=5,
            label="test",
            on_bad_shard="quarantine",
            failures=left_out,
        )
        assert sorted(good) == [0, 1, 3, 4]
        assert [failure.shard for failure in left_out] == ["job2"]
        only_bad = completed(
            pool.map(work, jobs(3)[2:]), total=1, label="test", on_bad_shard="quarantine"
        )
        with pytest.raises(JobError):
            list(only_bad)
        kept = completed(
            pool.map(work, jobs(3)[2:]), total=1, label="test", on_bad_shard="quarantine", kept=1
        )
        assert list(kept) == []
