"""How work is handed out. A stage knows these few words and nothing of who carries them out.

A *worker* is made once and called with one task after another; a *gang* is some workers made
alike; a *crew* hires gangs. ``LocalCrew`` is threads of this process; the Ray one stands in
``raypq.distributed``. Outcomes arrive in any order and carry the number of their task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from raypq import console, kernels
from raypq.errors import JobError, RaypqError, ShardFailure

if TYPE_CHECKING:
    from raypq.stages.learner import Lesson

TRIES = 3  # attempts at a task that fails for another reason than bad input

log = logging.getLogger(__name__)


class Task(Protocol):
    """What a worker is called with; ``name`` stands in errors."""

    @property
    def name(self) -> str: ...


class Worker(Protocol):
    """Does one task. It may be called from several threads at once."""

    def __call__(self, task: Any, shared: Any, /) -> Any: ...


@dataclass(frozen=True)
class Outcome:
    """The result of task ``index``, or why there is none."""

    index: int
    result: Any = None
    failure: ShardFailure | None = None


class Gang(Protocol):
    """Workers that are ready."""

    def map(self, tasks: Sequence[Task], shared: Any = None) -> Iterator[Outcome]:
        """Runs every task once; ``shared`` goes to each worker once."""


class Crew(Protocol):
    """Where workers come from."""

    workers: int

    def hire(self, make: Callable[..., Worker], *args: Any) -> AbstractContextManager[Gang]:
        """Makes the workers, each by ``make(*args)``; they go when the context ends."""

    def learn(self, lesson: Lesson, tell: Callable[[Mapping[str, Any]], None]) -> None:
        """Trains by gradient to the last checkpoint; ``tell`` hears of every epoch."""


def attempt(worker: Worker, task: Task, shared: Any) -> Any | ShardFailure:
    """Calls the worker; an error becomes a value that says what happened."""
    try:
        return worker(task, shared)
    except RaypqError as error:
        return ShardFailure(shard=task.name, reason=str(error))
    except Exception as error:  # whatever it is belongs to this one shard
        log.debug("%s failed", task.name, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        return ShardFailure(shard=task.name, reason=reason, bad_input=False)


class LocalCrew:
    """Threads of this process; each computes with ``threads`` CPU threads of its own."""

    def __init__(self, workers: int = 1, threads: int = 1) -> None:
        self.workers = workers
        self._threads = threads

    @contextmanager
    def hire(self, make: Callable[..., Worker], *args: Any) -> Iterator[Gang]:
        kernels.set_threads(self._threads)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="raypq") as pool:
            yield _LocalGang(pool, make(*args), self.workers)

    def learn(self, lesson: Lesson, tell: Callable[[Mapping[str, Any]], None]) -> None:
        from raypq.stages.learner import Learner
        from raypq.stages.stream import Seat

        kernels.set_threads(self._threads * self.workers)  # torch has use for all of them
        Learner(lesson=lesson, seat=Seat(), device=lesson.device, tell=tell).run()


class _LocalGang:
    def __init__(self, pool: ThreadPoolExecutor, worker: Worker, workers: int) -> None:
        self._pool, self._worker, self._workers = pool, worker, workers

    def map(self, tasks: Sequence[Task], shared: Any = None) -> Iterator[Outcome]:
        running: dict[Future[Any], int] = {}
        waiting = iter(range(len(tasks)))
        for index in waiting:
            running[self._pool.submit(self._try, tasks[index], shared)] = index
            if len(running) >= self._workers:
                break
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                index = running.pop(future)
                following = next(waiting, None)
                if following is not None:
                    running[self._pool.submit(self._try, tasks[following], shared)] = following
                result = future.result()
                if isinstance(result, ShardFailure):
                    yield Outcome(index, failure=result)
                else:
                    yield Outcome(index, result=result)

    def _try(self, task: Task, shared: Any) -> Any:
        for tries in range(1, TRIES + 1):
            result = attempt(self._worker, task, shared)
            if not isinstance(result, ShardFailure) or result.bad_input:
                break
            result = ShardFailure(
                shard=result.shard, reason=result.reason, tries=tries, bad_input=False
            )
        return result


def in_order(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Outcomes in task order, each as soon as those before it are there."""
    held: dict[int, Outcome] = {}
    following = 0
    for outcome in outcomes:
        held[outcome.index] = outcome
        while following in held:
            yield held.pop(following)
            following += 1
    assert not held, "an outcome is missing"


def settle(failures: Sequence[ShardFailure], done: int, on_bad_shard: str) -> None:
    """Ends a pass: failures stop the job, unless they are bad input to be quarantined.

    Raises:
        JobError: naming every shard that failed.
    """
    fatal = [item for item in failures if on_bad_shard == "fail" or not item.bad_input]
    if fatal or (failures and not done):
        raise JobError(failures, done)
    for failure in failures:
        console.warn(f"quarantined {failure}", shard=failure.shard)
