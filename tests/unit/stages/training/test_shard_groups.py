"""Groups of shards: their sizes, sums in order, and whose failure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from raypq.errors import InputError, ShardFailure
from raypq.execution.executor import TaskResult
from raypq.methods.base import Stats
from raypq.stages.training.shard_groups import (
    MOST_GROUPS,
    GroupStats,
    ShardGroup,
    accumulate_group,
    by_shard,
    grouped,
    without,
)


@dataclass(frozen=True)
class Named:
    name: str


def tasks(n: int) -> list[Named]:
    return [Named(f"s{number}") for number in range(n)]


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        ([], []),
        ([5], [1]),
        ([0, 0, 0], [3]),
        ([16_384] * 3, [1, 1, 1]),
        ([10_000] * 5, [2, 2, 1]),
        ([1] * 1000, [1000]),
        ([50_000, 1, 1, 20_000], [1, 3]),
    ],
)
def test_sizes(rows: list[int], sizes: list[int]) -> None:
    groups = grouped(tasks(len(rows)), rows)
    assert [len(group.tasks) for group in groups] == sizes
    assert [task for group in groups for task in group.tasks] == tasks(len(rows))


@pytest.mark.parametrize("shards", [10_000, 100_000])
def test_groups_are_few_however_many_shards_there_are(shards: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 20_000, shards).tolist()
    groups = grouped(tasks(shards), rows)
    assert MOST_GROUPS / 2 < len(groups) <= MOST_GROUPS
    assert sum(len(group.tasks) for group in groups) == shards


def test_names() -> None:
    assert ShardGroup(tasks=tasks(1)).name == "s0"
    assert ShardGroup(tasks=tasks(3)).name == "s0 … s2 (3 shards)"


def test_shards_that_are_left_out_do_not_move_the_others() -> None:
    groups = [ShardGroup(tasks=tasks(9)[low:high]) for low, high in ((0, 3), (3, 4), (4, 9))]
    left = without(groups, {"s1", "s3", "s8"})
    assert [[task.name for task in group.tasks] for group in left] == [
        ["s0", "s2"],
        ["s4", "s5", "s6", "s7"],
    ]


class Worker:
    """Fails at shards of some numbers."""

    def __init__(self, **failures: Exception) -> None:
        self.failures = failures

    def call(self, task: Named, scale: float) -> Stats:
        if task.name in self.failures:
            raise self.failures[task.name]
        value = np.array(scale * 0.1 ** int(task.name[1:]))
        return Stats(sums={"x": value}, rows={"name": [np.array([task.name])]})


def test_sums_are_in_order() -> None:
    found = accumulate_group(Worker(), ShardGroup(tasks=tasks(9)), Worker.call, 3.0)
    assert isinstance(found, GroupStats)
    wanted = Stats()
    for task in tasks(9):
        wanted.merge(Worker().call(task, 3.0))
    assert found.stats.sums["x"] == wanted.sums["x"]
    assert [str(name[0]) for name in found.stats.rows["name"]] == [t.name for t in tasks(9)]


def test_bad_input_fails_its_shard_alone() -> None:
    bad = InputError("s2", expected="a number", found="NaN")
    group = ShardGroup(tasks=tasks(4))
    found = accumulate_group(Worker(s2=bad), group, Worker.call, 1.0)
    assert isinstance(found, GroupStats)
    assert [failure.shard for failure in found.failures] == ["s2"]
    results = list(by_shard([TaskResult(0, found)], [group]))
    assert [result.failure.shard for result in results if result.failure] == ["s2"]
    merged = Stats()
    for result in results:
        if not result.failure:
            merged.merge(result.value)
    assert len(results) == 4
    assert merged.sums["x"] == found.stats.sums["x"] == 1 + 0.1 + 0.1**3


def test_an_error_that_may_pass_fails_the_group_and_names_the_shard() -> None:
    group = ShardGroup(tasks=tasks(4))
    found = accumulate_group(Worker(s1=TimeoutError("slow")), group, Worker.call, 1.0)
    assert isinstance(found, ShardFailure)
    assert found.shard == "s1"
    assert found.transient
    (result,) = by_shard([TaskResult(0, failure=found)], [group])
    assert result.failure == found


def test_every_other_error_is_that_of_its_shard() -> None:
    group = ShardGroup(tasks=tasks(5))
    bad = InputError("s1", expected="a number", found="NaN")
    worker = Worker(s1=bad, s2=KeyError("gone"), s4=ValueError("odd"))
    found = accumulate_group(worker, group, Worker.call, 1.0)
    assert isinstance(found, GroupStats)
    assert [(item.shard, item.bad_input) for item in found.failures] == [
        ("s1", True),
        ("s2", False),
        ("s4", False),
    ]
