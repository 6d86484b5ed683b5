"""Training by reduction: passes over a store, with statistics merged in shard order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypq import kernels, machine
from raypq.config import Columns, TrainJob
from raypq.data.store.shard_stats import ShardStats
from raypq.errors import ConfigError, InputError, ShardFailure
from raypq.execution.executor import Executor, TaskResult, WorkerPool, completed
from raypq.methods.base import Model, ReductionMethod, State, Stats, TrainBatch
from raypq.metrics.drift import Gauge
from raypq.stages.stores.batch_cache import BatchCache
from raypq.stages.training.dataset import TrainingClasses, TrainTask, training_batches
from raypq.stages.training.shard_groups import (
    GroupStats,
    ShardGroup,
    accumulate_group,
    by_shard,
)

if TYPE_CHECKING:
    from raypq.methods.support.device_rows import Parameters

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


_BATCH_ROWS = 4096  # of a batch of sampled rows
_BASELINE_SHARDS = 16  # training shards that give the baseline of drift


class TrainWorker:
    """Accumulates the statistics of shards; keeps features in memory as far as they fit.

    Args:
        method: None for a worker that only measures.
        cache_bytes: for features.
        device: that computes statistics.
        embed: applied to features first, where the method follows a network.
    """

    def __init__(
        self,
        method: ReductionMethod | None,
        columns: Columns,
        width: int,
        classes: TrainingClasses | None,
        cache_bytes: int,
        device: str = "cpu",
        embed: Embed | None = None,
    ) -> None:
        self._method, self._columns, self._width = method, columns, width
        self._classes, self._device, self._embed = classes, device, embed
        self._resident: tuple[State, Parameters] | None = None
        self._cache: BatchCache[TrainBatch] = BatchCache(cache_bytes, lambda batch: batch.X.nbytes)

    def measure(self, task: TrainTask, model: Model) -> ShardStats | None:
        """Error, usage and norms of a shard under the trained model."""
        assert self._embed is None, "a model embeds features itself"
        gauge = Gauge(model, task.rows)
        for batch in self._batches(task):
            gauge.add_features(batch.X, batch.row - task.row)  # float16 is widened by the model
        return gauge.read()

    def accumulate(self, group: ShardGroup[TrainTask], state: State) -> GroupStats | ShardFailure:
        """The statistics of a group of shards in one pass."""
        assert self._method is not None, "a worker without a method only measures"
        rows = self._method.rows_of_pass(state)
        if rows is not None:
            return self._accumulate_samples(group, state, rows)
        later = self._method.rows_of_later_passes(state)
        return accumulate_group(self, group, TrainWorker._accumulate_shard, state, later)

    def _accumulate_shard(
        self, task: TrainTask, state: State, later: NDArray[np.int64] | None
    ) -> Stats:
        """The statistics of a shard; the rows that later passes see are kept in memory.

        Raises:
            InputError: naming the row.
        """
        try:
            if later is None:
                return self._accumulate(state, self._batches(task))
            kept: list[TrainBatch] = []
            stats = self._accumulate(state, self._keeping(task, later, kept))
        except InputError:
            if self._device != "cpu":
                for _ in self._read(task, for_device=False):  # names the row
                    pass
            raise
        self._cache.drop(task.name)
        self._cache.add((task.name, "sample"), kept)
        return stats

    def _keeping(
        self, task: TrainTask, rows: NDArray[np.int64], kept: list[TrainBatch]
    ) -> Iterator[TrainBatch]:
        """The batches of a shard, of which these rows are added to ``kept``."""
        whole = self._cache.get(task.name)
        for batch in self._read(task) if whole is None else whole:
            kept.append(batch.chosen(rows))
            yield batch

    def _accumulate_samples(
        self, group: ShardGroup[TrainTask], state: State, rows: NDArray[np.int64]
    ) -> GroupStats | ShardFailure:
        """The statistics of the sampled rows of a group, as of one shard."""
        try:
            sampled = [batch for task in group.tasks for batch in self._sample(task, state)]
            chosen = [batch.chosen(rows) for batch in sampled]
            return GroupStats(stats=self._accumulate(state, iter(joined(chosen, _BATCH_ROWS))))
        except Exception:  # shard by shard, so that the failure names its shard
            return accumulate_group(self, group, TrainWorker._accumulate_sample, state, rows)

    def _accumulate_sample(self, task: TrainTask, state: State, rows: NDArray[np.int64]) -> Stats:
        chosen = (batch.chosen(rows) for batch in self._sample(task, state))
        return self._accumulate(state, chosen)

    def _sample(self, task: TrainTask, state: State) -> list[TrainBatch]:
        """The rows of a shard that this pass or later ones see; embedded where that is final."""
        if (kept := self._cache.get((task.name, "embedded"))) is not None:
            return kept
        assert self._method is not None, "checked before"
        rows = self._method.rows_of_later_passes(state)
        assert rows is not None, "there is a sample"
        key = task.name, "sample"
        batches = list(
            self._cache.batches(key, lambda: (batch.chosen(rows) for batch in self._read(task)))
        )
        if self._device != "cpu":  # embedding there costs less than a second copy in memory
            return batches
        embedded = [self._method.embedded(state, batch) for batch in batches]
        final = [batch for batch in embedded if batch is not None]
        if not final:
            return batches
        self._cache.replace(key, (task.name, "embedded"), final)
        return final

    def _accumulate(self, state: State, batches: Iterator[TrainBatch]) -> Stats:
        assert self._method is not None, "checked before"
        if self._device != "cpu":
            from raypq.stages.training.device_reduction import accumulate_on_device  # torch

            return accumulate_on_device(self._method, state, batches, self._parameters_of(state))
        stats = Stats()
        for batch in batches:
            stats.merge(self._method.accumulate(state, batch))
        return stats

    def _parameters_of(self, state: State) -> Parameters:
        """The arrays of the state of this pass on the device."""
        from raypq.methods.support.device_rows import Parameters  # torch

        resident = self._resident
        if resident is None or resident[0] is not state:
            resident = self._resident = state, Parameters(self._device)
        return resident[1]

    def _batches(self, task: TrainTask) -> Iterator[TrainBatch]:
        return self._cache.batches(task.name, lambda: self._read(task))

    def _read(self, task: TrainTask, *, for_device: bool | None = None) -> Iterator[TrainBatch]:
        """The rows of a shard; ``for_device`` (None: as the worker computes): unchecked."""
        if for_device is None:
            for_device = self._device != "cpu" and self._embed is None
        for batch in training_batches(
            task, self._columns, self._width, self._classes, for_device=for_device
        ):
            yield replace(batch, X=self._embed(batch.X)) if self._embed else batch


def cache_of(job: TrainJob, executor: Executor) -> int:
    """Bytes of the feature cache of each worker: the job's, or by the memory of a worker.

    Raises:
        ConfigError: the job's are more than the memory of a worker.
    """
    if job.cache_bytes is None:
        return machine.cache_bytes(executor.worker_memory)
    memory = job.where.memory_per_worker
    if memory is not None and job.cache_bytes > memory * machine.GIB:
        raise ConfigError(
            f"cache_bytes: {job.cache_bytes / machine.GIB:g} GiB are more than memory_per_worker, "
            f"{memory:g} GiB, which must hold them"
        )
    return job.cache_bytes


def run_pass(
    pool: WorkerPool[TrainWorker],
    groups: Sequence[ShardGroup[TrainTask]],
    state: State,
    label: str,
    *,
    on_bad_shard: str = "fail",
    failures: list[ShardFailure] | None = None,
) -> Stats:
    """One pass of a method, as ``merged``."""
    results = pool.map(TrainWorker.accumulate, groups, state.for_workers(), ordered=True)
    return merged(results, groups, label=label, on_bad_shard=on_bad_shard, failures=failures)


def merged(
    results: Iterable[TaskResult[GroupStats | ShardFailure]],
    groups: Sequence[ShardGroup[Any]],
    *,
    label: str,
    on_bad_shard: str = "fail",
    failures: list[ShardFailure] | None = None,
) -> Stats:
    """The statistics of all good shards, merged in the order of their groups.

    Raises:
        JobError: shards failed, unless they are quarantined (``failures``).
    """
    stats = Stats()
    for part in completed(
        by_shard(results, groups),
        total=sum(len(group.tasks) for group in groups),
        label=label,
        on_bad_shard=on_bad_shard,
        failures=failures,
    ):
        stats.merge(part)
    return stats


def joined(batches: Sequence[TrainBatch], most: int) -> Iterator[TrainBatch]:
    """The rows of chosen batches in batches of ``most``."""
    full = [batch for batch in batches if len(batch.X)]
    if not full:
        return
    X = np.concatenate([batch.X for batch in full])
    y = None if full[0].y is None else np.concatenate([batch.y for batch in full])
    rows = np.concatenate([batch.rows for batch in full])
    for start in range(0, len(X), most):
        part = slice(start, start + most)
        yield replace(
            full[0],
            X=X[part],
            y=None if y is None else y[part],
            row=int(rows[start]),
            rows=rows[part],
        )


def iterate(
    method: ReductionMethod,
    state: State,
    run_pass: Callable[[State], Stats],
    *,
    threads: int | None = None,
    on_update: Callable[[State], None] = lambda _: None,
) -> State:
    """Alternates passes and updates until the method is done; returns the last state.

    Args:
        run_pass: gives the statistics of one pass over the rows.
        threads: of native kernels in updates, which run while the workers wait; None: as set.
        on_update: called with each new state.
    """
    while not state.done:
        stats = run_pass(state)
        with kernels.native_threads(kernels.threads() if threads is None else threads):
            state = method.update(state, stats)
        on_update(state)
    return state


def measure(
    pool: WorkerPool[TrainWorker], tasks: Sequence[TrainTask], model: Model
) -> list[ShardStats]:
    """Error, usage and norms under the model of evenly chosen training shards."""
    chosen = [task for task in tasks[:: -(-len(tasks) // _BASELINE_SHARDS)] if task.rows]
    results = pool.map(TrainWorker.measure, chosen, model, ordered=True)
    return [result.value for result in results if result.value is not None]  # without failures
