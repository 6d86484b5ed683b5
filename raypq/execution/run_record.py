"""Run records: settings, versions, times and worker statistics that outputs carry."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from raypq._version import __version__
from raypq.config import Settings
from raypq.execution.executor import Executor, PoolStats, WorkerPool

_MAX_POINTS = 200  # of the timeline; when it is full, every second one is dropped
_LIBRARIES = ("ray", "torch", "numpy", "pyarrow")


class RunRecord:
    """Record of a running stage: ``lap`` ends a phase, ``observe`` times a worker pool."""

    def __init__(self, job: Settings, executor: Executor) -> None:
        self._job, self._executor = job, executor
        self._started = datetime.now(UTC)
        self._last = self._origin = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._observed: list[_ObservedPool] = []
        self._timeline: list[tuple[float, int]] = []
        self._images, self._count = 0, 0
        self._stride = 1  # of the calls of ``finished``, every so many add a point

    @contextmanager
    def observe(self, pool: WorkerPool[Any]) -> Iterator[None]:
        """Times the work of a pool. The time before it is the phase ``plan``, the wait for its
        first worker ``start``, and the rest is named after the stage of the pool."""
        self.lap("plan", until=pool.stats.started)
        observed = _ObservedPool(pool)
        self._observed.append(observed)
        try:
            yield
        finally:
            self._close(observed, observed.stats.stage)

    def lap(self, phase: str, *, until: float | None = None) -> None:
        """Adds the time since the last lap to a phase."""
        now = max(until or time.monotonic(), self._last)
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def finished(self, images: int) -> None:
        """Counts more finished images, and extends the timeline."""
        self._images += images
        self._count += 1
        if self._count % self._stride:
            return
        self._timeline.append(self._point())
        if len(self._timeline) >= _MAX_POINTS:
            self._timeline, self._stride = self._timeline[1::2], 2 * self._stride

    def end_of_work(self, phase: str) -> None:
        """Ends the work of the observed pool as this phase, before its context ends."""
        self._close(self._observed[-1], phase)

    def summary(self) -> dict[str, Any]:
        """The record as plain values; ``timeline`` is (seconds, images finished by then)."""
        timeline = list(self._timeline)
        if self._images and timeline[-1:] != [self._point()]:
            timeline.append(self._point())
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "settings": self._job.model_dump(mode="json"),
            "versions": {"python": platform.python_version(), **dict(_versions())},
            "seconds": {name: round(value, 4) for name, value in self._seconds.items()},
            "workers": self._workers(),
            "timeline": [list(point) for point in timeline],  # as JSON gives them back
        }

    def _point(self) -> tuple[float, int]:
        return round(time.monotonic() - self._origin, 3), self._images

    def _close(self, observed: _ObservedPool, phase: str) -> None:
        if observed.seconds is None:
            self.lap("start", until=observed.stats.ready)
            begin = self._last
            self.lap(phase)
            observed.seconds = self._last - begin
        else:
            self.lap("finish")

    def _workers(self) -> dict[str, Any]:
        pools = [observed.stats for observed in self._observed]
        busy = sum(stats.seconds for stats in pools)
        # Workers that never started count as idle: utilisation is that of the requested ones.
        open_seconds = sum(observed.seconds or 0.0 for observed in self._observed)
        offered = self._executor.n_workers * open_seconds
        return {
            "asked": self._executor.n_workers,
            "memory": self._executor.worker_memory if self._observed else 0,
            "most": max((stats.workers for stats in pools), default=0),
            "busy_seconds": round(busy, 4),
            "utilisation": round(min(busy / offered, 1.0), 4) if offered else None,
            "images_read": sum(stats.images for stats in pools),
            "bytes_read": round(sum(stats.bytes for stats in pools)),
            "tasks": sum(stats.tasks for stats in pools),
            "failed": sum(stats.failed for stats in pools),
            "retries": sum(stats.retries for stats in pools),
            "deaths": sum(stats.deaths for stats in pools),
        }


@dataclass
class _ObservedPool:
    """A pool, and the seconds that it worked; None while it is open."""

    pool: WorkerPool[Any]
    seconds: float | None = None

    @property
    def stats(self) -> PoolStats:
        return self.pool.stats


def _versions() -> Iterator[tuple[str, str]]:
    yield "raypq", __version__
    for name in _LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree
            continue
