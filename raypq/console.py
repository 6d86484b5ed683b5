"""What people see: results on stdout; a bar on a terminal, plain or JSON lines elsewhere on stderr.

Where the encoding of a stream lacks a character (Latin-1, ASCII, the code page of a console), a
plain one or its escape is printed in its place: what a name in the data looks like ends no run.
"""

from __future__ import annotations

import codecs
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

_LINE_SECONDS = 10.0  # between progress lines where there is no terminal

_ERRORS = "raypq"  # the name of what is done where an encoding lacks a character
_PLAIN = {
    "─": "-", "━": "-", "−": "-", "–": "-", "—": "-", "→": "->", "×": "x", "·": "*", "‖": "||",
    "…": "...", "±": "+/-", "∞": "inf", "≤": "<=", "≥": ">=", "≈": "~", "✓": "yes", "✗": "no",
    "²": "^2", "³": "^3", "½": "1/2", "γ": "gamma", "λ": "lambda", "τ": "tau", "α": "alpha",
    "β": "beta", "δ": "delta", "ε": "epsilon",
}  # fmt: skip

log = logging.getLogger("raypq")


class OutputClosedError(BrokenPipeError):
    """Whoever read what is printed has gone, as ``head`` does."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A codec error handler: the character in plain ones, or its escape."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    escaped = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(escaped), error.end


def open_streams() -> None:
    """Makes stdout and stderr take any text; for processes that are raypq's own.

    A stream that is closed is opened to nothing, or the next file would have its number, and what
    a library prints would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_ERRORS, _plain)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for good
        elif reconfigure := getattr(getattr(sys, name), "reconfigure", None):
            reconfigure(errors=_ERRORS)


def emit(text: str) -> None:
    """Prints a result to stdout.

    Raises:
        OutputClosedError: nobody reads it any more.
        OSError: it cannot be written; a full disk, say.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        _give_up()
        raise OutputClosedError(*error.args) from None
    except OSError as error:
        _give_up()
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), "<stdout>") from None


def note(text: str) -> None:
    """Prints a line for people to stderr, whatever the level of the log."""
    sys.stderr.write(f"{text}\n")


def _give_up() -> None:
    """Sends what is left for stdout to nothing, so that the end of the process is quiet."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, sys.stdout.fileno())
    except (OSError, ValueError):  # no file behind it
        pass
    finally:
        os.close(nothing)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": record.created, "level": record.levelname, "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        return json.dumps(line, default=str)


def set_up(*, quiet: bool = False, as_json: bool = False, debug: bool = False) -> None:
    """Points raypq's log to stderr; called by the command line only."""
    open_streams()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


def structured() -> bool:
    """Whether log lines are JSON, so that a result is to be one line of JSON, too."""
    return any(isinstance(handler.formatter, _JsonLines) for handler in log.handlers)


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
    return bool(log.handlers) and not structured() and sys.stderr.isatty()


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
