"""Console output: results on stdout; log lines (plain or JSON) and progress on stderr.

A character that the encoding of a stream lacks (Latin-1, ASCII, the code page of a console) is
replaced by an ASCII spelling or its escape, so that a name in the data cannot end a run.
"""

from __future__ import annotations

import codecs
import errno
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Self

_LINE_SECONDS = 10.0  # between progress lines without a terminal
_BAR_SECONDS = 1.0  # between counts of images on a terminal

_ERROR_HANDLER = "raypq"  # name of the codec error handler
_ASCII = {
    "─": "-", "━": "-", "−": "-", "–": "-", "—": "-", "→": "->", "×": "x", "·": "*", "‖": "||",
    "…": "...", "±": "+/-", "∞": "inf", "≤": "<=", "≥": ">=", "≈": "~", "✓": "yes", "✗": "no",
    "²": "^2", "³": "^3", "½": "1/2", "γ": "gamma", "λ": "lambda", "τ": "tau", "α": "alpha",
    "β": "beta", "δ": "delta", "ε": "epsilon",
}  # fmt: skip

log = logging.getLogger("raypq")
_results: IO[str] | None = None  # the stream of results, where it is not ``sys.stdout``


class OutputClosedError(BrokenPipeError):
    """The reader of stdout has closed it, as ``head`` does."""


def _to_ascii(error: UnicodeError) -> tuple[str, int]:
    """A codec error handler: an ASCII spelling of a character, or its escape."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    escaped = (_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(escaped), error.end


def open_streams() -> None:
    """Makes stdout and stderr accept any text; for processes of raypq only.

    A closed stream is opened to the null device. Otherwise the next file that is opened would get
    its descriptor, and a library's output would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_ERROR_HANDLER, _to_ascii)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for good
        elif reconfigure := getattr(getattr(sys, name), "reconfigure", None):
            reconfigure(errors=_ERROR_HANDLER)


def emit(text: str) -> None:
    """Prints a result to stdout.

    Raises:
        OutputClosedError: the reader has closed it.
        OSError: it cannot be written, for example to a full disk.
    """
    out = _results or sys.stdout
    try:
        out.write(f"{text}\n")
        out.flush()
    except BrokenPipeError as error:
        _discard(out)
        raise OutputClosedError(*error.args) from None
    except OSError as error:
        _discard(out)
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), "<stdout>") from None


def emit_text(text: str) -> None:
    """Prints a result that is text: with ``--log-json`` as one JSON object, ``{"text": …}``."""
    emit(json.dumps({"text": text}) if structured() else text)


def note(text: str) -> None:
    """Prints a line to stderr, at any log level; with ``--log-json`` as ``{"text": …}``."""
    sys.stderr.write(f"{json.dumps({'text': text}) if structured() else text}\n")


