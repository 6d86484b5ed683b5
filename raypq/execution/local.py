"""Threads of this process as an executor (``--cluster none``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any, Generic, TypeVar, Unpack

from raypq import io_counters, kernels, machine
from raypq.errors import ShardFailure
from raypq.execution.executor import (
    MAX_TRIES,
    OrderedWindow,
    PoolStats,
    R,
    Rank,
    Shared,
    SpmdJob,
    T,
    Task,
    TaskResult,
    WorkerPool,
    in_order,
    run_task,
)

W = TypeVar("W")


class LocalExecutor:
    """Threads of this process; each computes with ``threads`` CPU threads of its own."""

    processes = 1

    def __init__(self, n_workers: int = 1, threads: int = 1, memory: int = 0) -> None:
        self.n_workers = n_workers
        self._threads, self._memory = threads, memory

    @property
    def worker_memory(self) -> int:
        """Bytes for the worker, which all threads share."""
        return self._memory or machine.usable().worker_memory(1)

    @contextmanager
    def start_workers(
        self, make: Callable[..., W], *args: Any, stage: str, cache: int = 0
    ) -> Iterator[WorkerPool[W]]:
        """Makes one worker, which all threads share."""
        kernels.set_threads(self._threads)
        stats = PoolStats(stage=stage, started=time.monotonic(), workers=self.n_workers)
        threads = ThreadPoolExecutor(self.n_workers, "raypq", kernels.apply_thread_limit)
        interrupted = False
        try:
            worker = make(*args)
            stats.ready = time.monotonic()
            yield LocalWorkerPool(threads, worker, stats)
        except KeyboardInterrupt:  # leases are given back before the shards at work are finished
            interrupted = True
            raise
        finally:
            threads.shutdown(wait=not interrupted, cancel_futures=interrupted)

    def run_spmd(self, job: SpmdJob) -> None:
        """Runs the function in this process, as the only rank, with the threads of all workers."""
        kernels.set_threads(self._threads * self.n_workers)
        job.run(Rank(device=job.device), job.report)


class LocalWorkerPool(Generic[W]):
    """One worker, called by several threads at once."""

    def __init__(self, threads: ThreadPoolExecutor, worker: W, stats: PoolStats) -> None:
        self._threads, self._worker, self._stats = threads, worker, stats
        self._before = io_counters.read()
        self._lock = Lock()

    @property
    def stats(self) -> PoolStats:
        """Counters so far."""
        read = io_counters.read().since(self._before)
        self._stats.images, self._stats.bytes = read.images, read.bytes
        return self._stats

    def map(
        self,
        call: Callable[[W, T, Unpack[Shared]], R],
        tasks: Sequence[T],
        *shared: *Shared,
        ordered: bool = False,
    ) -> Iterator[TaskResult[R]]:
        """Calls ``call(worker, task, *shared)`` once for every task."""
        window = OrderedWindow(self._stats.workers, ordered=ordered)
        results = self._results(call, tasks, shared, window)
        return in_order(results) if ordered else results

    def _results(
        self,
        call: Callable[..., R],
        tasks: Sequence[Task],
        shared: tuple[Any, ...],
        window: OrderedWindow,
    ) -> Iterator[TaskResult[R]]:
        running: dict[Future[R | ShardFailure], int] = {}
        following = 0  # the next task to start
        while running or following < len(tasks):
            end = min(len(tasks), window.end)
            while following < end and len(running) < self._stats.workers:
                running[self._threads.submit(self._try, call, tasks[following], shared)] = following
                following += 1
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                index = running.pop(future)
                value = future.result()
                window.finished(index, value)
                if isinstance(value, ShardFailure):
                    yield TaskResult(index, failure=value)
                else:
                    yield TaskResult(index, value)

    def _try(self, call: Callable[..., R], task: Task, shared: tuple[Any, ...]) -> R | ShardFailure:
        start = time.monotonic()
        for tries in range(1, MAX_TRIES + 1):
            value = run_task(call, self._worker, task, *shared)
            if not isinstance(value, ShardFailure):
                break
            value = replace(value, tries=tries)
            if not value.transient:
                break
        failed = isinstance(value, ShardFailure)
        with self._lock:
            self._stats.seconds += time.monotonic() - start
            self._stats.retries += tries - 1
            self._stats.failed += failed
            self._stats.tasks += not failed
        return value
