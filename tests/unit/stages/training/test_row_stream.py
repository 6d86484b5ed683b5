"""The stream of training rows: every row once, none that is held out, bounded memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from raypq.config import Columns
from raypq.errors import InputError
from raypq.execution.executor import Rank
from raypq.stages.training.dataset import ShardListing
from raypq.stages.training.row_stream import BatchCache, Buffer, RowSource, RowStream

SIZES = (5, 40, 0, 17, 38)


@pytest.fixture
def source(write) -> RowSource:
    """Rows whose only value is their number."""
    start = 0
    for part, n in enumerate(SIZES):
        X = np.arange(start, start + n, dtype=np.float32)[:, None]
        write(f"rows/{part}.parquet", row_group=7, id=np.arange(start, start + n), feature=X)
        start += n
    folder = write("rows/0.parquet", id=np.arange(5), feature=np.arange(5.0)[:, None])
    listed = ShardListing.open([folder.rsplit("/", 1)[0]], Columns())
    return RowSource(
        tasks=listed.tasks, columns=Columns(), width=1, classes=None, held_out=np.array([3, 50, 99])
    )


def stream(source: RowSource, rank: int = 0, world: int = 1, **changes: int) -> RowStream:
    options = {"buffer": 30, "room": 10_000, **changes}
    cache = BatchCache(options["room"])
    place = Rank(rank=rank, world_size=world)
    return RowStream(source, place, seed=(0, 20), buffer=options["buffer"], cache=cache)


def numbers(rows: object) -> list[int]:
    return [int(value) for X, _ in rows for value in X[:, 0]]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("epoch", [0, 5])
def test_a_pass_has_every_row_once_over_all_workers(source, world, epoch):
    seen = [numbers(stream(source, rank, world).one_pass(epoch)) for rank in range(world)]
    wanted = sorted(set(range(100)) - {3, 50, 99})
    assert sorted(chain(*seen)) == wanted
    sizes = [len(part) for part in seen]
    assert max(sizes) - min(sizes) <= 4, "all read equally much, but for rows held out"


@pytest.mark.parametrize("room", [0, 10_000])
def test_steps_of_an_epoch_are_its_rows_shuffled(source, room):
    rows = numbers(stream(source, room=room).steps(0, 19, 5))
    assert len(rows) == 95
    assert len(set(rows)) == 95
    assert rows != sorted(rows)


def test_the_same_epoch_again_is_the_same_and_another_is_not(source):
    one = stream(source)
    first = numbers(one.steps(2, 10, 8))
    assert numbers(one.steps(2, 10, 8)) == first
    assert numbers(stream(source, room=0).steps(2, 10, 8)) == first
    assert numbers(one.steps(3, 10, 8)) != first


def test_a_short_store_is_passed_over_again(source):
    short = replace(source, tasks=source.tasks[:1])
    count = Counter(numbers(stream(short).steps(0, 10, 8)))
    assert set(count) == {0, 1, 2, 4}
    assert max(count.values()) - min(count.values()) <= 16


def test_no_rows_at_all(source):
    none = replace(source, tasks=source.tasks[:1], held_out=np.arange(5))
    with pytest.raises(InputError, match="rows to train on"):
        next(stream(none).steps(0, 1, 2))


def test_the_buffer_is_bounded(source):
    one = stream(source, buffer=10)
    steps = one.steps(0, 19, 5)
    next(steps)
    buffer = steps.gi_frame.f_locals["buffer"]  # type: ignore[attr-defined]
    for _ in steps:
        assert len(buffer) <= 10 + max(SIZES)


def test_the_buffer_gives_each_row_once_with_its_label():
    buffer = Buffer(np.random.default_rng(0))
    got = []
    for start in range(0, 60, 20):
        X = np.arange(start, start + 20, dtype=np.float32)[:, None].repeat(3, axis=1)
        buffer.add(X, np.arange(start, start + 20, dtype=np.int32))
        for _ in range(2):
            X, y = buffer.take(7)
            assert y is not None
            np.testing.assert_array_equal(X[:, 0], y)
            got += y.tolist()
    got += buffer.take(len(buffer))[1].tolist()
    assert sorted(got) == list(range(60))
