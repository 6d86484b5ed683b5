"""A supervised pool of Ray actors: no task is lost when workers or nodes die.

Why not Ray's own pools (Ray 2.60): Ray Data redoes items and merges small shards, ``ActorPool``
dies with its first actor, and actors with endless restarts hung after a node loss. The loop here
is short: actors never restart but are replaced, only actors that answered get work, what a dead
actor held is handed out again first, and a task that kills its worker three times is named and
given up.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Generic, TypeVar, Unpack

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from raypq import console
from raypq.distributed.errors import ClusterError, described, reason_of
from raypq.distributed.pool_metrics import PoolMetrics
from raypq.distributed.worker_actor import StartupError, TaskReply
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
from raypq.execution.retries import may_pass

_POLL = 1.0  # seconds
_SLACK = 0.1  # seconds of work that waits at a worker, so that it need not wait for the driver
_LONG = 2.0  # seconds; tasks that take longer are handed out one at a time
_MOST_AHEAD = 8  # tasks that a worker holds beside the one it is at
_START_WARNING = 15.0  # seconds without a worker
_FEW_WARNING = 60.0  # seconds with some of them
_LONGEST_PAUSE = 8.0  # seconds before the next try where every worker died as it started
_DRAIN = 10.0  # seconds for the calls of a dead actor to fail, after the first one has

W = TypeVar("W")


@dataclass(eq=False)
class _Worker:
    """One actor, as the driver sees it.

    Attributes:
        assigned: tasks sent to it, in the order in which it does them.
        affine: tasks that it did in an earlier pass and whose data it may have cached, not
            assigned yet.
    """

    actor: Any
    assigned: deque[int] = field(default_factory=deque)
    affine: deque[int] = field(default_factory=deque)


class RayWorkerPool(Generic[W]):
    """The actors of one job; passes run over them one after another."""

    def __init__(
        self,
        spawn: Callable[[], Any],
        n_workers: int,
        stage: str,
        *,
        start_timeout: float,
        requested: str,
    ) -> None:
        """Starts the actors.

        Args:
            spawn: makes an actor handle.
            start_timeout: seconds for a first worker.
            requested: resources of each worker, for messages.
        """
        self._spawn, self.n_workers = spawn, n_workers
        self.start_timeout, self.requested = start_timeout, requested
        self._warned_of_few = False
        self.metrics = PoolMetrics(PoolStats(stage=stage, started=time.monotonic()))
        self.starting: dict[Any, _Worker] = {}  # reference of a ping -> worker
        self.ready: list[_Worker] = []
        self.affinity: dict[str, _Worker] = {}  # task name -> the worker that did it last
        self._failed_starts = 0
        self._run: _Run | None = None
        self._fill()

    @property
    def stats(self) -> PoolStats:
        """Counters over all passes so far."""
        return self.metrics.stats

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
        if self._run:  # its consumer stopped before the end
            self._run.abandon()
        shared_ref = [ray.put(shared)] if shared else []
        window = OrderedWindow(self.n_workers, ordered=ordered)
        self._run = run = _Run(self, call, tasks, shared_ref, window)
        results = run.results()
        try:
            yield from in_order(results) if ordered else results
        finally:
            run.abandon()

    def close(self) -> None:
        """Ends all actors."""
        if self._run:
            self._run.abandon()
        for worker in [*self.ready, *self.starting.values()]:
            ray.kill(worker.actor)
        self.ready, self.starting, self.affinity = [], {}, {}
        self.metrics.gauge(workers=0, queue=0)

    def warn_of_few(self) -> None:
        """Warns once if only some of the workers have started."""
        waiting = time.monotonic() - self.stats.started
        if self._warned_of_few or not self.starting or waiting < _FEW_WARNING:
            return
        self._warned_of_few = True
        console.warn(
            f"{len(self.ready)} of {self.n_workers} workers have started; the others wait for "
            f"room: each needs {self.requested}"
        )

    def _fill(self) -> None:
        for _ in range(self.n_workers - len(self.ready) - len(self.starting)):
            self._ping(_Worker(self._spawn()))

    def _ping(self, worker: _Worker) -> None:
        self.starting[worker.actor.ping.remote()] = worker

    def drain(self, worker: _Worker) -> None:
        """Assigns no more tasks to a worker until its current one is over and it answers again."""
        self.ready.remove(worker)
        worker.assigned.clear()
        self._ping(worker)

    def on_ready(self, ref: Any) -> None:
        """Takes in a worker that has answered, or handles one that could not start."""
        worker = self.starting.pop(ref)
        died = False
        try:
            problem: StartupError | None = ray.get(ref)
        except RayError as error:
            problem, died = StartupError(reason_of(error)), True
        if problem is None:
            self._failed_starts = 0
            self.ready.append(worker)
            if self.stats.ready is None:
                self.stats.ready = time.monotonic()
            return
        ray.kill(worker.actor)
        self._failed_starts += 1
        if problem.final or (problem.lasting and _nodes() == 1):
            raise ClusterError(f"a worker cannot start: {problem.reason}")
        if self._failed_starts + len(self.starting) < self.n_workers + MAX_TRIES:
            console.warn(f"a worker could not start: {problem.reason}; starting another")
            if died and not self.ready and not self.starting:
                # Its node may be dead and Ray not know it yet: the next would be put there too.
                time.sleep(min(2.0**self._failed_starts, _LONGEST_PAUSE))
            self._fill()
        elif not self.ready and not self.starting:
            raise ClusterError(
                f"workers cannot start ({self._failed_starts} tries); the last: {problem.reason}"
            )
        else:
            console.warn(
                f"a worker could not start: {problem.reason}; going on with "
                f"{len(self.ready) + len(self.starting)} of {self.n_workers}"
            )

    def replace_dead(self, worker: _Worker, why: str) -> None:
        """Replaces a worker that is dead, or that can no longer be reached."""
        self.ready.remove(worker)
        self.metrics.worker_died()
        ray.kill(worker.actor)  # one that is only out of reach must not hold its CPU for ever
        console.warn(f"a worker died: {why}; starting another")
        self._fill()


class _Run:
    """One pass of a pool over its tasks."""

    def __init__(
        self,
        pool: RayWorkerPool[Any],
        call: Callable[..., Any],
        tasks: Sequence[Task],
        shared_ref: list[Any],
        window: OrderedWindow,
    ) -> None:
        self._pool, self._call, self._tasks = pool, call, tasks
        self._shared_ref, self._window = shared_ref, window
        self._queue: list[int] = []  # a heap
        # A heap, too: tasks of a dead actor. Which of them killed it is not known for sure, since
        # its last replies may be lost with it; so each is retried first, and alone.
        self._retry_queue: list[int] = []
        self._isolated: set[int] = set()  # retries that were assigned
        self._tries = [0] * len(tasks)
        self._running: dict[Any, tuple[_Worker, int]] = {}
        self._left = len(tasks)
        self._seconds: float | None = None  # a task takes, lately
        self._without_workers_since: float | None = None
        self._warned = False
        self._over = False
        ready = set(pool.ready)
        # No worker keeps more than its part, though it may have done all while others started.
        part = -(-len(tasks) // max(1, len(ready)))
        for index, task in enumerate(tasks):
            last = pool.affinity.get(task.name)
            if last is not None and last in ready and len(last.affine) < part:
                last.affine.append(index)
            else:
                self._queue.append(index)

    def results(self) -> Iterator[TaskResult[Any]]:
        """Assigns tasks, waits for replies and deaths, and handles them, to the end."""
        pool = self._pool
        while self._left and not self._over:
            self._assign()
            refs = [*self._running, *pool.starting]
            done, _ = ray.wait(refs, num_returns=1, timeout=_POLL)
            if done and len(refs) > 1:  # take along all that is there by now
                done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            for ref in done:
                if ref in pool.starting:
                    pool.on_ready(ref)
                elif ref in self._running:  # else it went with a dead actor
                    yield from self._collect(ref)
            pool.metrics.gauge(workers=len(pool.ready), queue=self._left - len(self._running))
            self._check_for_workers()

    def abandon(self) -> None:
        """Forgets what is in flight; the members at it come back when they are free."""
        if self._over:
            return
        self._over = True
        for ref in self._running:
            ray.cancel(ref)  # those that wait at an actor; one at work goes on to its end
        self._running.clear()
        for worker in list(self._pool.ready):
            worker.affine.clear()
            if worker.assigned:
                self._pool.drain(worker)

    def _check_for_workers(self) -> None:
        """Stops waiting for a first worker that no node has room for."""
        pool, now = self._pool, time.monotonic()
        if pool.ready:
            self._without_workers_since = None
            pool.warn_of_few()
            return
        self._without_workers_since = self._without_workers_since or now
        if now - self._without_workers_since > pool.start_timeout:
            raise ClusterError(
                f"no worker started within {pool.start_timeout:g} s. Each of {pool.n_workers} "
                f"needs {pool.requested}; the cluster has {_counted(ray.cluster_resources())} in "
                f"all, of which {_counted(ray.available_resources())} are free. Wait for other "
                "jobs to end, ask for less (--threads, --gpus-per-worker, --memory-per-worker; in "
                "a config threads, gpus_per_worker, memory_per_worker below where), or wait longer "
                "(--start-timeout, start_timeout)"
            )
        if (
            now - self._without_workers_since > min(_START_WARNING, pool.start_timeout / 2)
            and not self._warned
        ):
            self._warned = True
            console.warn(
                "no worker has started yet; waiting for room in the cluster, "
                f"{pool.start_timeout:g} s at most (--start-timeout, start_timeout)"
            )

    def _assign(self) -> None:
        depth = self._depth()
        open_to = [
            worker
            for worker in self._pool.ready
            if len(worker.assigned) < depth and self._isolated.isdisjoint(worker.assigned)
        ]
        while open_to:
            worker = min(open_to, key=lambda one: len(one.assigned))
            index = self._take(worker)
            if index is None:
                open_to.remove(worker)
                continue
            worker.assigned.append(index)
            ref = worker.actor.call.remote(self._call, self._tasks[index], self._shared_ref)
            self._running[ref] = worker, index
            if len(worker.assigned) >= depth or index in self._isolated:
                open_to.remove(worker)

    def _depth(self) -> int:
        """Tasks assigned to one worker at once: enough short ones that it never waits for the
        driver, but no more than its part of what is left."""
        fair = -(-self._left // max(1, len(self._pool.ready)))
        if self._seconds is None:
            return min(2, fair)
        if self._seconds > _LONG:
            return 1
        wanted = 2 + min(_MOST_AHEAD, int(_SLACK / max(self._seconds, 1e-6)))
        return max(1, min(wanted, fair))

    def _take(self, worker: _Worker) -> int | None:
        """The next task for a worker: retries, then in order, its affine ones before others."""
        if self._retry_queue:  # while there are any, no worker is given a second task
            if worker.assigned:
                return None
            index = heapq.heappop(self._retry_queue)
            self._isolated.add(index)
            return index
        affine, queue, end = worker.affine, self._queue, self._window.end
        if affine and affine[0] < end and not (queue and queue[0] < affine[0]):
            return affine.popleft()
        if queue and queue[0] < end:
            return heapq.heappop(queue)
        busiest = max(self._pool.ready, key=lambda one: _before(end, one.affine))
        number = _before(end, busiest.affine)
        # The first one stays: its worker is about to begin it and has its data cached.
        if number < 2:
            return None
        index = busiest.affine[number - 1]
        del busiest.affine[number - 1]
        return index

    def _collect(self, ref: Any) -> Iterator[TaskResult[Any]]:
        worker, index = self._running[ref]
        try:
            reply: TaskReply = ray.get(ref)
        except RayActorError as error:
            yield from self._take_back(worker, error)
            return
        except RayTaskError as error:  # it cannot be sent
            value = self._failure(index, error, passing=may_pass(error.cause))
        except RayError as error:  # lost with its node
            value = self._failure(index, error, passing=True)
        else:
            value = self._value(reply)
            old, new = self._seconds, reply.seconds
            self._seconds = new if old is None else 0.9 * old + 0.1 * new
        del self._running[ref]
        worker.assigned.remove(index)
        yield from self._finish(worker, index, value)

    def _failure(self, index: int, error: RayError, *, passing: bool) -> ShardFailure:
        return ShardFailure(
            shard=self._tasks[index].name,
            reason=reason_of(error),
            bad_input=False,
            may_pass=passing,
        )

    def _value(self, reply: TaskReply) -> Any:
        """The value of a reply, whose cost is counted."""
        self._pool.metrics.task_returned(reply.seconds, reply.read)
        return reply.value

    def _finish(self, worker: _Worker, index: int, value: Any) -> Iterator[TaskResult[Any]]:
        if isinstance(value, ShardFailure):
            yield from self._failed(index, value)
            return
        self._left -= 1
        self._pool.metrics.task_finished()
        self._pool.affinity[self._tasks[index].name] = worker
        self._window.finished(index, value)
        yield TaskResult(index, value)

    def _failed(self, index: int, failure: ShardFailure) -> Iterator[TaskResult[Any]]:
        """Another try, or the end of a task."""
        self._tries[index] += 1
        if failure.may_pass and self._tries[index] < MAX_TRIES:
            heapq.heappush(self._retry_queue, index)
            self._pool.metrics.task_retried()
            return
        self._left -= 1
        self._pool.metrics.task_failed()
        self._window.finished(index, None)
        yield TaskResult(index, failure=replace(failure, tries=self._tries[index]))

    def _take_back(self, worker: _Worker, error: RayActorError) -> Iterator[TaskResult[Any]]:
        """Takes back the tasks of a dead actor; only the first without a reply counts a try."""
        finished = []
        for ref in [ref for ref, (owner, _) in self._running.items() if owner is worker]:
            _, index = self._running.pop(ref)
            try:  # replies that it still sent are as good as any
                finished.append((index, self._value(ray.get(ref, timeout=_DRAIN))))
            except RayError:
                continue
            worker.assigned.remove(index)
        self._pool.replace_dead(worker, reason_of(error))
        lost = list(worker.assigned)
        for index in lost[1:]:
            heapq.heappush(self._retry_queue, index)
        for index in worker.affine:
            heapq.heappush(self._queue, index)
        worker.assigned.clear()
        worker.affine.clear()
        for index, value in finished:
            yield from self._finish(worker, index, value)
        if lost:
            failure = self._failure(lost[0], error, passing=True)
            reason = f"its worker died: {failure.reason}"
            yield from self._failed(lost[0], replace(failure, reason=reason))


def _nodes() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())


def _before(end: int, own: Sequence[int]) -> int:
    """How many of these ascending numbers are below ``end``."""
    if not own or own[-1] < end:
        return len(own)
    return sum(1 for _ in takewhile(lambda index: index < end, own))


def _counted(resources: Mapping[str, float]) -> str:
    names = {"CPU": 0.0, "GPU": 0.0, "memory": 0.0}
    return described({name: resources.get(name, 0.0) for name in names})
