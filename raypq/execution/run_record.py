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

from raypq.config import Settings
from raypq.execution.executor import Executor, PoolStats, WorkerPool

_POINTS = 200  # of the timeline at most; then every second one goes
_LIBRARIES = ("raypq", "ray", "torch", "numpy", "pyarrow")


class RunRecord:
    """Kept while a stage runs: phases end with ``lap``, and worker pools are observed."""

    def __init__(self, job: Settings, executor: Executor) -> None:
        self._job, self._executor = job, executor
        self._started = datetime.now(UTC)
        self._last = self._origin = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._spells: list[_Spell] = []
        self._timeline: list[tuple[float, int]] = []
        self._images, self._every, self._count = 0, 1, 0

    @contextmanager
    def observe(self, pool: WorkerPool[Any]) -> Iterator[None]:
        """Times the work of a pool. What came before it is the phase ``plan``, the wait for its
        first worker ``start``, and the rest is named after the stage of the pool."""
        self.lap("plan", until=pool.stats.started)
        spell = _Spell(pool)
        self._spells.append(spell)
        try:
            yield
        finally:
            self._close(spell, spell.stats.stage)

    def lap(self, phase: str, *, until: float | None = None) -> None:
        """What was done since the last lap was this phase; a phase may come again."""
        now = max(until or time.monotonic(), self._last)
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def finished(self, images: int) -> None:
        """So many more images are finished."""
        self._images += images
        self._count += 1
        if self._count % self._every:
            return
        self._timeline.append(self._now())
        if len(self._timeline) >= _POINTS:
            self._timeline, self._every = self._timeline[1::2], 2 * self._every

    def end_of_work(self, phase: str) -> None:
        """The pool that is observed has done its tasks; what follows is another phase."""
        self._close(self._spells[-1], phase)

    def summary(self) -> dict[str, Any]:
        """The record as plain values; ``timeline`` is (seconds, images finished by then)."""
        timeline = list(self._timeline)
        if self._images and timeline[-1:] != [self._now()]:
            timeline.append(self._now())
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "settings": self._job.model_dump(mode="json"),
            "versions": {"python": platform.python_version(), **dict(_versions())},
            "seconds": {name: round(value, 4) for name, value in self._seconds.items()},
            "workers": self._workers(),
            "timeline": [list(point) for point in timeline],  # as JSON gives them back
        }

    def _now(self) -> tuple[float, int]:
        return round(time.monotonic() - self._origin, 3), self._images

    def _close(self, spell: _Spell, phase: str) -> None:
        if spell.seconds is None:
            self.lap("start", until=spell.stats.ready)
            begin = self._last
            self.lap(phase)
            spell.seconds = self._last - begin
        else:
            self.lap("finish")

    def _workers(self) -> dict[str, Any]:
        pools = [spell.stats for spell in self._spells]
        busy = sum(stats.seconds for stats in pools)
        # Of the workers requested: one that never started, or that waits, counts as idle.
        offered = self._executor.n_workers * sum(spell.seconds or 0.0 for spell in self._spells)
        return {
            "asked": self._executor.n_workers,
            "memory": self._executor.worker_memory if self._spells else 0,
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
class _Spell:
    """One pool, and the seconds that it was at work."""

    pool: WorkerPool[Any]
    seconds: float | None = None

    @property
    def stats(self) -> PoolStats:
        return self.pool.stats


def _versions() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree
            continue
