"""Groups of consecutive shards, whose statistics a worker merges before the driver sees them.

The statistics of one shard may be larger than the shard: of pqzsl at dx = 2048 and 1000 classes
50 MB. The driver merges those of at most ``MOST_GROUPS`` groups, however many shards there are. How
shards are grouped depends on their rows alone, so sums are bit-identical for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from raypq.errors import ShardFailure
from raypq.execution.executor import Task, TaskResult, run_task
from raypq.methods.base import Stats

MOST_GROUPS = 256
_FEWEST_ROWS = 16_384  # of a group that is not the last; fewer are not worth their statistics


T = TypeVar("T", bound=Task)
W = TypeVar("W")


@dataclass(frozen=True, kw_only=True)
class ShardGroup(Generic[T]):
    """Consecutive shards, at least one."""

    tasks: Sequence[T]

    @property
    def name(self) -> str:
        """Its shard, or the first and the last one."""
        if len(self.tasks) == 1:
            return self.tasks[0].name
        return f"{self.tasks[0].name} … {self.tasks[-1].name} ({len(self.tasks)} shards)"


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupStats:
    """The statistics of the good shards of a group, and the failures of the others."""

    stats: Stats
    failures: Sequence[ShardFailure] = ()


def grouped(tasks: Sequence[T], rows: Sequence[int]) -> list[ShardGroup[T]]:
    """The tasks, one for each shard, with so many rows, in order, in groups of about equally many
    rows."""
    fewest = max(_FEWEST_ROWS, -(-sum(rows) // MOST_GROUPS))
    groups: list[ShardGroup[T]] = []
    some: list[T] = []
    n = 0
    for task, of_task in zip(tasks, rows, strict=True):
        some.append(task)
        n += of_task
        if n >= fewest:
            groups.append(ShardGroup(tasks=tuple(some)))
            some, n = [], 0
    if some:
        groups.append(ShardGroup(tasks=tuple(some)))
    return groups


def without(groups: Sequence[ShardGroup[T]], shards: set[str]) -> list[ShardGroup[T]]:
    """The groups without shards of these names; the others stay where they are."""
    left = ([task for task in group.tasks if task.name not in shards] for group in groups)
    return [ShardGroup(tasks=tuple(tasks)) for tasks in left if tasks]


def accumulate_group(
    worker: W, group: ShardGroup[T], call: Callable[..., Stats], *shared: Any
) -> GroupStats | ShardFailure:
    """The statistics ``call(worker, task, *shared)`` of a group, merged in order; in a worker.

    Returns:
        A failure where that of a shard is transient, so that the group is tried again.
    """
    stats, failures = Stats(), []
    for task in group.tasks:
        value = run_task(call, worker, task, *shared)
        if not isinstance(value, ShardFailure):
            stats.merge(value)
        elif value.transient:  # the whole group is tried again
            return value
        else:
            failures.append(value)
    return GroupStats(stats=stats, failures=failures)


def by_shard(
    results: Iterable[TaskResult[GroupStats | ShardFailure]], groups: Sequence[ShardGroup[Any]]
) -> Iterator[TaskResult[Stats]]:
    """One result for each failed shard, and one for each good one: the first of a group carries the
    sums of the group, the others are empty. A group that failed gives one result."""
    for result in results:
        index, value = result.index, result.failure or result.value
        if isinstance(value, ShardFailure):
            yield TaskResult(index, failure=value)
            continue
        for failure in value.failures:
            yield TaskResult(index, failure=failure)
        for number in range(len(groups[index].tasks) - len(value.failures)):
            yield TaskResult(index, Stats() if number else value.stats)
