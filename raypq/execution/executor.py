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

from raypq import console
from raypq.errors import InputError, JobError, RaypqError, ShardFailure
from raypq.execution.retries import may_pass

MAX_TRIES = 3  # attempts at a task that kills its worker, or whose error may pass
# An ordered pass begins no task that is this many times the workers ahead of the oldest unfinished
# one: the least and the most, between which the size of results decides.
_AHEAD = 2, 16
_HELD_BYTES = 1 << 30  # results that may wait for an older one, where ``_AHEAD`` allows fewer

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
        started: ``time.monotonic()`` when the pool was requested. ready: when its first worker was
            ready.
        workers: most workers that were ready at once.
        seconds: spent in tasks, over all workers.
        images, bytes: read by the workers (``raypq.io_counters``).
        tasks, failed, retries: finished, given up, and tried again. deaths: of workers.
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
            ordered: results come in task order, each as soon as those before it are there. Tasks
                wait rather than run far ahead of a slow one (``OrderedWindow``).
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


class Executor(Protocol):
    """Where workers run: this process, or a Ray cluster."""

    @property
    def n_workers(self) -> int:
        """Workers of a pool."""

    @property
    def worker_memory(self) -> int:
        """Bytes that a worker may use; 0 where unknown."""

    def start_workers(
        self, make: Callable[..., W], *args: Any, stage: str, cache: int = 0
    ) -> AbstractContextManager[WorkerPool[W]]:
        """A pool of workers, each made by ``make(*args)``; they end with the context.

        Args:
            stage: name of the work in metrics and run records.
            cache: bytes that each worker keeps in memory on top of what it needs, where a user set
                them.
        """

    def run_spmd(
        self,
        run: Callable[[Rank, Report], None],
        *,
        report: Report,
        device: str,
        scratch: str,
        memory: int,
    ) -> None:
        """Runs the same function in all workers, in step (single program, multiple data).

        Where there are several, a torch process group connects them. After a worker died all are
        started again; the function itself resumes from what it has written.

        Args:
            run: called with the rank of its process and a function that sends events.
            report: receives these events, in this process.
            device: ``cpu`` or ``cuda``.
            scratch: folder that the executor may write to while it runs.
            memory: bytes that each worker keeps.
        """


def run_task(call: Callable[..., R], worker: Any, task: Task, *shared: Any) -> R | ShardFailure:
    """The result of a call; an error becomes a value that describes it."""
    try:
        return call(worker, task, *shared)
    except RaypqError as error:
        return ShardFailure(
            shard=task.name, reason=str(error), bad_input=isinstance(error, InputError)
        )
    except Exception as error:  # whatever it is, it belongs to this one shard
        log.debug("%s failed", task.name, exc_info=True)
        return ShardFailure(
            shard=task.name,
            reason=f"{type(error).__name__}: {error}",
            bad_input=False,
            may_pass=may_pass(error),
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
    """The values of a pass as they arrive, with progress; failures are raised at its end.

    Args:
        total: tasks of the pass. label, unit: for the progress line.
        failures: a list to which failures are appended. Failures that it holds already count as
            those of this pass.
        kept: shards of the job that need no work.
        images: images behind a value, for the progress line.

    Raises:
        JobError: naming every shard that failed, unless all are bad input to be quarantined.
    """
    failures = [] if failures is None else failures
    done = 0
    with console.progress(total, label, unit=unit) as progress:
        for result in results:
            if result.failure:
                failures.append(result.failure)
                progress.done()
                continue
            done += 1
            yield result.value
            progress.done(images(result.value))
    raise_or_quarantine(failures, done, on_bad_shard, kept=kept)


def raise_or_quarantine(
    failures: Sequence[ShardFailure], done: int, on_bad_shard: str, *, kept: int = 0
) -> None:
    """Ends a pass: failures stop the job, unless they are bad input to be quarantined.

    Args:
        done: shards that the pass finished. kept: shards of the job that need no work.

    Raises:
        JobError: naming every shard that failed.
    """
    fatal = [item for item in failures if on_bad_shard == "fail" or not item.bad_input]
    if fatal or (failures and not done + kept):
        raise JobError(failures, done, kept)
    for failure in failures:
        console.warn(f"quarantined {failure}", shard=failure.shard)


class OrderedWindow:
    """How far tasks may run ahead of the oldest unfinished one.

    Results that overtake a slow task wait for it in the driver's memory. So a task is begun only
    if few enough lie between it and the oldest unfinished one, which is always admitted: nothing
    can come to a standstill. Shards of one size finish nearly in order and never wait.
    """

    def __init__(self, workers: int, *, ordered: bool) -> None:
        self._workers, self._ordered = workers, ordered
        self._oldest = 0
        self._overtaken: set[int] = set()  # finished ones after the oldest that is not
        self._largest = 0

    @property
    def end(self) -> int:
        """The first task that may not be begun yet."""
        if not self._ordered:
            return sys.maxsize
        least, most = (factor * self._workers for factor in _AHEAD)
        if self._largest:
            least = max(least, min(most, _HELD_BYTES // self._largest))
        return self._oldest + least

    def finished(self, index: int, value: Any) -> None:
        """Notes that a task is over."""
        if not self._ordered:
            return
        self._largest = max(self._largest, held_bytes(value), 1)
        self._overtaken.add(index)
        while self._oldest in self._overtaken:
            self._overtaken.remove(self._oldest)
            self._oldest += 1


def held_bytes(value: Any) -> int:
    """Bytes of the arrays and strings in a value, through dataclasses and containers."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(held_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(held_bytes(item) for item in value)
    if is_dataclass(value):
        return sum(held_bytes(getattr(value, item.name)) for item in fields(value))
    return int(getattr(value, "nbytes", 0))


def in_order(results: Iterator[TaskResult[R]]) -> Iterator[TaskResult[R]]:
    """Results in task order, each as soon as those before it are there."""
    held: dict[int, TaskResult[R]] = {}
    following = 0
    for result in results:
        held[result.index] = result
        while following in held:
            yield held.pop(following)
            following += 1
    if held:
        raise RuntimeError(f"no result of task {following}, but of later ones")
