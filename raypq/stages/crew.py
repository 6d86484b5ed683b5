"""How work is handed out. A stage knows these few words and nothing of who carries them out.

A *worker* is made once and called with one task after another; a *gang* is some workers made
alike; a *crew* hires gangs. ``LocalCrew`` is threads of this process; the Ray one stands in
``raypq.distributed``. Outcomes arrive in any order and carry the number of their task.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from raypq import console, kernels, machine, meter
from raypq.errors import InputError, JobError, RaypqError, ShardFailure
from raypq.stages.retries import may_pass

if TYPE_CHECKING:
    from raypq.stages.learner import Lesson

TRIES = 3  # attempts at a task that kills its worker, or whose error may pass
# An ordered pass begins no task that is this many times the workers ahead of the oldest unfinished
# one: the least and the most, between which the size of results decides.
_AHEAD = 2, 16
_HELD = 1 << 30  # bytes of results that may wait for an older one, where ``_AHEAD`` allows fewer

log = logging.getLogger(__name__)


class Task(Protocol):
    """What a worker is called with; ``name`` stands in errors."""

    @property
    def name(self) -> str:
        """What the task is called in errors."""


class Worker(Protocol):
    """Does one task. It may be called from several threads at once."""

    def __call__(self, task: Any, shared: Any, /) -> Any: ...


@dataclass(frozen=True)
class Outcome:
    """The result of task ``index``, or why there is none."""

    index: int
    result: Any = None
    failure: ShardFailure | None = None


@dataclass(kw_only=True)
class Effort:
    """What a gang has done since it was hired.

    Attributes:
        ready: ``time.monotonic()`` when the first worker was there.
        workers: most workers that were there at once.
        seconds: spent in tasks, by all workers together.
        images, bytes: read by them, as ``raypq.meter`` counts.
        tasks, failed, retries: finished, given up, and tried again. deaths: of workers.
    """

    ready: float | None = None
    workers: int = 0
    seconds: float = 0.0
    images: int = 0
    bytes: float = 0.0
    tasks: int = 0
    failed: int = 0
    retries: int = 0
    deaths: int = 0


class Gang(Protocol):
    """Workers that are ready."""

    @property
    def effort(self) -> Effort:
        """What the workers did so far."""

    def map(
        self, tasks: Sequence[Task], shared: Any = None, *, ordered: bool = False
    ) -> Iterator[Outcome]:
        """Runs every task once; ``shared`` goes to each worker once.

        Args:
            ordered: outcomes come in task order, each as soon as those before it are there. Tasks
                wait rather than run far ahead of one that is slow (``Window``).
        """


class Crew(Protocol):
    """Where workers come from."""

    workers: int

    @property
    def worker_memory(self) -> int:
        """Bytes that a worker may use; 0 where that is not known."""

    def hire(
        self, make: Callable[..., Worker], *args: Any, cache: int = 0
    ) -> AbstractContextManager[Gang]:
        """Makes the workers, each by ``make(*args)``; they go when the context ends.

        Args:
            cache: bytes that each keeps, where a user asked for so many.
        """

    def learn(self, lesson: Lesson, tell: Callable[[Mapping[str, Any]], None]) -> None:
        """Trains by gradient to the last checkpoint; ``tell`` hears of every epoch."""


def stage_of(make: Callable[..., Worker]) -> str:
    """What records and metrics call the work of such workers: ``EncodeWorker`` does ``encode``."""
    return make.__name__.removesuffix("Worker").lower()


def attempt(worker: Worker, task: Task, shared: Any) -> Any | ShardFailure:
    """Calls the worker; an error becomes a value that says what happened."""
    try:
        return worker(task, shared)
    except RaypqError as error:
        return ShardFailure(
            shard=task.name, reason=str(error), bad_input=isinstance(error, InputError)
        )
    except Exception as error:  # whatever it is belongs to this one shard
        log.debug("%s failed", task.name, exc_info=True)
        return ShardFailure(
            shard=task.name,
            reason=f"{type(error).__name__}: {error}",
            bad_input=False,
            may_pass=may_pass(error),
        )


class LocalCrew:
    """Threads of this process; each computes with ``threads`` CPU threads of its own."""

    def __init__(self, workers: int = 1, threads: int = 1, memory: int = 0) -> None:
        self.workers = workers
        self._threads, self._memory = threads, memory

    @property
    def worker_memory(self) -> int:
        """Bytes that the one worker of all threads may use."""
        return self._memory or machine.usable().worker_memory(1)

    @contextmanager
    def hire(self, make: Callable[..., Worker], *args: Any, cache: int = 0) -> Iterator[Gang]:
        """Makes one worker, which all threads share; it goes when the context ends."""
        kernels.set_threads(self._threads)
        with ThreadPoolExecutor(self.workers, "raypq", kernels.heed_threads) as pool:
            effort = Effort(workers=self.workers)
            worker = make(*args)
            effort.ready = time.monotonic()
            yield _LocalGang(pool, worker, effort)

    def learn(self, lesson: Lesson, tell: Callable[[Mapping[str, Any]], None]) -> None:
        """Trains in this process."""
        from raypq.stages.learner import Learner
        from raypq.stages.stream import Seat

        kernels.set_threads(self._threads * self.workers)  # torch has use for all of them
        Learner(lesson=lesson, seat=Seat(), device=lesson.device, tell=tell).run()


class _LocalGang:
    def __init__(self, pool: ThreadPoolExecutor, worker: Worker, effort: Effort) -> None:
        self._pool, self._worker, self._effort = pool, worker, effort
        self._before = meter.read()
        self._lock = Lock()

    @property
    def effort(self) -> Effort:
        read = meter.read().since(self._before)
        self._effort.images, self._effort.bytes = read.images, read.bytes
        return self._effort

    def map(
        self, tasks: Sequence[Task], shared: Any = None, *, ordered: bool = False
    ) -> Iterator[Outcome]:
        window = Window(self._effort.workers, ordered=ordered)
        outcomes = self._outcomes(tasks, shared, window)
        return in_order(outcomes) if ordered else outcomes

    def _outcomes(self, tasks: Sequence[Task], shared: Any, window: Window) -> Iterator[Outcome]:
        running: dict[Future[Any], int] = {}
        begun = 0
        while running or begun < len(tasks):
            while begun < len(tasks) and len(running) < self._effort.workers and begun < window.end:
                running[self._pool.submit(self._try, tasks[begun], shared)] = begun
                begun += 1
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                index = running.pop(future)
                result = future.result()
                window.finished(index, result)
                if isinstance(result, ShardFailure):
                    yield Outcome(index, failure=result)
                else:
                    yield Outcome(index, result=result)

    def _try(self, task: Task, shared: Any) -> Any:
        start = time.monotonic()
        for tries in range(1, TRIES + 1):
            result = attempt(self._worker, task, shared)
            if not isinstance(result, ShardFailure):
                break
            result = replace(result, tries=tries)
            if not result.may_pass:
                break
        failed = isinstance(result, ShardFailure)
        with self._lock:
            self._effort.seconds += time.monotonic() - start
            self._effort.retries += tries - 1
            self._effort.failed += failed
            self._effort.tasks += not failed
        return result


class Window:
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
            least = max(least, min(most, _HELD // self._largest))
        return self._oldest + least

    def finished(self, index: int, result: Any) -> None:
        """Notes that a task is over."""
        if not self._ordered:
            return
        self._largest = max(self._largest, held_bytes(result), 1)
        self._overtaken.add(index)
        while self._oldest in self._overtaken:
            self._overtaken.remove(self._oldest)
            self._oldest += 1


def held_bytes(value: Any) -> int:
    """Bytes of the arrays and strings in a result, through dataclasses and containers."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(held_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(held_bytes(item) for item in value)
    if is_dataclass(value):
        return sum(held_bytes(getattr(value, item.name)) for item in fields(value))
    return int(getattr(value, "nbytes", 0))


def in_order(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Outcomes in task order, each as soon as those before it are there."""
    held: dict[int, Outcome] = {}
    following = 0
    for outcome in outcomes:
        held[outcome.index] = outcome
        while following in held:
            yield held.pop(following)
            following += 1
    if held:
        raise RuntimeError(f"no outcome of task {following}; later ones have theirs")


def settle(
    failures: Sequence[ShardFailure], done: int, on_bad_shard: str, *, kept: int = 0
) -> None:
    """Ends a pass: failures stop the job, unless they are bad input to be quarantined.

    Args:
        done: shards that the pass finished. kept: shards that needed no work.

    Raises:
        JobError: naming every shard that failed.
    """
    fatal = [item for item in failures if on_bad_shard == "fail" or not item.bad_input]
    if fatal or (failures and not done + kept):
        raise JobError(failures, done, kept)
    for failure in failures:
        console.warn(f"quarantined {failure}", shard=failure.shard)
