"""Counters of the images and bytes that this process reads.

Readers add to them, and the code that runs a task takes the difference. So stages do not pass
counts on, and rows from a cache are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True)
class Reading:
    """Rows of Parquet files, and the stored bytes of the columns that were read."""

    images: int = 0
    bytes: float = 0.0

    def since(self, before: Reading) -> Reading:
        """The difference to an earlier reading of the counters."""
        return Reading(self.images - before.images, self.bytes - before.bytes)


_lock = Lock()
_total = Reading()


def add(images: int, size: float) -> None:
    """Adds rows and their bytes; thread-safe."""
    global _total
    with _lock:
        _total = Reading(_total.images + images, _total.bytes + size)


def images_from_now() -> Callable[[], int]:
    """A function that returns how many images this process has read since now."""
    before = read()
    return lambda: read().since(before).images


def read() -> Reading:
    """The current values of the counters."""
    return _total
