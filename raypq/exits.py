"""Errors at the end of a run: one message on stderr that fits the screen, and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from raypq import console
from raypq.errors import JobError, RaypqError, message_of

_MAX_LINES = 20  # of a message, so that the first of a thousand bad shards stays on the screen
_INTERRUPTED, _TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as by ``kill``, Kubernetes or ``ray job stop``."""


def code_of(error: BaseException) -> int:
    """The exit code of a process that ends with an error."""
    if isinstance(error, Terminated):
        return _TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    return error.exit_code if isinstance(error, RaypqError) else 1


def as_terminated(error: BaseException) -> BaseException:
    """The error itself; ``Terminated`` for the exit of Ray's own handler of SIGTERM, which a
    process has while Ray starts."""
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
        return Terminated()
    return error


@contextmanager
def handle_errors(*, debug: bool, reraise: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Ends the process with a message and an exit code instead of a traceback.

    Args:
        debug: raise errors, for a traceback, which is in the line where lines are JSON.
        reraise: errors that the caller reports.
    """
    try:
        with _terminable():
            yield
    except reraise:
        raise
    except console.OutputClosedError:  # as after ``| head``: no error
        sys.exit(0)
    except Terminated:
        console.fail("terminated (SIGTERM); finished shards are kept, run it again to go on")
        _leave(_TERMINATED)
    except KeyboardInterrupt:
        console.fail("interrupted; finished shards are kept, run it again to go on")
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if debug and not console.structured():
            raise
        fields: dict[str, Any] = {"traceback": traceback.format_exc()} if debug else {}
        if isinstance(error, JobError):
            fields["failed"] = [item.as_dict() for item in error.failures]
        console.fail(_shortened(_text(error)), kind=type(error).__name__, **fields)
        sys.exit(code_of(error))


def refuse_usage(message: str, *, kind: str, code: int) -> NoReturn:
    """Ends the process for a command line that cannot be parsed; its message is a JSON line."""
    console.set_up(as_json=True)
    console.fail(message, kind=kind)
    sys.exit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns the first SIGTERM into ``Terminated`` within the context, so that what is held is given
    back; the second one ends the process at once."""

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except SystemExit as error:
        raise as_terminated(error) from None
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _leave(code: int) -> NoReturn:
    """Ends the process. Threads that compute are not waited for: whoever sends SIGTERM kills soon
    after it."""
    busy = [one for one in threading.enumerate() if one.name.startswith("raypq")]
    if not any(not one.daemon for one in busy):
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _text(error: Exception) -> str:
    if isinstance(error, RaypqError | OSError):
        return message_of(error)
    return f"unexpected {type(error).__name__}: {error}\n(--debug shows where)"


def _shortened(text: str) -> str:
    lines = text.splitlines()
    if len(lines) <= _MAX_LINES:
        return text
    rest = len(lines) - _MAX_LINES
    return "\n".join([*lines[:_MAX_LINES], f"  … and {rest} more lines (--debug shows all)"])
