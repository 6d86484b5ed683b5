"""Training by reduction: passes over a store, with statistics merged in shard order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from raypq.methods.support.device_rows import Parameters

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


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

    def accumulate(self, task: TrainTask, state: State) -> Stats:
        """The statistics of a shard in one pass."""
        assert self._method is not None, "a worker without a method only measures"
        if self._device != "cpu":
            return self._accumulate_on_device(self._method, task, state)
        stats = Stats()
        for batch in self._batches(task):
            stats.merge(self._method.accumulate(state, batch))
        return stats

    def _accumulate_on_device(
        self, method: ReductionMethod, task: TrainTask, state: State
    ) -> Stats:
        """As ``accumulate``; an error names the row."""
        from raypq.stages.training.device_reduction import accumulate_on_device  # torch

        try:
            return accumulate_on_device(
                method, state, self._batches(task), self._parameters_of(state)
            )
        except InputError:
            for _ in self._read(task, for_device=False):  # names the row
                pass
            raise

    def _parameters_of(self, state: State) -> Parameters:
        """The arrays of the state of this pass on the device."""
        from raypq.methods.support.device_rows import Parameters  # torch

        resident = self._resident
        if resident is None or resident[0] is not state:
            resident = self._resident = state, Parameters(self._device)
        return resident[1]

    def _batches(self, task: TrainTask) -> Iterator[TrainBatch]:
        for_device = self._device != "cpu" and self._embed is None
        return self._cache.batches(task.shard.uri, lambda: self._read(task, for_device=for_device))

    def _read(self, task: TrainTask, *, for_device: bool) -> Iterator[TrainBatch]:
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
    tasks: Sequence[TrainTask],
    state: State,
    label: str,
    *,
    on_bad_shard: str = "fail",
    failures: list[ShardFailure] | None = None,
) -> Stats:
    """One pass of a method, as ``merged``."""
    results = pool.map(TrainWorker.accumulate, tasks, state.for_workers(), ordered=True)
    return merged(
        results, total=len(tasks), label=label, on_bad_shard=on_bad_shard, failures=failures
    )


def merged(
    results: Iterable[TaskResult[Stats]],
    *,
    total: int,
    label: str,
    on_bad_shard: str = "fail",
    failures: list[ShardFailure] | None = None,
) -> Stats:
    """The statistics of all good shards, merged in shard order.

    Raises:
        JobError: shards failed, unless they are quarantined (``failures``).
    """
    stats = Stats()
    for part in completed(
        results, total=total, label=label, on_bad_shard=on_bad_shard, failures=failures
    ):
        stats.merge(part)
    return stats


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
