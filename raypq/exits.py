"""How a run ends when something is wrong: one message on stderr that fits the screen, a code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from raypq import console
from raypq.errors import RaypqError

_LINES = 20  # of a message; a thousand bad shards must not push the first one off the screen
_INTERRUPTED = 130


@contextmanager
def told(*, debug: bool, passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Ends the process with a message and a code instead of a traceback.

    Args:
        debug: let errors through, whole.
        passing: errors that somebody else tells.
    """
    try:
        yield
    except passing:
        raise
    except console.OutputClosedError:  # as after ``| head``: the reader has all that it wants
        sys.exit(0)
    except KeyboardInterrupt:
        console.fail("interrupted; finished shards are kept, run it again to go on")
        sys.exit(_INTERRUPTED)
    except RaypqError as error:
        if debug:
            raise
        console.fail(_fitting(str(error)), kind=type(error).__name__)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        console.fail(_fitting(f"{type(error).__name__}: {error}"), kind=type(error).__name__)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = f"unexpected {type(error).__name__}: {error}\n(--debug shows where)"
        console.fail(_fitting(text), kind=type(error).__name__)
        sys.exit(1)


def _fitting(text: str) -> str:
    lines = text.splitlines()
    if len(lines) <= _LINES:
        return text
    rest = len(lines) - _LINES
    return "\n".join([*lines[:_LINES], f"  … and {rest} more lines (--debug shows all)"])
