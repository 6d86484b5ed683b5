"""Marks of active runs and garbage collections of a store.

``runs/run-<nonce>.json`` exists while a run is active, and says which; ``<nonce>.beat`` is its
heartbeat, rewritten every minute. A gc writes ``gc-<nonce>.json``, which lists the files that it
will remove.

Safety follows from the order of operations. A run writes its mark, then reads the lists of active
gcs, then lists the store's files: those that a gc lists count as removed. A gc writes its list,
then reads the marks; while a run is active it removes no version, no journal, nothing that a
journal names, no model, and nothing younger than the run. So of a run and a gc at least one knows
of the other, however slow either is, and neither waits.

The mark of a crashed process counts until it has had no heartbeat for ``GONE`` seconds by the
storage's clock. Until then a run's mark restricts gc, and files that a gc lists are not restored
but made anew. A gc that was suspended for that long removes nothing more.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event, Thread

from pydantic import ConfigDict, ValidationError

from raypq import console
from raypq.config import Settings
from raypq.config.explain import first_problem
from raypq.data.storage import (
    Listed,
    create_once,
    delete,
    join,
    json_text,
    list_files,
    read_bytes,
    storage_time,
    write_bytes,
)
from raypq.data.store import lease
from raypq.errors import ConflictError

FOLDER = "runs"
SECONDS = 60.0  # between heartbeats
GONE = 900.0  # seconds without one after which a run counts as gone
_NAME = re.compile(r"(?P<kind>run|gc)-(?P<nonce>[0-9a-f]{32})\.json")
_BEAT = re.compile(r"(?P<nonce>[0-9a-f]{32})\.beat")

_ended: set[str] = set()  # nonces of ended runs of this process whose marks could not be removed


class Mark(Settings):
    """The content of a mark.

    Attributes:
        what: the command. who: the process and host. since: when it began, for people.
        removes: paths that a gc will remove.
    """

    model_config = ConfigDict(extra="ignore")  # a newer raypq may write more

    nonce: str
    what: str
    who: str
    since: str
    removes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} ({self.who}, since {self.since})"


@dataclass(frozen=True, kw_only=True)
class ActiveRun:
    """A run of another process.

    Attributes:
        began: by the storage's clock (seconds since 1970). what: a description.
    """

    began: float
    what: str


class OwnMark:
    """The mark of a run of this process; ``active`` writes and removes it."""

    def __init__(self, store: str, what: str) -> None:
        self.store = store
        self.mark = Mark(
            nonce=uuid.uuid4().hex,
            what=what,
            who=f"process {os.getpid()} on {socket.gethostname()}",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        kind = "gc" if what == "gc" else "run"
        self._uri = join(store, FOLDER, f"{kind}-{self.mark.nonce}.json")
        self._beat_uri = join(store, FOLDER, f"{self.mark.nonce}.beat")
        self._last_beat = time.time()
        self._was_late = False  # once late, others may have counted the run as gone

    def write(self) -> None:
        """Writes the mark."""
        with self._heartbeat():
            create_once(self._uri, self.mark.model_dump_json().encode())

    def announce(self, paths: Sequence[str]) -> None:
        """Lists the paths that a gc will remove."""
        self.mark = self.mark.model_copy(update={"removes": tuple(paths)})
        with self._heartbeat():
            write_bytes(self._uri, self.mark.model_dump_json().encode())

    def beat(self) -> None:
        """Writes a heartbeat."""
        with self._heartbeat():
            write_bytes(self._beat_uri, self.mark.nonce.encode())

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        began = time.time()
        yield
        self._was_late |= self._is_late  # checked when the write has ended
        self._last_beat = began

    @property
    def _is_late(self) -> bool:
        return time.time() - self._last_beat > GONE / 2

    def check(self) -> None:
        """Checks that other processes still count this run as active.

        Raises:
            ConflictError: a heartbeat was late; this process slept, or the storage was not
                available.
        """
        if self._was_late or self._is_late:
            raise ConflictError(
                f"{self.store}: {self.mark.what} wrote no heartbeat for {GONE / 2:.0f} s, so "
                "other runs may count it as gone; run it again"
            )

    def remove(self) -> None:
        """Removes the mark; if that fails, a gc does it later."""
        _ended.add(self.mark.nonce)
        with suppress(OSError):
            delete(self._uri)
            delete(self._beat_uri)
            _ended.discard(self.mark.nonce)


@contextmanager
def active(store: str, what: str) -> Iterator[OwnMark]:
    """Marks a run as active within the context, with heartbeats from a thread.

    Args:
        what: the command, for people; ``gc`` for garbage collection.
    """
    mark = OwnMark(store, what)
    done = Event()
    thread = Thread(target=_keep_alive, args=(mark, done), name="raypq-heartbeat", daemon=True)
    try:
        mark.write()
        thread.start()
        yield mark
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
        mark.remove()


def _keep_alive(mark: OwnMark, done: Event) -> None:
    while not done.wait(SECONDS):
        try:
            mark.beat()
        except OSError as error:
            console.warn(f"{mark.store}: cannot write a heartbeat: {error}")


def active_runs(store: str, now: float) -> list[ActiveRun]:
    """The active runs on a store, without gcs.

    A nightly run of an older raypq has no mark; it is known by its lease.

    Args:
        now: by the storage's clock (seconds since 1970).
    """
    files = list_files(join(store, FOLDER))
    active = []
    for name, listed in files.items():
        match = _NAME.fullmatch(name)
        if not match or match["kind"] != "run" or match["nonce"] in _ended:
            continue
        if not _is_silent(match, files, now):
            mark = _read(join(store, FOLDER, name))
            active.append(ActiveRun(began=listed.written, what=str(mark or "a run")))
    held = lease.current(store)
    if held and now - held.last_beat <= 2 * held.seconds:
        active.append(ActiveRun(began=held.began, what=f"a nightly run ({held.who})"))
    return active


def stale_files(store: str, now: float) -> dict[str, Listed]:
    """The marks and heartbeats of runs and gcs that count as gone, by name.

    Args:
        now: by the storage's clock (seconds since 1970).
    """
    files = list_files(join(store, FOLDER))
    stale = {}
    for name, listed in files.items():
        match = _NAME.fullmatch(name) or _BEAT.fullmatch(name)
        if match and _is_silent(match, files, now):
            stale[name] = listed
    return stale


def removed_by_gc(store: str) -> frozenset[str]:
    """The paths that active gcs will remove, which count as removed.

    A gc without a heartbeat for ``GONE`` seconds has crashed, or will remove nothing more
    (``OwnMark.check``).
    """
    if not _gcs(list_files(join(store, FOLDER))):
        return frozenset()
    try:
        now = storage_time(join(store, FOLDER))
    except OSError:  # nothing can be written here, so that no mark counts as silent
        now = 0.0
    # Listed again, after the time was read: if this process sleeps in between, an active gc must
    # not seem silent.
    files = list_files(join(store, FOLDER))
    names = [match.string for match in _gcs(files) if not _is_silent(match, files, now)]
    marks = [_read(join(store, FOLDER, name)) for name in names]
    return frozenset(path for mark in marks if mark for path in mark.removes)


def _gcs(names: Iterable[str]) -> list[re.Match[str]]:
    matches = (_NAME.fullmatch(name) for name in names)
    return [match for match in matches if match and match["kind"] == "gc"]


def _is_silent(match: re.Match[str], files: Mapping[str, Listed], now: float) -> bool:
    """Whether a mark and its heartbeat are both older than ``GONE``."""
    names = (match.string, f"{match['nonce']}.beat")
    return now - max(files[name].written for name in names if name in files) > GONE


def _read(uri: str) -> Mark | None:
    """The content of a mark; None if its run has just ended, or the mark cannot be read."""
    try:
        return Mark.model_validate(json_text.parse(read_bytes(uri)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        found = first_problem(Mark, error) if isinstance(error, ValidationError) else error
        console.warn(f"{uri}: unreadable: {found}")
        return None
