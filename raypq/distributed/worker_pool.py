"""A supervised pool of Ray actors: no task is lost when workers or nodes die.

Why not Ray's own pools (Ray 2.60): Ray Data redoes items and merges small shards, and
``ActorPool`` ends with its first dead actor. Here the tasks of a dead actor are assigned again
first, and a task that kills its worker three times is reported as failed.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Generic, TypeVar, Unpack

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from raypq.distributed.errors import reason_of
from raypq.distributed.pool_metrics import PoolMetrics
from raypq.distributed.worker_actor import TaskReply
from raypq.distributed.worker_actors import Worker, WorkerActors
from raypq.errors import ShardFailure
from raypq.execution.executor import (
    MAX_TRIES,
    OrderedWindow,
    PoolStats,
    R,
    Shared,
    T,
    Task,
    TaskResult,
    in_order,
)
from raypq.execution.retries import is_transient

_POLL = 1.0  # seconds
_QUEUED_SECONDS = 0.1  # of work queued at a worker, so that it never waits for the driver
_LONG_TASK = 2.0  # seconds; tasks that take longer are assigned one at a time
_MAX_QUEUED = 8  # short tasks queued at a worker behind the two that it always may have
_REPLY_TIMEOUT = 10.0  # seconds for the replies of an actor that was just found dead

W = TypeVar("W")


class RayWorkerPool(Generic[W]):
    """The actors of one job; passes run over them one after another."""

    def __init__(
        self,
        spawn: Callable[[], Any],
        n_workers: int,
        stage: str,
        *,
        start_timeout: float,
        resources: str,
    ) -> None:
        """Starts the actors (arguments as of ``WorkerActors``)."""
        self._metrics = PoolMetrics(PoolStats(stage=stage, started=time.monotonic()))
        self._n_workers = n_workers
        self._actors = WorkerActors(
            spawn, n_workers, self._metrics, start_timeout=start_timeout, resources=resources
        )
        self._last_workers: dict[str, Worker] = {}
        self._pass: _Pass | None = None

    @property
    def stats(self) -> PoolStats:
        """Counters over all passes so far."""
        return self._metrics.stats

    @property
    def ready(self) -> Sequence[Worker]:
        """Workers that have answered."""
        return self._actors.ready

    def map(
        self,
        call: Callable[[W, T, Unpack[Shared]], R],
        tasks: Sequence[T],
        *shared: *Shared,
        ordered: bool = False,
    ) -> Iterator[TaskResult[R]]:
        """Calls ``call(worker, task, *shared)`` once for every task.

        Raises:
            ClusterError: workers cannot start, or keep dying.
        """
        if self._pass:  # its consumer may have stopped before the end
            self._pass.abandon()
        self._pass = current = _Pass(
            self._actors,
            self._metrics,
            self._last_workers,
            call,
            tasks,
            [ray.put(shared)] if shared else [],
            OrderedWindow(self._n_workers, ordered=ordered),
        )
        results = current.results()
        try:
            yield from in_order(results) if ordered else results
        finally:
            current.abandon()

    def close(self) -> None:
        """Ends all actors."""
        if self._pass:
            self._pass.abandon()
        self._actors.close()
        self._last_workers.clear()
        self._metrics.gauge(workers=0, queue=0)


class _Pass:
    """One pass of a pool over its tasks."""

    def __init__(
        self,
        actors: WorkerActors,
        metrics: PoolMetrics,
        last_workers: dict[str, Worker],
        call: Callable[..., Any],
        tasks: Sequence[Task],
        shared_ref: list[Any],
        window: OrderedWindow,
    ) -> None:
        """Prepares the queues.

        Args:
            last_workers: the worker that did a task last, by the name of the task; updated.
            shared_ref: the reference of the shared values in a list, or nothing.
        """
        self._actors, self._metrics, self._last_workers = actors, metrics, last_workers
        self._call, self._tasks = call, tasks
        self._shared_ref, self._window = shared_ref, window
        self._queue: list[int] = []  # a heap
        # Tasks of dead actors, also a heap. Which of them killed its actor is uncertain, since
        # replies may be lost with it; so each is retried first, and alone.
        self._retry_queue: list[int] = []
        self._isolated: set[int] = set()  # retries that were assigned
        self._tries = [0] * len(tasks)
        self._running: dict[Any, tuple[Worker, int]] = {}
        self._unfinished = len(tasks)
        self._task_seconds: float | None = None  # moving average
        self._closed = False
        actors.new_pass()
        ready = set(actors.ready)
        # A worker may have done all tasks while others started; it keeps no more than its share.
        share = -(-len(tasks) // max(1, len(ready)))
        for index, task in enumerate(tasks):
            last = last_workers.get(task.name)
            if last is not None and last in ready and len(last.cached_tasks) < share:
                last.cached_tasks.append(index)
            else:
                self._queue.append(index)

    def results(self) -> Iterator[TaskResult[Any]]:
        """Assigns tasks, waits for replies and deaths, and handles them, until all are done."""
        actors = self._actors
        while self._unfinished and not self._closed:
            self._assign()
            refs = [*self._running, *actors.starting]
            done, _ = ray.wait(refs, num_returns=1, timeout=_POLL)
            if done and len(refs) > 1:  # handle all replies that have arrived
                done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            for ref in done:
                if ref in actors.starting:
                    actors.on_ready(ref)
                elif ref in self._running:  # else its actor died, and the task is queued again
                    yield from self._collect(ref)
            queued = self._unfinished - len(self._running)
            self._metrics.gauge(workers=len(actors.ready), queue=queued)
            actors.check_started()

    def abandon(self) -> None:
        """Ends the pass early; busy workers become ready again when their current task is over."""
        if self._closed:
            return
        self._closed = True
        for ref in self._running:
            ray.cancel(ref)  # has an effect on queued tasks; a task that runs goes on to its end
        self._running.clear()
        for worker in list(self._actors.ready):
            worker.cached_tasks.clear()
            if worker.assigned:
                self._actors.drain(worker)

    def _assign(self) -> None:
        depth = self._depth()
        available = [
            worker
            for worker in self._actors.ready
            if len(worker.assigned) < depth and self._isolated.isdisjoint(worker.assigned)
        ]
        while available:
            worker = min(available, key=lambda worker: len(worker.assigned))
            index = self._next_task(worker)
            if index is None:
                available.remove(worker)
                continue
            worker.assigned.append(index)
            ref = worker.actor.call.remote(self._call, self._tasks[index], self._shared_ref)
            self._running[ref] = worker, index
            if len(worker.assigned) >= depth or index in self._isolated:
                available.remove(worker)

    def _depth(self) -> int:
        """Number of tasks to assign to a worker at once: enough short ones that it never waits
        for the driver, but no more than its share of those left."""
        share = -(-self._unfinished // max(1, len(self._actors.ready)))
        if self._task_seconds is None:
            return min(2, share)
        if self._task_seconds > _LONG_TASK:
            return 1
        depth = 2 + min(_MAX_QUEUED, int(_QUEUED_SECONDS / max(self._task_seconds, 1e-6)))
        return max(1, min(depth, share))

    def _next_task(self, worker: Worker) -> int | None:
        """The next task for a worker: retries, then the lowest of its cached tasks and the queue,
        then a cached task of another worker. None: it gets no task now."""
        if self._retry_queue:  # meanwhile no worker is given a second task
            if worker.assigned:
                return None
            index = heapq.heappop(self._retry_queue)
            self._isolated.add(index)
            return index
        cached, queue, end = worker.cached_tasks, self._queue, self._window.end
        if cached and cached[0] < end and not (queue and queue[0] < cached[0]):
            return cached.popleft()
        if queue and queue[0] < end:
            return heapq.heappop(queue)
        busiest = max(self._actors.ready, key=lambda worker: _count_below(end, worker.cached_tasks))
        count = _count_below(end, busiest.cached_tasks)
        # The first one stays: its worker is about to begin it and has its data cached.
        if count < 2:
            return None
        index = busiest.cached_tasks[count - 1]
        del busiest.cached_tasks[count - 1]
        return index

    def _collect(self, ref: Any) -> Iterator[TaskResult[Any]]:
        worker, index = self._running[ref]
        try:
            reply: TaskReply = ray.get(ref)
        except RayActorError as error:
            yield from self._requeue_tasks_of(worker, error)
            return
        except RayTaskError as error:  # the reply could not be sent
            value = self._failure(index, error, transient=is_transient(error.cause))
        except RayError as error:  # the reply was lost with its node
            value = self._failure(index, error, transient=True)
        else:
            value = self._value(reply)
            old, new = self._task_seconds, reply.seconds
            self._task_seconds = new if old is None else 0.9 * old + 0.1 * new
        del self._running[ref]
        worker.assigned.remove(index)
        yield from self._finish(worker, index, value)

    def _failure(self, index: int, error: RayError, *, transient: bool) -> ShardFailure:
        return ShardFailure(
            shard=self._tasks[index].name,
            reason=reason_of(error),
            bad_input=False,
            transient=transient,
        )

    def _value(self, reply: TaskReply) -> Any:
        """The value of a reply; counts its cost."""
        self._metrics.task_returned(reply.seconds, reply.read)
        return reply.value

    def _finish(self, worker: Worker, index: int, value: Any) -> Iterator[TaskResult[Any]]:
        if isinstance(value, ShardFailure):
            yield from self._failed(index, value)
            return
        self._unfinished -= 1
        self._metrics.task_finished()
        self._last_workers[self._tasks[index].name] = worker
        self._window.finished(index, value)
        yield TaskResult(index, value)

    def _failed(self, index: int, failure: ShardFailure) -> Iterator[TaskResult[Any]]:
        """Queues a task for another try, or gives its failure as the result."""
        self._tries[index] += 1
        if failure.transient and self._tries[index] < MAX_TRIES:
            heapq.heappush(self._retry_queue, index)
            self._metrics.task_retried()
            return
        self._unfinished -= 1
        self._metrics.task_failed()
        self._window.finished(index, None)
        yield TaskResult(index, failure=replace(failure, tries=self._tries[index]))

    def _requeue_tasks_of(self, worker: Worker, error: RayActorError) -> Iterator[TaskResult[Any]]:
        """Queues the tasks of a dead actor again; only for the first one without a reply, which
        probably killed it, this counts as a try."""
        replies = []
        for ref in [ref for ref, (owner, _) in self._running.items() if owner is worker]:
            _, index = self._running.pop(ref)
            try:  # replies that the actor sent before it died count
                replies.append((index, self._value(ray.get(ref, timeout=_REPLY_TIMEOUT))))
            except RayError:
                continue
            worker.assigned.remove(index)
        lost = list(worker.assigned)
        shards = [self._tasks[index].name for index in lost]
        self._actors.replace_dead(worker, reason_of(error), shards)
        for index in lost[1:]:
            heapq.heappush(self._retry_queue, index)
        for index in worker.cached_tasks:
            heapq.heappush(self._queue, index)
        worker.assigned.clear()
        worker.cached_tasks.clear()
        for index, value in replies:
            yield from self._finish(worker, index, value)
        if lost:
            failure = self._failure(lost[0], error, transient=True)
            reason = f"its worker died ({worker.place}): {failure.reason}"
            yield from self._failed(lost[0], replace(failure, reason=reason))


def _count_below(end: int, indexes: Sequence[int]) -> int:
    """The number of ascending indexes that are below ``end``."""
    if not indexes or indexes[-1] < end:
        return len(indexes)
    return sum(1 for _ in takewhile(lambda index: index < end, indexes))
