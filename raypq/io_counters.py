"""Counters of the images and bytes that this process reads.

Readers add to them; whoever runs a task takes the difference. So no stage has to hand the figures
on, and cached rows count for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True)
class Reading:
    """Rows of Parquet files, and their bytes as stored (the columns that were asked for)."""

    images: int = 0
    bytes: float = 0.0

    def since(self, before: Reading) -> Reading:
        """What was added after ``before``."""
        return Reading(self.images - before.images, self.bytes - before.bytes)


_lock = Lock()
_total = Reading()


def add(images: int, size: float) -> None:
    """Counts rows and their bytes; threads may call it at once."""
    global _total
    with _lock:
        _total = Reading(_total.images + images, _total.bytes + size)


def read() -> Reading:
    """The counters as they stand."""
    return _total
