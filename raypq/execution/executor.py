"""Executor and worker pool interfaces. Stages depend on these, and not on Ray.

An executor starts pools of workers. A worker is an object that is made once in each process; a pool
calls one of its methods for every task: ``pool.map(SearchWorker.scan, tasks, queries)``. Results
arrive in any order and carry the number of their task.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple, Unpack

from raypq import console, heartbeat, io_counters
from raypq.errors import InputError, RaypqError, ShardFailure, message_of
from raypq.execution import pass_counts
from raypq.execution.failures import FailureWatch, raise_failures
from raypq.execution.retries import is_transient

MAX_TRIES = 3  # attempts at a task that kills its worker, or whose error is transient
# Bounds of the window of an ordered pass, in tasks per worker; between them the size of the
# results decides.
_MIN_WINDOW, _MAX_WINDOW = 2, 16
_WINDOW_BYTES = 1 << 30  # results that may wait in the driver for an older one

log = logging.getLogger(__name__)


class Task(Protocol):
    """A unit of work, such as one shard."""

    @property
    def name(self) -> str:
        """Name for errors and logs."""


W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)
T = TypeVar("T", bound=Task)
R = TypeVar("R")
Shared = TypeVarTuple("Shared")


@dataclass(frozen=True)
class TaskResult(Generic[R]):
    """The value that task ``index`` returned, or the failure that it ended with."""

    index: int
    value: R = None  # type: ignore[assignment]  # where there is a failure
    failure: ShardFailure | None = None


@dataclass(kw_only=True)
class PoolStats:
    """Counters of a pool since it was started.

    Attributes:
        stage: name of the work.
        started, ready: ``time.monotonic()`` of the request, and of the first ready worker.
        workers, deaths: most workers that were ready at once; workers that died.
        seconds: spent in tasks, over all workers.
        images, bytes: read by the workers (``raypq.io_counters``).
        tasks, failed, retries: tasks that finished, that failed for good, and further attempts.
    """

    stage: str
    started: float
    ready: float | None = None
    workers: int = 0
    seconds: float = 0.0
    images: int = 0
    bytes: float = 0.0
    tasks: int = 0
    failed: int = 0
    retries: int = 0
    deaths: int = 0


class WorkerPool(Protocol[W_co]):
    """Workers of one type."""

    @property
    def stats(self) -> PoolStats:
        """Counters so far."""

    def map(
        self,
        call: Callable[[W_co, T, Unpack[Shared]], R],
        tasks: Sequence[T],
        *shared: *Shared,
        ordered: bool = False,
    ) -> Iterator[TaskResult[R]]:
        """Calls ``call(worker, task, *shared)`` once for every task.

        Args:
            shared: sent to each worker once, not with every task.
            ordered: results come in task order, with tasks ahead within ``OrderedWindow``.
        """


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of ``world_size`` processes that run the same function in step.

    Attributes:
        device: the torch device of this process.
    """

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"


Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class SpmdJob:
    """A function that runs in all workers, in step (single program, multiple data).

    Attributes:
        run: called with the rank of its process and a function that sends events.
        report: receives these events, in the driver process.
        device: ``cpu`` or ``cuda``.
        scratch: folder that the executor may write to meanwhile.
        memory: bytes that each worker needs for what it holds.
    """

    run: Callable[[Rank, Report], None]
    report: Report
    device: str
    scratch: str
    memory: int


class Executor(Protocol):
    """Where workers run: this process, or a Ray cluster."""

    @property
    def n_workers(self) -> int:
        """Workers of a pool."""

    @property
    def processes(self) -> int:
        """Processes of a pool; workers in the same one are one object, called by its threads."""

    @property
    def worker_memory(self) -> int:
        """Bytes that a worker may use; 0 where unknown."""

    def start_workers(
        self, make: Callable[..., W], *args: Any, stage: str, cache: int = 0
    ) -> AbstractContextManager[WorkerPool[W]]:
        """A pool of workers, each made by ``make(*args)``; they end with the context.

        Args:
            stage: name of the work in metrics and run records.
            cache: bytes of each worker's cache, where a user set them.
        """

    def run_spmd(self, job: SpmdJob) -> None:
        """Runs a function in all workers, in step.

        Several workers are connected by a torch process group. After a worker died, all are
        started again; the function itself resumes from its own checkpoints.
        """


