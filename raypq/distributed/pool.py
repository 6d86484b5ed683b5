"""A supervised pool of Ray actors: nothing lost under worker and node deaths.

Why not Ray's own pools (Ray 2.60): Ray Data redoes items and merges small shards, ``ActorPool``
dies with its first actor, and actors with endless restarts hung after a node loss. The loop here
is short: actors never restart but are replaced, only actors that answered get work, what a dead
actor held goes to the front of the queue, and a task that kills its worker three times is named
and given up.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raypq import console, kernels
from raypq.config import ClusterSettings
from raypq.errors import ConfigError, RaypqError, ShardFailure
from raypq.stages.crew import TRIES, Gang, Outcome, Task, Worker, attempt

_AHEAD = 2  # tasks an actor holds, so that it never waits for the driver
_POLL = 1.0  # seconds
_START_TIMEOUT = 300.0  # seconds for the first worker of a gang to be there


class ClusterError(RaypqError):
    """The cluster cannot be reached, or cannot run what was asked for."""


class _Actor:
    """Runs in a worker process: makes the worker once, then calls it."""

    def __init__(self, threads: int, make: Callable[..., Worker], *args: Any) -> None:
        kernels.set_threads(threads)
        self._worker = make(*args)
        self._shared_ref: bytes | None = None
        self._shared: Any = None

    def ready(self) -> int:
        return os.getpid()

    def call(self, task: Task, shared: list[Any]) -> Any:
        # The reference travels in a list, or Ray would fetch the value anew for every call.
        ref = shared[0] if shared else None
        key = ref.binary() if ref is not None else None
        if key != self._shared_ref:
            self._shared = ray.get(ref) if ref is not None else None
            self._shared_ref = key
        return attempt(self._worker, task, self._shared)


class RayCrew:
    """Hires gangs of Ray actors."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.workers = settings.workers
        self._settings = settings

    @contextmanager
    def hire(self, make: Callable[..., Worker], *args: Any) -> Iterator[Gang]:
        settings = self._settings
        check_resources(settings)
        actor = ray.remote(
            num_cpus=settings.threads,
            num_gpus=settings.gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
        )(_Actor)
        # Models and class tables go to the object store once, not once a worker.
        refs = [ray.put(arg) for arg in args]
        gang = _RayGang(lambda: actor.remote(settings.threads, make, *refs), settings.workers)
        try:
            yield gang
        finally:
            gang.close()


class _RayGang:
    def __init__(self, spawn: Callable[[], Any], workers: int) -> None:
        self._spawn = spawn
        self._wanted = workers
        self._starting: dict[Any, Any] = {}  # ready() reference -> actor
        self._ready: list[Any] = []
        for _ in range(workers):
            self._start()

    def _start(self) -> None:
        actor = self._spawn()
        self._starting[actor.ready.remote()] = actor

    def close(self) -> None:
        for actor in [*self._ready, *self._starting.values()]:
            ray.kill(actor)
        self._ready, self._starting = [], {}

    def map(self, tasks: Sequence[Task], shared: Any = None) -> Iterator[Outcome]:
        box = [] if shared is None else [ray.put(shared)]
        run = _Run(self, tasks, box)
        while not run.finished:
            yield from run.step()


