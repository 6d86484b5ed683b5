"""Signs of life: a log line with the phase of the work where nothing was logged for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raypq import console

_SILENCE = 5.0  # seconds without a line until a sign of life
_LATER = 10.0  # seconds until the next one
_POLL = 0.25  # seconds


class _Phase:
    """A part of the work that has begun."""

    def __init__(self, text: Callable[[], str]) -> None:
        self.text, self.began = text, time.monotonic()


_phases: list[_Phase] = []  # that have begun and not ended, the innermost last


@contextmanager
def phase(text: str | Callable[[], str]) -> Iterator[None]:
    """Names the work within the context for ``watched``.

    Args:
        text: what is done, or a function that returns it; an empty one where it is shown already.
    """
    begun = _Phase(text if callable(text) else lambda: text)
    _phases.append(begun)
    try:
        yield
    finally:
        _phases.remove(begun)


class _LastLine(logging.Handler):
    """Notes the time of the last log line."""

    def __init__(self) -> None:
        super().__init__()
        self.at = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.at = time.monotonic()


@contextmanager
def watched() -> Iterator[None]:
    """Logs a sign of life after each silence, within the context; for the command line."""
    last = _LastLine()
    console.log.addHandler(last)
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(last, ended), name="raypq-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        console.log.removeHandler(last)


def _watch(last: _LastLine, ended: threading.Event) -> None:
    began, reported, silence = time.monotonic(), 0.0, _SILENCE
    while not ended.wait(_POLL):
        if last.at > reported:
            silence = _SILENCE
        if time.monotonic() - last.at < silence:
            continue
        current = next(iter(_phases[-1:]), None)
        text = current.text() if current else "still running"
        seconds = time.monotonic() - (current.began if current else began)
        if text:
            console.say(f"{text}, for {seconds:.0f} s so far", seconds=seconds)
        last.at = reported = time.monotonic()
        silence = _LATER
