"""Leases: one nightly run at a time on a store, with expiry after a crash.

``lease/<term>-<beat>.json``: every holder has a term of its own, one higher than the one before,
and adds a beat now and then as a sign of life; ``<term>-end.json`` gives the lease back. All are
created in one step that fails if the name is taken, so of those who want a term one gets it.

No clock of another machine is trusted. Who finds a lease held watches it: a new beat says that its
holder is at work; none for as long as the lease promises, by the watcher's own monotonic clock,
says that it is not, and the next term is free. A holder that only slept finds the higher term when
it asks (``check``, just before a commit), and gives up.

Files are removed to keep the folder short, never to hand the lease over; the highest always stays,
so no term is given twice.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event, Thread

from pydantic import ConfigDict, Field, ValidationError

from raypq import console
from raypq.config import Settings
from raypq.data import json_text
from raypq.data.storage import create, delete, join, list_files, list_names, read_bytes
from raypq.errors import ConflictError

FOLDER = "lease"
SECONDS = 60.0  # without a sign of life after which a holder counts as gone
_BEATS = 4  # signs of life in that time: three may be lost
_LOOKS = 40  # of a watcher in that time
_NAME = re.compile(r"([0-9]{12})-([0-9]{8}|end)\.json")
_LAST = 10**12 - 1  # term that a name can hold


class Holder(Settings):
    """What a lease file says; its times are for people to read."""

    model_config = ConfigDict(extra="ignore")  # of a newer raypq: what is known here still holds

    nonce: str
    who: str
    since: str
    seconds: float = Field(SECONDS, gt=0)


@dataclass(frozen=True)
class _Mark:
    """The latest sign of life in a store."""

    term: int
    beat: str
    name: str

    @property
    def over(self) -> bool:
        return self.beat == "end"

    @property
    def prefix(self) -> str:
        return f"{self.term:012d}-"


@dataclass(kw_only=True)
class Lease:
    """One run's hold on a store; ``held`` takes and keeps it."""

    store: str
    seconds: float = SECONDS
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    term: int = 0
    holder: Holder = field(init=False)
    _beat: int = 0
    _alive: float = 0.0

    def __post_init__(self) -> None:
        self.holder = Holder(
            nonce=uuid.uuid4().hex,
            who=f"process {os.getpid()} on {socket.gethostname()}",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=self.seconds,
        )

    def take(self) -> None:
        """Takes the lease, from a holder that is gone if need be (which takes its promised time).

        Raises:
            ConflictError: another run holds it and is at work.
        """
        last = self._latest()
        if last and not last.over:
            last = self._watch(last)
        self.term = last.term + 1 if last else 1
        if self.term > _LAST:
            raise ConflictError(
                f"{join(self.store, FOLDER, last.name if last else '')}: no run gave the lease "
                "this number; remove the file"
            )
        if not self._create(f"{0:08d}") or self._rank() != self.term:
            raise self._refusal(self._latest(), "came first")
        self._alive = self.now()
        self._tidy()

    def beat(self) -> None:
        """Gives a sign of life.

        Raises:
            OSError: it could not be written; the lease holds on until its time is over.
        """
        if self._create(f"{self._beat + 1:08d}"):
            self._beat += 1
            self._alive = self.now()
            if self._beat > 1:  # the first beat stays: it guards the term
                delete(self._uri(self.term, f"{self._beat - 1:08d}"))

    def check(self) -> None:
        """Makes sure that the lease is still ours; asked just before a commit.

        Raises:
            ConflictError: another run has taken it, or it ran out.
        """
        silent = self.now() - self._alive
        if silent > self.seconds:
            raise ConflictError(
                f"{self.store}: no sign of life could be written for {silent:.0f} s, so the lease "
                "ran out; nothing was committed, and a rerun takes over what is finished"
            )
        last = self._latest()
        if last is None or last.term != self.term or last.over:
            raise self._refusal(last, "took the lease over")

    def give_back(self) -> None:
        """Ends the lease, so that the next run need not wait for its time to pass."""
        with suppress(OSError):
            self._create("end")

    def _watch(self, last: _Mark) -> _Mark:
        """Waits for the holder's next sign of life; returns the mark of one that is gone."""
        holder = self._holder(last)
        promised = holder.seconds if holder else self.seconds
        console.say(
            f"{self.store} is held by {_name(holder)}; waiting up to {promised:g} s for a sign of "
            "life"
        )
        end = self.now() + promised
        while self.now() < end:
            self.sleep(promised / _LOOKS)
            found = self._latest()
            if found is None or found == last:
                continue
            if found.over:
                return found
            raise self._refusal(found, "is at work")
        console.warn(f"{self.store}: {_name(holder)} gave no sign of life; taking over")
        return last

    def _refusal(self, last: _Mark | None, what: str) -> ConflictError:
        holder = None
        with suppress(OSError):  # who it is matters less than that there is somebody
            holder = self._holder(last) if last else None
        seconds = holder.seconds if holder else self.seconds
        return ConflictError(
            f"{self.store}: {_name(holder)} {what}. Two runs must not interleave: let it end, or "
            f"end it; {seconds:g} s after its last sign of life the next run takes over by itself"
        )

    def _create(self, beat: str) -> bool:
        """Whether the mark is there and ours, be it by a request whose answer was lost."""
        uri = self._uri(self.term, beat)
        try:
            create(uri, self.holder.model_dump_json().encode())
        except FileExistsError:
            found = _read(uri)
            return found is not None and found.nonce == self.holder.nonce
        except OSError as error:
            # No answer, or a server's error: what is there now tells whether it was done.
            try:
                found = _read(uri)
            except OSError:
                raise error from None
            if found is None:
                raise
            return found.nonce == self.holder.nonce
        return True

    def _tidy(self) -> None:
        """Removes the marks of earlier terms; a later term stands, so none comes back."""
        for name in list_names(join(self.store, FOLDER)):
            match = _NAME.fullmatch(name)
            if match and int(match[1]) < self.term:
                with suppress(OSError):
                    delete(join(self.store, FOLDER, name))

    def _rank(self) -> int:
        last = self._latest()
        return last.term if last else 0

    def _latest(self) -> _Mark | None:
        return _latest_of(list_names(join(self.store, FOLDER)))

    def _holder(self, mark: _Mark) -> Holder | None:
        return _read(join(self.store, FOLDER, mark.name))

    def _uri(self, term: int, beat: str) -> str:
        return join(self.store, FOLDER, f"{term:012d}-{beat}.json")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A lease that was not given back, as its files tell; times are those of the storage.

    Attributes:
        began, last: when it was taken, and its last sign of life (seconds since 1970).
        seconds: without a sign of life after which its holder counts as gone.
    """

    began: float
    last: float
    seconds: float
    who: str


def standing(store: str) -> Standing | None:
    """The lease on a store, if one was taken and not given back."""
    files = list_files(join(store, FOLDER))
    mark = _latest_of(files)
    if mark is None or mark.over:
        return None
    holder = _read(join(store, FOLDER, mark.name))
    of_term = [listed.written for name, listed in files.items() if name.startswith(mark.prefix)]
    return Standing(
        began=min(of_term),
        last=max(of_term),
        seconds=holder.seconds if holder else SECONDS,
        who=_name(holder),
    )


@contextmanager
def held(store: str, *, seconds: float = SECONDS) -> Iterator[Lease]:
    """Holds the lease on a store, with signs of life from a thread, and gives it back.

    Raises:
        ConflictError: another run holds it and is at work.
    """
    lease = Lease(store=store, seconds=seconds)
    lease.take()
    done = Event()
    thread = Thread(target=_keep_alive, args=(lease, done), name="raypq-lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join()
        lease.give_back()


def _keep_alive(lease: Lease, done: Event) -> None:
    while not done.wait(lease.seconds / _BEATS):
        try:
            lease.beat()
        except OSError as error:  # ``check`` tells, should it go on
            console.warn(f"{lease.store}: cannot renew the lease: {error}")


def _latest_of(names: Iterable[str]) -> _Mark | None:
    matches = (_NAME.fullmatch(name) for name in names)
    marks = [_Mark(int(match[1]), match[2], match[0]) for match in matches if match]
    return max(marks, key=lambda mark: mark.name, default=None)


def _name(holder: Holder | None) -> str:
    return f"{holder.who} (since {holder.since})" if holder else "another run"


def _read(uri: str) -> Holder | None:
    """What a mark says; None where it is gone, or is no mark.

    Raises:
        OSError: it could not be read. It may promise more time than any guess.
    """
    try:
        return Holder(**json_text.parse(read_bytes(uri)))
    except (FileNotFoundError, ValueError, TypeError, ValidationError):
        return None
