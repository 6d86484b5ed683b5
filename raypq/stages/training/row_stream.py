"""Rows for gradient training: an endless shuffled stream from shards, in bounded memory.

Each pass has its own order of shards. The rows in that order are divided into one contiguous range
for each rank, so that all read equally much and every row is read once; a rank opens only the
shards in its range. Steps are drawn from a bounded buffer of rows. Everything is determined by the
seed, the number of the pass, and the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.errors import InputError
from raypq.execution.executor import Rank
from raypq.methods.base import TrainBatch
from raypq.stages.training.dataset import TrainingClasses, TrainTask, training_batches

Rows = tuple[NDArray[np.float32], NDArray[np.int32] | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSource:
    """A feature store to train on.

    Attributes:
        width: dx. classes: None for rows that are read without labels.
        held_out: indices of rows in the whole store that are not trained on, ascending.
    """

    tasks: Sequence[TrainTask]
    columns: Columns
    width: int
    classes: TrainingClasses | None
    held_out: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Rows to train on."""
        return sum(task.rows for task in self.tasks) - len(self.held_out)


class BatchCache:
    """Shards in memory, as far as they fit into ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self._free_bytes = max_bytes
        self._kept: dict[tuple[str, bool], list[TrainBatch]] = {}  # by name, and whether labelled

    def batches(self, source: RowSource, task: TrainTask) -> Iterator[TrainBatch]:
        """The rows of a shard, from memory or from its file."""
        key = task.name, source.classes is not None
        if key in self._kept:
            yield from self._kept[key]
            return
        size = 4 * task.rows * source.width
        kept: list[TrainBatch] | None = [] if size <= self._free_bytes else None
        for batch in training_batches(task, source.columns, source.width, source.classes):
            if kept is not None:
                kept.append(batch)
            yield batch
        if kept is not None and key not in self._kept:
            self._kept[key] = kept
            self._free_bytes -= size


class Buffer:
    """Rows to draw from at random: X [n, dx] and, if there are labels, y [n]."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._X = np.empty((0, 0), np.float32)
        self._y: NDArray[np.int32] | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, X: NDArray[np.float32], y: NDArray[np.int32] | None) -> None:
        """Adds rows."""
        end = self._size + len(X)
        if end > len(self._X):
            capacity = max(end, 2 * len(self._X))
            grown = np.empty((capacity, X.shape[1]), np.float32)
            if self._size:
                grown[: self._size] = self._X[: self._size]
            self._X = grown
            if y is not None:
                labels = np.empty(capacity, np.int32)
                if self._y is not None:
                    labels[: self._size] = self._y[: self._size]
                self._y = labels
        self._X[self._size : end] = X
        if y is not None and self._y is not None:
            self._y[self._size : end] = y
        self._size = end

    def take(self, n: int) -> Rows:
        """Removes and returns n random rows; the last rows take their positions."""
        chosen = self._rng.choice(self._size, n, replace=False)
        X, y = self._X[chosen], None if self._y is None else self._y[chosen]
        left = self._size - n
        stays = np.ones(n, bool)
        stays[chosen[chosen >= left] - left] = False
        holes = chosen[chosen < left]
        fill = left + np.flatnonzero(stays)
        self._X[holes] = self._X[fill]
        if self._y is not None:
            self._y[holes] = self._y[fill]
        self._size = left
        return X, y


class RowStream:
    """The rows of a store for one rank, pass after pass."""

    def __init__(
        self, source: RowSource, rank: Rank, *, seed: Sequence[int], buffer: int, cache: BatchCache
    ) -> None:
        self._source, self._rank, self._seed = source, rank, list(seed)
        self._buffer, self._cache = buffer, cache

    def steps(self, epoch: int, steps: int, n: int) -> Iterator[Rows]:
        """Yields n rows for each of ``steps`` steps. A short store is read again, in a new order.

        Raises:
            InputError: there is no row to train on, or a row is bad.
        """
        rng = np.random.default_rng([*self._seed, epoch, self._rank.rank, 1])
        buffer = Buffer(rng)
        rows = self._endless(epoch)
        read = 0
        for _ in range(steps):
            while len(buffer) < max(n, self._buffer) and read < n * steps:
                X, y = next(rows)
                buffer.add(X, y)
                read += len(X)
            yield buffer.take(n)

    def _endless(self, epoch: int) -> Iterator[Rows]:
        number = 0
        while True:
            rows = 0
            for X, y in self.one_pass(epoch, number):
                rows += len(X)
                yield X, y
            if not rows:
                raise InputError(
                    self._source.tasks[0].name,
                    expected="rows to train on",
                    found=f"none for worker {self._rank.rank} of {self._rank.world_size}",
                )
            number += 1

    def one_pass(self, epoch: int, number: int = 0) -> Iterator[Rows]:
        """This rank's rows of pass ``number`` of an epoch, without those held out."""
        source, rank = self._source, self._rank
        rng = np.random.default_rng([*self._seed, epoch, number])
        tasks = [
            task for task in source.tasks if task.rows
        ]  # empty shards must not affect the order
        tasks = [tasks[index] for index in rng.permutation(len(tasks))]
        starts = np.cumsum([0, *(task.rows for task in tasks)])
        low, high = (
            int(starts[-1]) * bound // rank.world_size for bound in (rank.rank, rank.rank + 1)
        )
        for task, (start, end) in zip(tasks, pairwise(starts), strict=True):
            if start < high and end > low:
                first, last = task.row + max(low - start, 0), task.row + min(high, end) - start
                yield from self._range(task, int(first), int(last))

    def _range(self, task: TrainTask, first: int, last: int) -> Iterator[Rows]:
        """Rows of one shard with indices in the whole store from ``first`` to below ``last``."""
        held_out = self._source.held_out
        for batch in self._cache.batches(self._source, task):
            index = np.arange(batch.row, batch.row + len(batch.X))
            chosen = (index >= first) & (index < last)
            low, high = np.searchsorted(held_out, [batch.row, batch.row + len(batch.X)])
            chosen[held_out[low:high] - batch.row] = False
            if chosen.all():
                yield batch.X, batch.y
            elif chosen.any():
                yield batch.X[chosen], None if batch.y is None else batch.y[chosen]
