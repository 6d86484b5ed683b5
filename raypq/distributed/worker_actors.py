"""Actors of a worker pool: they are started, replaced when they die, and stopped.

Actors never restart: those with endless restarts hung after the loss of a node (Ray 2.60). A new
actor takes the place of a dead one, and only an actor that has answered gets work.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from raypq import console
from raypq.distributed.errors import ClusterError, described, reason_of
from raypq.distributed.pool_metrics import PoolMetrics
from raypq.distributed.worker_actor import Started, StartupError
from raypq.execution.executor import MAX_TRIES

_NO_WORKER_WARNING = 15.0  # seconds until a warning that no worker has started
_FEW_WORKERS_WARNING = 15.0  # seconds until a warning that some workers have not started
_MAX_PAUSE = 8.0  # seconds before the next start where every worker died at its start


@dataclass(eq=False)
class Worker:
    """One actor, as the driver sees it.

    Attributes:
        place: where it runs, for messages.
        assigned: tasks sent to it, in the order in which it does them.
        cached_tasks: tasks of this pass, not assigned yet, that it did in an earlier one, and whose
            data it may have cached.
    """

    actor: Any
    place: str = "not known"
    assigned: deque[int] = field(default_factory=deque)
    cached_tasks: deque[int] = field(default_factory=deque)


class WorkerActors:
    """The actors of one pool.

    Attributes:
        ready: workers that have answered.
        starting: workers that have not answered yet, by the reference of their ping.
    """

    def __init__(
        self,
        spawn: Callable[[], Any],
        n_workers: int,
        metrics: PoolMetrics,
        *,
        start_timeout: float,
        resources: str,
    ) -> None:
        """Starts the actors.

        Args:
            spawn: makes an actor handle.
            start_timeout: seconds for a first worker.
            resources: what each worker needs, for messages.
        """
        self._spawn, self._n_workers, self._metrics = spawn, n_workers, metrics
        self._start_timeout, self._resources = start_timeout, resources
        self.starting: dict[Any, Worker] = {}
        self.ready: list[Worker] = []
        self._failed_starts = 0
        self._without_workers_since: float | None = None
        self._warned_of_none = self._warned_of_few = False
        self._start_missing()

    def close(self) -> None:
        """Ends all actors."""
        for worker in [*self.ready, *self.starting.values()]:
            ray.kill(worker.actor)
        self.ready, self.starting = [], {}

    def drain(self, worker: Worker) -> None:
        """Assigns no more tasks to a worker until its current one is over and it answers again."""
        self.ready.remove(worker)
        worker.assigned.clear()
        self._ping(worker)

    def replace_dead(self, worker: Worker, reason: str, shards: Sequence[str]) -> None:
        """Replaces a worker that is dead, or that can no longer be reached.

        Args:
            shards: its tasks without a reply, for the warning. It was doing the first of them, or a
                later one if replies were lost with it.
        """
        self.ready.remove(worker)
        self._metrics.worker_died()
        ray.kill(worker.actor)  # an unreachable one would hold its CPUs for ever
        doing = f", at work on {shards[0]}" if shards else ", without work"
        more = f" or one of the next {len(shards) - 1}" if len(shards) > 1 else ""
        console.warn(
            f"a worker died ({worker.place}{doing}{more}): {reason}; starting another",
            **({"shard": shards[0]} if shards else {}),
        )
        self._start_missing()

    def on_ready(self, ref: Any) -> None:
        """Adds a worker that has answered, or handles one that could not start.

        Raises:
            ClusterError: no worker can start.
        """
        worker = self.starting.pop(ref)
        died = False
        try:
            answer: Started | StartupError = ray.get(ref)
        except RayError as lost:
            answer, died = StartupError(reason_of(lost)), True
        if isinstance(answer, StartupError):
            ray.kill(worker.actor)
            self._start_failed(answer, died=died)
            return
        worker.place = str(answer)
        self._failed_starts = 0
        self.ready.append(worker)
        if self._metrics.stats.ready is None:
            self._metrics.stats.ready = time.monotonic()

    def check_started(self) -> None:
        """Warns where workers wait for room in the cluster.

        Raises:
            ClusterError: none has started within the timeout.
        """
        now = time.monotonic()
        if self.ready:
            self._without_workers_since = None
            self._warn_of_few(now)
            return
        self._without_workers_since = self._without_workers_since or now
        waited = now - self._without_workers_since
        if waited > self._start_timeout:
            raise ClusterError(
                f"no worker started within {self._start_timeout:g} s. Each of {self._n_workers} "
                f"needs {self._resources}; the cluster has {_counted(ray.cluster_resources())} in "
                f"all, of which {_counted(ray.available_resources())} are free. Wait for other "
                "jobs to end, ask for less (--threads, --gpus-per-worker, --memory-per-worker; in "
                "a config threads, gpus_per_worker, memory_per_worker below where), or wait longer "
                "(--start-timeout, start_timeout)"
            )
        if waited > min(_NO_WORKER_WARNING, self._start_timeout / 2) and not self._warned_of_none:
            self._warned_of_none = True
            console.warn(
                "no worker has started yet; waiting for room in the cluster, "
                f"{self._start_timeout:g} s at most (--start-timeout, start_timeout)"
            )

    def new_pass(self) -> None:
        """Starts the time without workers, and the warning of it, anew."""
        self._without_workers_since, self._warned_of_none = None, False

    def _start_missing(self) -> None:
        for _ in range(self._n_workers - len(self.ready) - len(self.starting)):
            self._ping(Worker(self._spawn()))

    def _ping(self, worker: Worker) -> None:
        self.starting[worker.actor.ping.remote()] = worker

    def _start_failed(self, error: StartupError, *, died: bool) -> None:
        """Starts another worker, goes on with fewer, or ends the job."""
        self._failed_starts += 1
        if error.everywhere or (error.permanent and _live_nodes() == 1):
            raise ClusterError(f"a worker cannot start: {error.reason}")
        if self._failed_starts + len(self.starting) < self._n_workers + MAX_TRIES:
            console.warn(f"a worker could not start: {error.reason}; starting another")
            if died and not self.ready and not self.starting:
                # Ray may not know yet that a node is dead, and would start the next worker there.
                time.sleep(min(2.0**self._failed_starts, _MAX_PAUSE))
            self._start_missing()
        elif not self.ready and not self.starting:
            raise ClusterError(
                f"workers cannot start ({self._failed_starts} tries); the last: {error.reason}"
            )
        else:
            console.warn(
                f"a worker could not start: {error.reason}; going on with "
                f"{len(self.ready) + len(self.starting)} of {self._n_workers}"
            )

    def _warn_of_few(self, now: float) -> None:
        """Warns once if only some of the workers have started."""
        waited = now - self._metrics.stats.started
        if self._warned_of_few or not self.starting or waited < _FEW_WORKERS_WARNING:
            return
        self._warned_of_few = True
        console.warn(
            f"{len(self.ready)} of {self._n_workers} workers have started; the others wait for "
            f"room: each needs {self._resources}"
        )


def _live_nodes() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())


def _counted(resources: Mapping[str, float]) -> str:
    names = {"CPU": 0.0, "GPU": 0.0, "memory": 0.0}
    return described({name: resources.get(name, 0.0) for name in names})