def _discard(stream: IO[str]) -> None:
    """Redirects a stream to the null device, so that flushing it at exit raises no error."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    except (OSError, ValueError):  # it is no file
        pass
    finally:
        os.close(null)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": record.created, "level": record.levelname, "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        return json.dumps(line, default=str)


def set_up(
    *,
    quiet: bool = False,
    as_json: bool = False,
    debug: bool = False,
    streams: tuple[IO[str], IO[str]] | None = None,
) -> None:
    """Directs raypq's log to stderr; called by the command line only.

    Args:
        streams: for results and for the log, instead of stdout and stderr, which are open.
    """
    global _results
    if streams is None:
        open_streams()
    _results, lines = streams or (None, sys.stderr)
    handler = logging.StreamHandler(lines)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


def structured() -> bool:
    """Whether log lines are JSON; results are then one line of JSON, too."""
    return any(isinstance(handler.formatter, _JsonLines) for handler in log.handlers)


def say(message: str, **fields: Any) -> None:
    """Logs a line; JSON lines also hold the fields."""
    log.info(message, extra={"fields": fields})


def warn(message: str, **fields: Any) -> None:
    """Logs a warning."""
    log.warning(message, extra={"fields": fields})


def fail(message: str, **fields: Any) -> None:
    """Logs the error that ended the run."""
    log.error("raypq: %s", message, extra={"fields": fields})


@contextmanager
def silent() -> Iterator[None]:
    """Logs warnings only, within the context."""
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)


class Progress:
    """Progress of a pass over shards."""

    def done(self, images: int = 0) -> None:
        """Counts a finished shard of so many images."""

    def failed(self) -> None:
        """Counts a shard that failed."""

    def reading(self, images: int) -> None:
        """Shows the images that were read so far, those of unfinished shards too."""

    def text(self) -> str:
        """The shards so far; empty where they are on the screen."""
        return ""


@contextmanager
def progress(
    total: int, label: str, *, unit: str = "shards", read: Callable[[], int] | None = None
) -> Iterator[Progress]:
    """A progress bar on a terminal, else a log line now and then: shards, images/s, time left.

    Args:
        read: returns the images that this process has read so far, which are shown while no shard
            is finished.
    """
    if not log.isEnabledFor(logging.INFO):
        yield Progress()
    elif _wants_bar():
        with _Bar(total, label) as bar, _polling(bar, read, _BAR_SECONDS):
            yield bar
    else:
        lines = _Lines(total, label, unit)
        with _polling(lines, read, _LINE_SECONDS / 4):
            yield lines


@contextmanager
def _polling(shown: Progress, read: Callable[[], int] | None, seconds: float) -> Iterator[None]:
    """Shows the images read every few seconds, within the context."""
    if read is None:
        yield
        return
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(seconds):
            shown.reading(read())

    thread = threading.Thread(target=poll, name="raypq-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wants_bar() -> bool:
    return bool(log.handlers) and not structured() and sys.stderr.isatty()


class _Lines(Progress):
    def __init__(self, total: int, label: str, unit: str) -> None:
        self._total, self._label, self._unit = total, label, unit
        self._start = self._last = time.monotonic()
        self._shards = self._failed = self._images = self._read = 0

    def failed(self) -> None:
        self._failed += 1
        self.done()

    def text(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._label}: {self._shards}/{self._total} {self._unit}{failed}"

    def reading(self, images: int) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_SECONDS or images <= self._read:
            return
        self._last, self._read, spent = now, images, now - self._start
        say(
            f"{self.text()}, {images:,} images read, {images / spent:,.0f} images/s",
            shards=self._shards,
            failed=self._failed,
            total=self._total,
            images_read=images,
            seconds=spent,
        )

    def done(self, images: int = 0) -> None:
        self._shards += 1
        self._images += images
        now = time.monotonic()
        left = self._total - self._shards
        # Training has many short passes without images, and logs lines of its own.
        if now - self._last < _LINE_SECONDS and (left or not self._images):
            return
        self._last, spent = now, max(now - self._start, 1e-9)
        rate = f", {self._images / spent:,.0f} images/s" if self._images else ""
        tail = f"{spent / self._shards * left:.0f} s left" if left else f"{spent:.1f} s"
        say(
            f"{self.text()}{rate}, {tail}",
            shards=self._shards,
            failed=self._failed,
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
        self._start, self._label = time.monotonic(), label
        self._images = self._failed = 0

    def failed(self) -> None:
        self._failed += 1
        self._bar.update(self._task, description=f"{self._label}, {self._failed} failed")
        self.done()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def reading(self, images: int) -> None:
        if images:
            rate = images / max(time.monotonic() - self._start, 1e-9)
            self._bar.update(self._task, rate=f"{images:,} images read, {rate:,.0f} images/s")

    def done(self, images: int = 0) -> None:
        self._images += images
        rate = self._images / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(
            self._task, advance=1, rate=f"{rate:,.0f} images/s" if self._images else ""
        )