def run_task(call: Callable[..., R], worker: Any, task: Task, *shared: Any) -> R | ShardFailure:
    """Calls ``call(worker, task, *shared)``; an error becomes a ``ShardFailure``."""
    try:
        return call(worker, task, *shared)
    except RaypqError as error:
        return ShardFailure(
            shard=task.name, reason=str(error), bad_input=isinstance(error, InputError)
        )
    except Exception as error:  # any other error fails this shard only
        log.debug("%s failed", task.name, exc_info=True)
        return ShardFailure(
            shard=task.name,
            reason=message_of(error),
            bad_input=False,
            transient=is_transient(error),
        )


def completed(
    results: Iterable[TaskResult[R]],
    *,
    total: int,
    label: str,
    unit: str = "shards",
    on_bad_shard: str = "fail",
    failures: list[ShardFailure] | None = None,
    kept: int = 0,
    images: Callable[[R], int] = lambda _: 0,
) -> Iterator[R]:
    """The values of a pass as they arrive, with progress; failures are logged, and raised at its
    end.

    Args:
        total: number of tasks. label, unit: of the progress line.
        failures: list to which failures are appended; those already in it count as well.
        kept: number of shards that need no work.
        images: number of images of a value, for the progress line.

    Raises:
        JobError: naming the shards that failed, unless all are bad input to be quarantined; at once
            where so many fail alike that the others would, too.
    """
    failures = [] if failures is None else failures
    counts = pass_counts.of(label)
    watch = FailureWatch(total, quarantine=on_bad_shard == "quarantine", counts=counts)
    for failure in failures:
        watch.failed(failure)
    before, done, not_tried = len(failures), 0, 0
    with (
        console.progress(total, label, unit=unit, read=io_counters.images_from_now()) as progress,
        heartbeat.phase(progress.text),
    ):
        for result in results:
            if result.failure:
                failures.append(result.failure)
                (progress.done if watch.quarantines(result.failure) else progress.failed)()
                if watch.failed(result.failure):
                    not_tried = total - done - (len(failures) - before)
                    counts.not_tried += not_tried
                    break
                continue
            done += 1
            number = images(result.value)
            watch.succeeded(number)
            yield result.value
            progress.done(number)
    raise_failures(failures, done, on_bad_shard, kept=kept, not_tried=not_tried)


class OrderedWindow:
    """Limits how far the tasks of an ordered pass run ahead of the oldest unfinished one.

    Results that overtake a slow task wait for it in the driver's memory, so a task starts only
    within a window after the oldest unfinished one. That one may always start, so there is no
    deadlock. Shards of equal size finish nearly in order and never wait.
    """

    def __init__(self, workers: int, *, ordered: bool) -> None:
        self._workers, self._ordered = workers, ordered
        self._oldest = 0
        self._finished: set[int] = set()  # finished tasks after ``_oldest``
        self._largest_result = 0  # bytes

    @property
    def end(self) -> int:
        """Index of the first task that may not start yet."""
        if not self._ordered:
            return sys.maxsize
        size, largest = _MIN_WINDOW * self._workers, _MAX_WINDOW * self._workers
        if self._largest_result:
            size = max(size, min(largest, _WINDOW_BYTES // self._largest_result))
        return self._oldest + size

    def finished(self, index: int, value: Any) -> None:
        """Records that a task has finished or failed."""
        if not self._ordered:
            return
        self._largest_result = max(self._largest_result, result_bytes(value), 1)
        self._finished.add(index)
        while self._oldest in self._finished:
            self._finished.remove(self._oldest)
            self._oldest += 1


def result_bytes(value: Any) -> int:
    """Bytes of the arrays and strings in a value, through dataclasses and containers."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(result_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(result_bytes(item) for item in value)
    if is_dataclass(value):
        return sum(result_bytes(getattr(value, item.name)) for item in fields(value))
    return int(getattr(value, "nbytes", 0))


def in_order(results: Iterator[TaskResult[R]]) -> Iterator[TaskResult[R]]:
    """Results in task order, each as soon as all before it have arrived."""
    waiting: dict[int, TaskResult[R]] = {}
    following = 0
    for result in results:
        waiting[result.index] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1
    if waiting:
        raise RuntimeError(f"results of later tasks, but none of task {following}")