class _Run:
    """One pass of a gang over its tasks."""

    def __init__(self, gang: _RayGang, tasks: Sequence[Task], box: list[Any]) -> None:
        self._gang, self._tasks, self._box = gang, tasks, box
        self._queue = deque(range(len(tasks)))
        self._tries = [0] * len(tasks)
        self._held: dict[Any, deque[int]] = {actor: deque() for actor in gang._ready}
        self._running: dict[Any, tuple[Any, int]] = {}  # reference -> (actor, task)
        self._left = len(tasks)
        self._idle = 0.0
        self._lost = 0

    @property
    def finished(self) -> bool:
        return self._left == 0

    def step(self) -> Iterator[Outcome]:
        """Hands out work, waits for something to happen, and deals with it."""
        self._assign()
        refs = [*self._running, *self._gang._starting]
        done, _ = ray.wait(refs, num_returns=1, timeout=_POLL)
        if done:  # take along all that is ready now
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        self._idle = 0.0 if done or self._running else self._idle + _POLL
        if self._idle > _START_TIMEOUT:
            raise ClusterError(
                f"no worker started within {_START_TIMEOUT:.0f} s; is the cluster full? "
                f"It has {ray.cluster_resources()} in all"
            )
        for ref in done:
            if ref in self._gang._starting:
                self._welcome(ref)
            elif ref in self._running:
                yield from self._collect(ref)

    def _assign(self) -> None:
        while self._queue:
            actor = min(self._held, key=lambda one: len(self._held[one]), default=None)
            if actor is None or len(self._held[actor]) >= _AHEAD:
                return
            index = self._queue.popleft()
            self._held[actor].append(index)
            self._running[actor.call.remote(self._tasks[index], self._box)] = (actor, index)

    def _welcome(self, ref: Any) -> None:
        actor = self._gang._starting.pop(ref)
        try:
            ray.get(ref)
        except RayActorError as error:
            self._replace(f"a worker died while starting: {_reason(error)}")
            return
        self._gang._ready.append(actor)
        self._held[actor] = deque()

    def _collect(self, ref: Any) -> Iterator[Outcome]:
        actor, index = self._running[ref]
        try:
            result = ray.get(ref)
        except RayActorError as error:
            yield from self._bury(actor, error)
            return
        except RayError as error:  # the result was lost with its node
            result = ShardFailure(
                shard=self._tasks[index].name, reason=_reason(error), bad_input=False
            )
        del self._running[ref]
        self._held[actor].remove(index)
        yield from self._settle(index, result)

    def _settle(self, index: int, result: Any) -> Iterator[Outcome]:
        if isinstance(result, ShardFailure):
            self._tries[index] += 1
            if not result.bad_input and self._tries[index] < TRIES:
                self._queue.appendleft(index)
                return
            yield self._fail(index, result.reason, bad_input=result.bad_input)
            return
        self._left -= 1
        yield Outcome(index, result=result)

    def _fail(self, index: int, reason: str, *, bad_input: bool) -> Outcome:
        self._left -= 1
        failure = ShardFailure(
            shard=self._tasks[index].name,
            reason=reason,
            tries=self._tries[index],
            bad_input=bad_input,
        )
        return Outcome(index, failure=failure)

    def _bury(self, actor: Any, error: RayActorError) -> Iterator[Outcome]:
        """Takes back what a dead actor held; only the task it was at counts a try."""
        held = self._held.pop(actor, deque())
        self._gang._ready = [one for one in self._gang._ready if one != actor]
        finished = []
        for ref in [ref for ref, (owner, _) in self._running.items() if owner == actor]:
            _, index = self._running.pop(ref)
            try:  # it may have finished before the actor died
                finished.append((index, ray.get(ref, timeout=0)))
                held.remove(index)
            except RayError:
                pass
        for index, result in finished:
            yield from self._settle(index, result)
        self._replace(f"a worker died: {_reason(error)}")
        if held:
            self._tries[held[0]] += 1
            if self._tries[held[0]] >= TRIES:
                yield self._fail(
                    held.popleft(), f"kills its worker: {_reason(error)}", bad_input=False
                )
        self._queue.extendleft(reversed(held))

    def _replace(self, why: str) -> None:
        self._lost += 1
        console.warn(f"{why}; starting another", lost=self._lost)
        if self._lost > self._gang._wanted * TRIES + len(self._tasks) * TRIES:
            raise ClusterError(f"workers keep dying ({self._lost} so far); the last: {why}")
        if len(self._gang._ready) + len(self._gang._starting) < self._gang._wanted:
            self._gang._start()


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def check_resources(settings: ClusterSettings) -> None:
    """Says at once what no node could ever give, instead of waiting for it.

    Raises:
        ClusterError: naming what was asked for and what there is.
    """
    for name, wanted in (("CPU", float(settings.threads)), ("GPU", settings.gpus_per_worker)):
        most = max(
            (node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0
        )
        if wanted > most:
            raise ClusterError(f"a worker needs {wanted:g} {name}, the largest node has {most:g}")


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[RayCrew]:
    """A crew on a local Ray or on the cluster at an address; leaves it as it was found.

    Raises:
        ClusterError: the cluster does not answer.
    """
    if settings.cluster == "none":
        raise ConfigError("cluster 'none' means no Ray")
    if ray.is_initialized():
        yield RayCrew(settings)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if settings.cluster == "local":
        options |= {
            "address": "local",
            "num_cpus": settings.workers * settings.threads,
            "include_dashboard": False,
        }
    else:
        options["address"] = settings.cluster
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cannot reach the Ray cluster at {settings.cluster!r}: {_reason(error)}; "
            "check the address and that `ray status` works there"
        ) from None
    try:
        yield RayCrew(settings)
    finally:
        ray.shutdown()
