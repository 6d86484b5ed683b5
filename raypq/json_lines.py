"""JSON lines alone on stderr (``--log-json``): what libraries and other processes print is wrapped.

Run as a script, this file is the process that wraps, so that what a process prints while it crashes
is wrapped, too. So at its head it imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

_CHUNK = 1 << 16
_END = 2.0  # seconds for the last lines; processes of Ray that are ending may hold the pipe


@contextmanager
def wrapped(*, active: bool) -> Iterator[tuple[IO[str], IO[str]] | None]:
    """Streams for results and for log lines, within the context; None where it is not active.

    Whatever else is written to stdout or stderr, by this process and by those that it starts, goes
    to stderr as JSON lines. Lines that are JSON objects stay as they are.
    """
    if not active or not (_is(sys.stdout, 1) and _is(sys.stderr, 2)):
        yield None
        return
    from raypq.console import open_streams

    open_streams()
    results, lines = os.dup(1), os.dup(2)
    process = subprocess.Popen(  # noqa: S603 - this file
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=lines,
        start_new_session=True,  # an interrupt from the terminal must not end it before us
    )
    assert process.stdin is not None
    for number in (1, 2):
        os.dup2(process.stdin.fileno(), number)
    process.stdin.close()
    try:
        with (
            open(results, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors) as out,
            open(lines, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors,
                 buffering=1, closefd=False) as log,
        ):  # fmt: skip
            try:
                yield out, log
            finally:  # the process that wraps ends when nobody can write to it
                with suppress(OSError):  # a full disk was reported when it was met
                    sys.stdout.flush()
                os.dup2(results, 1)
    finally:
        sys.stderr.flush()
        os.dup2(lines, 2)
        os.close(lines)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END)


def _is(stream: IO[str] | None, number: int) -> bool:
    try:
        return stream is not None and stream.fileno() == number
    except (OSError, ValueError):
        return False


def as_json(line: bytes) -> bytes:
    """A line as a JSON object: itself where it is one, else with the line as its message."""
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(line), dict):
            return line
    message = line.decode(errors="replace").rstrip()
    return json.dumps({"time": time.time(), "level": "INFO", "message": message}).encode()


def main() -> None:
    """Copies stdin to stdout, every line as a JSON object."""
    rest = b""
    while chunk := os.read(0, _CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        _write(lines)
    _write([rest])


def _write(lines: list[bytes]) -> None:
    text = b"".join(as_json(line) + b"\n" for line in lines if line.strip())
    while text:
        text = text[os.write(1, text) :]


if __name__ == "__main__":
    main()
