"""Training by reduction: passes over a store, with statistics merged in shard order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from raypq import kernels, machine
from raypq.config import Columns, TrainJob
from raypq.data.store.shard_stats import ShardStats
from raypq.errors import ConfigError, ShardFailure
from raypq.execution.executor import Executor, WorkerPool, completed
from raypq.methods.base import Model, ReductionMethod, State, Stats, TrainBatch
from raypq.metrics.drift import Gauge
from raypq.stages.training.dataset import TrainingClasses, TrainTask, training_batches

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


_BASELINE_SHARDS = 16  # training shards that give the baseline of drift


class TrainWorker:
    """Accumulates the statistics of shards; keeps features in memory as far as they fit.

    Args:
        method: None for a worker that only measures.
        cache_bytes: for features.
        embed: applied to features first, where the method follows a network.
    """

    def __init__(
        self,
        method: ReductionMethod | None,
        columns: Columns,
        width: int,
        classes: TrainingClasses | None,
        cache_bytes: int,
        embed: Embed | None = None,
    ) -> None:
        self._method, self._columns, self._width = method, columns, width
        self._classes, self._free_bytes, self._embed = classes, cache_bytes, embed
        self._cache: dict[str, list[TrainBatch]] = {}  # by URI
        self._lock = Lock()

    def measure(self, task: TrainTask, model: Model) -> ShardStats | None:
        """Error, usage and norms of a shard under the trained model."""
        assert self._embed is None, "a model embeds features itself"
        gauge = Gauge(model, task.rows)
        for batch in self._batches(task):
            gauge.add_features(batch.X, batch.row - task.row)
        return gauge.read()

    def accumulate(self, task: TrainTask, state: State) -> Stats:
        """The statistics of a shard in one pass."""
        assert self._method is not None, "a worker without a method only measures"
        stats = Stats()
        for batch in self._batches(task):
            stats.merge(self._method.accumulate(state, batch))
        return stats

    def _batches(self, task: TrainTask) -> Iterator[TrainBatch]:
        if task.shard.uri in self._cache:
            yield from self._cache[task.shard.uri]
            return
        batches: list[TrainBatch] = []
        fits = True
        complete = False
        try:
            for batch in training_batches(task, self._columns, self._width, self._classes):
                if self._embed:
                    batch = replace(batch, X=self._embed(batch.X))
                fits = fits and self._reserve(batch.X.nbytes)
                if fits:
                    batches.append(batch)
                yield batch
            complete = True
        finally:
            if fits and complete:
                self._cache[task.shard.uri] = batches
            else:
                self._reserve(-sum(batch.X.nbytes for batch in batches))

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if size > self._free_bytes:
                return False
            self._free_bytes -= size
            return True


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
    """One pass: the statistics of all good shards, merged in shard order.

    Raises:
        JobError: shards failed, unless they are quarantined (``failures``).
    """
    stats = Stats()
    results = pool.map(TrainWorker.accumulate, tasks, state.for_workers(), ordered=True)
    for part in completed(
        results, total=len(tasks), label=label, on_bad_shard=on_bad_shard, failures=failures
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
