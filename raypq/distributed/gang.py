"""A supervised gang of Ray actors: nothing lost under worker and node deaths.

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
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from raypq import console
from raypq.distributed.errors import ClusterError, described, reason_of
from raypq.distributed.metrics import Meters
from raypq.distributed.seat import Answer, Refusal
from raypq.errors import ShardFailure
from raypq.stages.crew import TRIES, Effort, Outcome, Task, Window, in_order
from raypq.stages.retries import may_pass

_POLL = 1.0  # seconds
_SLACK = 0.1  # seconds of work that waits at a worker, so that it need not wait for the driver
_LONG = 2.0  # seconds; tasks that take longer are handed out one at a time
_MOST_AHEAD = 8  # tasks that a worker holds beside the one it is at
_START_WARNING = 15.0  # seconds without a worker
_FEW_WARNING = 60.0  # seconds with some of them
_LONGEST_PAUSE = 8.0  # seconds before the next try where every worker died as it started
_BURIAL = 10.0  # seconds for the calls of a dead actor to fail, after the first one has


@dataclass(eq=False)
class _Member:
    """One actor, as the driver sees it.

    Attributes:
        held: tasks handed to it, in the order in which it does them.
        own: tasks that it did in an earlier pass, and may remember, not handed out yet.
    """

    actor: Any
    held: deque[int] = field(default_factory=deque)
    own: deque[int] = field(default_factory=deque)


class RayGang:
    """The actors of one job; passes run over them one after another."""

    def __init__(
        self, spawn: Callable[[], Any], workers: int, stage: str, *, timeout: float, asked: str
    ) -> None:
        """``timeout``: seconds for a first worker. ``asked``: of a node by each, for people."""
        self._spawn, self._wanted = spawn, workers
        self.timeout, self.asked = timeout, asked
        self.born, self.told_of_few = time.monotonic(), False
        self.meters = Meters(stage)
        self.starting: dict[Any, _Member] = {}  # ready() reference -> member
        self.ready: list[_Member] = []
        self.homes: dict[str, _Member] = {}  # task name -> who did it last
        self._failed_starts = 0
        self._run: _Run | None = None
        self._fill()

    @property
    def effort(self) -> Effort:
        """What all passes so far have come to."""
        return self.meters.effort

    def map(
        self, tasks: Sequence[Task], shared: Any = None, *, ordered: bool = False
    ) -> Iterator[Outcome]:
        """Runs every task once; outcomes in any order, or in that of the tasks.

        Raises:
            ClusterError: workers cannot start, or keep dying.
        """
        if self._run:  # its consumer went away before the end
            self._run.abandon()
        box = [] if shared is None else [ray.put(shared)]
        window = Window(self._wanted, ordered=ordered)
        self._run = run = _Run(self, tasks, box, window)
        outcomes = run.outcomes()
        try:
            yield from in_order(outcomes) if ordered else outcomes
        finally:
            run.abandon()

    def close(self) -> None:
        """Ends all actors."""
        if self._run:
            self._run.abandon()
        for member in [*self.ready, *self.starting.values()]:
            ray.kill(member.actor)
        self.ready, self.starting, self.homes = [], {}, {}
        self.meters.standing(workers=0, queue=0)

    @property
    def wanted(self) -> int:
        """Workers that were asked for."""
        return self._wanted

    def tell_of_few(self) -> None:
        """Says once that only some of the workers found room."""
        missing = len(self.starting)
        if self.told_of_few or not missing or time.monotonic() - self.born < _FEW_WARNING:
            return
        self.told_of_few = True
        console.warn(
            f"{len(self.ready)} of {self._wanted} workers have started; the others wait for room: "
            f"each asks for {self.asked}"
        )

    def _fill(self) -> None:
        for _ in range(self._wanted - len(self.ready) - len(self.starting)):
            self._greet(_Member(self._spawn()))

    def _greet(self, member: _Member) -> None:
        self.starting[member.actor.ready.remote()] = member

    def recall(self, member: _Member) -> None:
        """Gives a member no more work until what it is at is over: it must answer again."""
        self.ready.remove(member)
        member.held.clear()
        self._greet(member)

    def welcome(self, ref: Any) -> None:
        """Takes a member in that has answered, or deals with one that could not start."""
        member = self.starting.pop(ref)
        died = False
        try:
            refusal = ray.get(ref)
        except RayError as error:
            refusal, died = Refusal(reason_of(error)), True
        if refusal is None:
            self._failed_starts = 0
            self.ready.append(member)
            if self.effort.ready is None:
                self.effort.ready = time.monotonic()
            return
        ray.kill(member.actor)
        self._failed_starts += 1
        if refusal.final or (refusal.lasting and _nodes() == 1):
            raise ClusterError(f"a worker cannot start: {refusal.reason}")
        if self._failed_starts + len(self.starting) < self._wanted + TRIES:
            console.warn(f"a worker could not start: {refusal.reason}; starting another")
            if died and not self.ready and not self.starting:
                # Its node may be dead and Ray not know it yet: the next would be put there too.
                time.sleep(min(2.0**self._failed_starts, _LONGEST_PAUSE))
            self._fill()
        elif not self.ready and not self.starting:
            raise ClusterError(
                f"workers cannot start ({self._failed_starts} tries); the last: {refusal.reason}"
            )
        else:
            console.warn(
                f"a worker could not start: {refusal.reason}; going on with "
                f"{len(self.ready) + len(self.starting)} of {self._wanted}"
            )

    def bury(self, member: _Member, why: str) -> None:
        """Replaces a member that is dead, or that can no longer be reached."""
        self.ready.remove(member)
        self.meters.died()
        ray.kill(member.actor)  # one that is only out of reach must not hold its CPU for ever
        console.warn(f"a worker died: {why}; starting another")
        self._fill()


class _Run:
    """One pass of a gang over its tasks."""

    def __init__(
        self, gang: RayGang, tasks: Sequence[Task], box: list[Any], window: Window
    ) -> None:
        self._gang, self._tasks, self._box, self._window = gang, tasks, box, window
        self._queue: list[int] = []  # a heap
        # A heap, too: what a dead actor held. Which of these killed it is not known for sure, since
        # the last answers die with an actor; so each is done again first, and alone.
        self._suspects: list[int] = []
        self._isolated: set[int] = set()  # suspects that were handed out
        self._tries = [0] * len(tasks)
        self._running: dict[Any, tuple[_Member, int]] = {}
        self._left = len(tasks)
        self._seconds: float | None = None  # a task takes, lately
        self._alone_since: float | None = None
        self._warned = False
        self._over = False
        ready = set(gang.ready)
        # Nobody keeps more than its part, though it may have done all while the others started.
        part = -(-len(tasks) // max(1, len(ready)))
        for index, task in enumerate(tasks):
            home = gang.homes.get(task.name)
            if home is not None and home in ready and len(home.own) < part:
                home.own.append(index)
            else:
                self._queue.append(index)

    def outcomes(self) -> Iterator[Outcome]:
        """Hands out work, waits for something to happen, and deals with it, to the end."""
        gang = self._gang
        while self._left and not self._over:
            self._assign()
            refs = [*self._running, *gang.starting]
            done, _ = ray.wait(refs, num_returns=1, timeout=_POLL)
            if done and len(refs) > 1:  # take along all that is there by now
                done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            for ref in done:
                if ref in gang.starting:
                    gang.welcome(ref)
                elif ref in self._running:  # else it went with a dead actor
                    yield from self._collect(ref)
            gang.meters.standing(workers=len(gang.ready), queue=self._left - len(self._running))
            self._check_alone()

    def abandon(self) -> None:
        """Forgets what is in flight; the members at it come back when they are free."""
        if self._over:
            return
        self._over = True
        for ref in self._running:
            ray.cancel(ref)  # those that wait at an actor; one at work goes on to its end
        self._running.clear()
        for member in list(self._gang.ready):
            member.own.clear()
            if member.held:
                self._gang.recall(member)

    def _check_alone(self) -> None:
        """Does not wait for ever for a first worker that no node has room for."""
        gang, now = self._gang, time.monotonic()
        if gang.ready:
            self._alone_since = None
            gang.tell_of_few()
            return
        self._alone_since = self._alone_since or now
        if now - self._alone_since > gang.timeout:
            raise ClusterError(
                f"no worker started within {gang.timeout:g} s. Each of {gang.wanted} asks for "
                f"{gang.asked}; the cluster has {_counted(ray.cluster_resources())} in all, of "
                f"which {_counted(ray.available_resources())} are free. Wait for other jobs to "
                "end, ask for less (--threads, --gpus-per-worker, --memory-per-worker; in a "
                "config threads, gpus_per_worker, memory_per_worker below where), or wait "
                "longer (--start-timeout, start_timeout)"
            )
        if now - self._alone_since > min(_START_WARNING, gang.timeout / 2) and not self._warned:
            self._warned = True
            console.warn(
                "no worker has started yet; waiting for room in the cluster, "
                f"{gang.timeout:g} s at most (--start-timeout, start_timeout)"
            )

    def _assign(self) -> None:
        ahead = self._ahead()
        open_to = [
            member
            for member in self._gang.ready
            if len(member.held) < ahead and self._isolated.isdisjoint(member.held)
        ]
        while open_to:
            member = min(open_to, key=lambda one: len(one.held))
            index = self._take(member)
            if index is None:
                open_to.remove(member)
                continue
            member.held.append(index)
            self._running[member.actor.call.remote(self._tasks[index], self._box)] = member, index
            if len(member.held) >= ahead or index in self._isolated:
                open_to.remove(member)

    def _ahead(self) -> int:
        """Tasks that one worker may hold: short ones so many that it never waits for the driver,
        yet no more than its part of what is left."""
        fair = -(-self._left // max(1, len(self._gang.ready)))
        if self._seconds is None:
            return min(2, fair)
        if self._seconds > _LONG:
            return 1
        wanted = 2 + min(_MOST_AHEAD, int(_SLACK / max(self._seconds, 1e-6)))
        return max(1, min(wanted, fair))

    def _take(self, member: _Member) -> int | None:
        """The next task for a member: suspects, then in order, its own before those of others."""
        if self._suspects:  # while these wait, nobody is given a second task
            if member.held:
                return None
            index = heapq.heappop(self._suspects)
            self._isolated.add(index)
            return index
        own, queue, end = member.own, self._queue, self._window.end
        if own and own[0] < end and not (queue and queue[0] < own[0]):
            return own.popleft()
        if queue and queue[0] < end:
            return heapq.heappop(queue)
        rich = max(self._gang.ready, key=lambda one: _before(end, one.own))
        number = _before(end, rich.own)
        # The first one stays: its owner is about to come to it and need not read it again.
        if number < 2:
            return None
        index = rich.own[number - 1]
        del rich.own[number - 1]
        return index

    def _collect(self, ref: Any) -> Iterator[Outcome]:
        member, index = self._running[ref]
        try:
            answer = ray.get(ref)
        except RayActorError as error:
            yield from self._bury(member, error)
            return
        except RayTaskError as error:  # it cannot be sent
            result = self._failure(index, error, passing=may_pass(error.cause))
        except RayError as error:  # lost with its node
            result = self._failure(index, error, passing=True)
        else:
            result = self._open(answer)
            old, new = self._seconds, answer.seconds
            self._seconds = new if old is None else 0.9 * old + 0.1 * new
        del self._running[ref]
        member.held.remove(index)
        yield from self._settle(member, index, result)

    def _failure(self, index: int, error: RayError, *, passing: bool) -> ShardFailure:
        return ShardFailure(
            shard=self._tasks[index].name,
            reason=reason_of(error),
            bad_input=False,
            may_pass=passing,
        )

    def _open(self, answer: Answer) -> Any:
        """The result in an answer, whose cost is noted."""
        self._gang.meters.answered(answer.seconds, answer.read)
        return answer.result

    def _settle(self, member: _Member, index: int, result: Any) -> Iterator[Outcome]:
        if isinstance(result, ShardFailure):
            yield from self._failed(index, result)
            return
        self._left -= 1
        self._gang.meters.finished()
        self._gang.homes[self._tasks[index].name] = member
        self._window.finished(index, result)
        yield Outcome(index, result=result)

    def _failed(self, index: int, failure: ShardFailure) -> Iterator[Outcome]:
        """Another try, or the end of a task."""
        self._tries[index] += 1
        if failure.may_pass and self._tries[index] < TRIES:
            heapq.heappush(self._suspects, index)
            self._gang.meters.again()
            return
        self._left -= 1
        self._gang.meters.given_up()
        self._window.finished(index, None)
        yield Outcome(index, failure=replace(failure, tries=self._tries[index]))

    def _bury(self, member: _Member, error: RayActorError) -> Iterator[Outcome]:
        """Takes back what a dead actor held; only the first without an answer counts a try."""
        finished = []
        for ref in [ref for ref, (owner, _) in self._running.items() if owner is member]:
            _, index = self._running.pop(ref)
            try:  # the answers that it still sent are as good as any
                finished.append((index, self._open(ray.get(ref, timeout=_BURIAL))))
            except RayError:
                continue
            member.held.remove(index)
        self._gang.bury(member, reason_of(error))
        lost = list(member.held)
        for index in lost[1:]:
            heapq.heappush(self._suspects, index)
        for index in member.own:
            heapq.heappush(self._queue, index)
        member.held.clear()
        member.own.clear()
        for index, result in finished:
            yield from self._settle(member, index, result)
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
