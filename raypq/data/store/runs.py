"""Marks of active runs and garbage collections of a store.

``runs/run-<nonce>.json`` says who is at work, and is there for as long; ``<nonce>.beat`` beside it
is written again every minute. A gc leaves ``gc-<nonce>.json``, which names what it will remove.

What makes it safe is the order. A run leaves its mark, then reads what a gc will remove, then looks
which files are there: those that a gc named count as gone. A gc names what it will remove, then
looks for marks, and beside a run it removes no version, no journal, nothing that a journal names,
no model, and nothing that is younger than the run. So of a run and a gc at least one knows of the
other, however slow either is. Nobody waits. A mark that a crash left behind counts until it is
silent for ``GONE`` seconds by the clock of the storage: that of a run hinders gc, and what that of
a gc names is not restored and is made anew. A gc that only slept removes nothing more.
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
from raypq.data import json_text
from raypq.data.storage import (
    Listed,
    create_once,
    delete,
    join,
    list_files,
    now,
    read_bytes,
    write_bytes,
)
from raypq.data.store import lease
from raypq.errors import ConflictError

FOLDER = "runs"
SECONDS = 60.0  # between signs of life
GONE = 900.0  # seconds without one after which a run counts as gone
_NAME = re.compile(r"(?P<kind>run|gc)-(?P<nonce>[0-9a-f]{32})\.json")
_BEAT = re.compile(r"(?P<nonce>[0-9a-f]{32})\.beat")

_over: set[str] = set()  # nonces of this process whose work has ended, if their marks stayed


class Mark(Settings):
    """What a mark says; ``since`` is for people to read. ``removes``: paths, of a gc."""

    model_config = ConfigDict(extra="ignore")  # of a newer raypq

    nonce: str
    what: str
    who: str
    since: str
    removes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} ({self.who}, since {self.since})"


@dataclass(frozen=True, kw_only=True)
class Live:
    """A run that is at work, and the time of the storage when it began (seconds since 1970)."""

    began: float
    what: str


class AtWork:
    """One's own mark; ``at_work`` leaves and removes it."""

    def __init__(self, store: str, what: str) -> None:
        self.store = store
        self.mark = Mark(
            nonce=uuid.uuid4().hex,
            what=what,
            who=f"process {os.getpid()} on {socket.gethostname()}",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        kind = "gc" if what == "gc" else "run"
        self._place = join(store, FOLDER, f"{kind}-{self.mark.nonce}.json")
        self._beat = join(store, FOLDER, f"{self.mark.nonce}.beat")
        self._alive = time.time()
        self._late = False  # a sign of life that came too late gives nothing back

    def leave(self) -> None:
        """Leaves the mark."""
        with self._sign():
            create_once(self._place, self.mark.model_dump_json().encode())

    def announce(self, paths: Sequence[str]) -> None:
        """Names what a gc will remove."""
        self.mark = self.mark.model_copy(update={"removes": tuple(paths)})
        with self._sign():
            write_bytes(self._place, self.mark.model_dump_json().encode())

    def beat(self) -> None:
        """Gives a sign of life."""
        with self._sign():
            write_bytes(self._beat, self.mark.nonce.encode())

    @contextmanager
    def _sign(self) -> Iterator[None]:
        began = time.time()
        yield
        self._late |= self._is_late  # now that it is there, and not when it was begun
        self._alive = began

    @property
    def _is_late(self) -> bool:
        return time.time() - self._alive > GONE / 2

    def check(self) -> None:
        """Makes sure that others still count on this mark.

        Raises:
            ConflictError: it was silent for too long, once; this process slept, or storage was
                away.
        """
        if self._late or self._is_late:
            raise ConflictError(
                f"{self.store}: {self.mark.what} gave no sign of life for {GONE / 2:.0f} s, so "
                "other runs may count it as gone; run it again"
            )

    def remove(self) -> None:
        """Takes the mark away; where that fails, gc does it later."""
        _over.add(self.mark.nonce)
        with suppress(OSError):
            delete(self._place)
            delete(self._beat)
            _over.discard(self.mark.nonce)


@contextmanager
def at_work(store: str, what: str) -> Iterator[AtWork]:
    """Leaves a mark for as long as the context lasts, with signs of life from a thread.

    Args:
        what: the verb, for people; ``gc`` for what removes files.
    """
    mine = AtWork(store, what)
    done = Event()
    thread = Thread(target=_keep_alive, args=(mine, done), name="raypq-at-work", daemon=True)
    try:
        mine.leave()
        thread.start()
        yield mine
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
        mine.remove()


def _keep_alive(mine: AtWork, done: Event) -> None:
    while not done.wait(SECONDS):
        try:
            mine.beat()
        except OSError as error:
            console.warn(f"{mine.store}: cannot write a sign of life: {error}")


def live(store: str, now: float) -> list[Live]:
    """The runs at work on a store, gc aside; a night of an older raypq is told by its lease.

    Args:
        now: the time of the storage.
    """
    files = list_files(join(store, FOLDER))
    found = []
    for name, listed in files.items():
        match = _NAME.fullmatch(name)
        if not match or match["kind"] != "run" or match["nonce"] in _over:
            continue
        if not _is_silent(match, files, now):
            mark = _read(join(store, FOLDER, name))
            found.append(Live(began=listed.written, what=str(mark or "a run")))
    held = lease.standing(store)
    if held and now - held.last <= 2 * held.seconds:
        found.append(Live(began=held.began, what=f"a nightly run ({held.who})"))
    return found


def left_behind(store: str, now: float) -> dict[str, Listed]:
    """The marks of runs and gcs that are gone, and their signs of life."""
    files = list_files(join(store, FOLDER))
    found = {}
    for name, listed in files.items():
        match = _NAME.fullmatch(name) or _BEAT.fullmatch(name)
        if match and _is_silent(match, files, now):
            found[name] = listed
    return found


def removed_by_gc(store: str) -> frozenset[str]:
    """What a gc at work has named to be removed: it counts as gone. A gc that gave no sign of life
    for ``GONE`` seconds was cut off, or will remove nothing more (``AtWork.check``)."""
    if not _gcs(list_files(join(store, FOLDER))):
        return frozenset()
    try:
        moment = now(join(store, FOLDER))
    except OSError:  # nothing can be written here: nothing is known of silence
        moment = 0.0
    # Listed once more, after the time was taken: should this process sleep meanwhile, a gc that is
    # at work must not seem silent.
    files = list_files(join(store, FOLDER))
    names = [match.string for match in _gcs(files) if not _is_silent(match, files, moment)]
    marks = [_read(join(store, FOLDER, name)) for name in names]
    return frozenset(path for mark in marks if mark for path in mark.removes)


def _gcs(names: Iterable[str]) -> list[re.Match[str]]:
    found = (_NAME.fullmatch(name) for name in names)
    return [match for match in found if match and match["kind"] == "gc"]


def _is_silent(match: re.Match[str], files: Mapping[str, Listed], now: float) -> bool:
    """Whether a mark, or a sign of life without one, is older than its run can be."""
    names = (match.string, f"{match['nonce']}.beat")
    return now - max(files[name].written for name in names if name in files) > GONE


def _read(uri: str) -> Mark | None:
    """What a mark says; None where its run has just ended, or nobody can read it."""
    try:
        return Mark(**json_text.parse(read_bytes(uri)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, ValidationError) as error:
        console.warn(f"{uri}: unreadable: {error}")
        return None
