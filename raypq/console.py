"""What people see while work goes on: a bar on a terminal, plain or JSON lines elsewhere.

Results go to stdout, everything here to stderr.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

_LINE_SECONDS = 10.0  # between progress lines where there is no terminal

log = logging.getLogger("raypq")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": record.created, "level": record.levelname, "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        return json.dumps(line, default=str)


def set_up(*, quiet: bool = False, as_json: bool = False, debug: bool = False) -> None:
    """Points raypq's log to stderr; called by the command line only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


def say(message: str, **fields: Any) -> None:
    """Logs a line, with the fields beside it where lines are JSON."""
    log.info(message, extra={"fields": fields})


def warn(message: str, **fields: Any) -> None:
    """Logs a warning."""
    log.warning(message, extra={"fields": fields})


def fail(message: str, **fields: Any) -> None:
    """Logs what ended the run."""
    log.error("raypq: %s", message, extra={"fields": fields})


@contextmanager
def silent() -> Iterator[None]:
    """Warnings only, for as long as the context is open."""
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)


class Progress:
    """Shows how far a pass over shards is; ``done`` is called once for each shard."""

    def done(self, images: int = 0) -> None:
        """One more shard is finished, with this many images."""


@contextmanager
def progress(total: int, label: str, *, unit: str = "shards") -> Iterator[Progress]:
    """A bar on a terminal, a line now and then elsewhere: shards, images a second, time left."""
    if not log.isEnabledFor(logging.INFO):
        yield Progress()
    elif _wants_bar():
        with _Bar(total, label) as bar:
            yield bar
    else:
        yield _Lines(total, label, unit)


def _wants_bar() -> bool:
    plain = not any(isinstance(handler.formatter, _JsonLines) for handler in log.handlers)
    return bool(log.handlers) and plain and sys.stderr.isatty()


class _Lines(Progress):
    def __init__(self, total: int, label: str, unit: str) -> None:
        self._total, self._label, self._unit = total, label, unit
        self._start = self._last = time.monotonic()
        self._shards = self._images = 0

    def done(self, images: int = 0) -> None:
        self._shards += 1
        self._images += images
        now = time.monotonic()
        left = self._total - self._shards
        # The many short passes of training have lines of their own.
        if now - self._last < _LINE_SECONDS and (left or not self._images):
            return
        self._last, spent = now, max(now - self._start, 1e-9)
        rate = f", {self._images / spent:,.0f} images/s" if self._images else ""
        tail = f"{spent / self._shards * left:.0f} s left" if left else f"{spent:.1f} s"
        say(
            f"{self._label}: {self._shards}/{self._total} {self._unit}{rate}, {tail}",
            shards=self._shards,
            total=self._total,
            images=self._images,
            seconds=spent,
        )


class _Bar(Progress):
    def __init__(self, total: int, label: str) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(label, total=total, rate="")
        self._start, self._images = time.monotonic(), 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def done(self, images: int = 0) -> None:
        self._images += images
        rate = self._images / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(
            self._task, advance=1, rate=f"{rate:,.0f} images/s" if self._images else ""
        )
