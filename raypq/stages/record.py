"""The record of a run that its output carries: settings, versions, times, what the workers did."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from raypq.config import Settings
from raypq.stages.crew import Crew, Gang, Worker, stage_of

if TYPE_CHECKING:
    from raypq.stages.learner import Lesson

_POINTS = 200  # of the timeline at most; then every second one goes
_LIBRARIES = ("raypq", "ray", "torch", "numpy", "pyarrow")


class RunRecord:
    """Kept while a stage runs: phases end with ``lap``, and gangs hired from it are watched.

    It is a crew itself and stands in for the one that it is given.
    """

    def __init__(self, job: Settings, crew: Crew) -> None:
        self.workers = crew.workers
        self._job, self._crew = job, crew
        self._started = datetime.now(UTC)
        self._last = self._origin = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._spells: list[_Spell] = []
        self._timeline: list[tuple[float, int]] = []
        self._images, self._every, self._count = 0, 1, 0

    @property
    def worker_memory(self) -> int:
        """As of the crew."""
        return self._crew.worker_memory

    @contextmanager
    def hire(self, make: Callable[..., Worker], *args: Any, cache: int = 0) -> Iterator[Gang]:
        """Hires from the crew. Before it is the phase ``plan``, the wait for the first worker
        ``start``, and the rest is called as ``stage_of(make)``."""
        self.lap("plan")
        with self._crew.hire(make, *args, cache=cache) as gang:
            spell = _Spell(gang)
            self._spells.append(spell)
            try:
                yield gang
            finally:
                self._close(spell, stage_of(make))

    def learn(self, lesson: Lesson, tell: Callable[[Mapping[str, Any]], None]) -> None:
        """Trains on the crew; that is the phase ``learn``."""
        self.lap("plan")
        self._crew.learn(lesson, tell)
        self.lap("learn")

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
        """The gang that is at work has done its tasks; what follows is another phase."""
        self._close(self._spells[-1], phase)

    def told(self) -> dict[str, Any]:
        """The record as plain values; ``timeline`` is (seconds, images finished by then)."""
        timeline = list(self._timeline)
        if self._images and timeline[-1:] != [self._now()]:
            timeline.append(self._now())
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "settings": self._job.model_dump(mode="json"),
            "versions": {"python": platform.python_version(), **dict(_versions())},
            "seconds": {name: round(value, 4) for name, value in self._seconds.items()},
            "workers": self._told_of_workers(),
            "timeline": [list(point) for point in timeline],  # as JSON gives them back
        }

    def _now(self) -> tuple[float, int]:
        return round(time.monotonic() - self._origin, 3), self._images

    def _close(self, spell: _Spell, phase: str) -> None:
        if spell.seconds is None:
            self.lap("start", until=spell.gang.effort.ready)
            begin = self._last
            self.lap(phase)
            spell.seconds = self._last - begin
        else:
            self.lap("finish")

    def _told_of_workers(self) -> dict[str, Any]:
        efforts = [spell.gang.effort for spell in self._spells]
        busy = sum(effort.seconds for effort in efforts)
        # Of those asked for: one that never came, or that waits, counts as idle.
        offered = self.workers * sum(spell.seconds or 0.0 for spell in self._spells)
        return {
            "asked": self.workers,
            "memory": self._crew.worker_memory if self._spells else 0,
            "most": max((effort.workers for effort in efforts), default=0),
            "busy_seconds": round(busy, 4),
            "utilisation": round(min(busy / offered, 1.0), 4) if offered else None,
            "images_read": sum(effort.images for effort in efforts),
            "bytes_read": round(sum(effort.bytes for effort in efforts)),
            "tasks": sum(effort.tasks for effort in efforts),
            "failed": sum(effort.failed for effort in efforts),
            "retries": sum(effort.retries for effort in efforts),
            "deaths": sum(effort.deaths for effort in efforts),
        }


@dataclass
class _Spell:
    """One gang, and the seconds that it was at work."""

    gang: Gang
    seconds: float | None = None


def _versions() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree
            continue
