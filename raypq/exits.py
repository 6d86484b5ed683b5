"""Errors at the end of a run: one message on stderr that fits the screen, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from raypq import console
from raypq.errors import RaypqError, message_of

_MAX_LINES = 20  # of a message, so that the first of a thousand bad shards stays on the screen
_INTERRUPTED = 130


def code_of(error: BaseException) -> int:
    """The exit code of a process that ends with an error."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    return error.exit_code if isinstance(error, RaypqError) else 1


@contextmanager
def handle_errors(*, debug: bool, reraise: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Ends the process with a message and an exit code instead of a traceback.

    Args:
        debug: raise errors, for a traceback.
        reraise: errors that the caller reports.
    """
    try:
        yield
    except reraise:
        raise
    except console.OutputClosedError:  # as after ``| head``: no error
        sys.exit(0)
    except KeyboardInterrupt:
        console.fail("interrupted; finished shards are kept, run it again to go on")
        sys.exit(_INTERRUPTED)
    except RaypqError as error:
        if debug:
            raise
        console.fail(_shortened(str(error)), kind=type(error).__name__)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        console.fail(_shortened(message_of(error)), kind=type(error).__name__)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = f"unexpected {type(error).__name__}: {error}\n(--debug shows where)"
        console.fail(_shortened(text), kind=type(error).__name__)
        sys.exit(1)


def _shortened(text: str) -> str:
    lines = text.splitlines()
    if len(lines) <= _MAX_LINES:
        return text
    rest = len(lines) - _MAX_LINES
    return "\n".join([*lines[:_MAX_LINES], f"  … and {rest} more lines (--debug shows all)"])
