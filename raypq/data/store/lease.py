"""Leases: one ``reindex`` or ``restore`` at a time on a store, with expiry after a crash.

Other commands take no lease: concurrent runs of ``encode``, for example, all commit.

``lease/<term>-<beat>.json``: every holder has its own term, one higher than the last, and adds
numbered heartbeats; ``<term>-end.json`` releases the lease. All are created in one step that fails
if the name is taken, so that one contender gets a term.

No clock of another machine is trusted. A contender that finds the lease held watches it: a new
heartbeat shows that the holder is active; if there is none for the holder's expiry time, by the
contender's own monotonic clock, the holder is gone and the next term is free. A holder that only
slept finds the higher term in ``check``, just before a commit, and gives up.

Old files are removed to keep the folder short, never to hand over the lease; the highest always
stays, so that no term is used twice.
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
from raypq.config.settings import MAX_SECONDS
from raypq.data.storage import create, delete, join, json_text, list_files, list_names, read_bytes
from raypq.errors import ConflictError

FOLDER = "lease"
SECONDS = 60.0  # default expiry: without a heartbeat for so long, a holder counts as gone
_BEATS = 4  # heartbeats in that time: three may be lost
_POLLS = 40  # of a contender in that time
_NAME = re.compile(r"([0-9]{12})-([0-9]{8}|end)\.json")
_MAX_TERM = 10**12 - 1  # that a name can hold


class Holder(Settings):
    """The content of a lease file.

    Attributes:
        who: the process and host. since: when it began, for people.
        seconds: without a heartbeat after which it counts as gone.
    """

    model_config = ConfigDict(extra="ignore")  # a newer raypq may write more

    nonce: str
    who: str
    since: str
    seconds: float = Field(SECONDS, gt=0, le=MAX_SECONDS, strict=True)


@dataclass(frozen=True)
class _Beat:
    """A lease file: the heartbeat of a term, or its end."""

    term: int
    beat: str
    name: str

    @property
    def released(self) -> bool:
        return self.beat == "end"

    @property
    def prefix(self) -> str:
        return f"{self.term:012d}-"


@dataclass(kw_only=True)
class Lease:
    """A run's lease on a store; ``held`` takes, renews and releases it."""

    store: str
    seconds: float = SECONDS
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    term: int = 0
    holder: Holder = field(init=False)
    _beat: int = 0
    _last_beat: float = 0.0

    def __post_init__(self) -> None:
        self.holder = Holder(
            nonce=uuid.uuid4().hex,
            who=f"process {os.getpid()} on {socket.gethostname()}",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=self.seconds,
        )

    def take(self) -> None:
        """Takes the lease, after waiting for the expiry of another holder's if need be.

        Raises:
            ConflictError: another run holds it and is active.
        """
        last = self._latest()
        if last and not last.released:
            last = self._watch(last)
        self.term = last.term + 1 if last else 1
        if self.term > _MAX_TERM:
            raise ConflictError(
                f"{join(self.store, FOLDER, last.name if last else '')}: no run gave the lease "
                "this number; remove the file"
            )
        if not self._create(f"{0:08d}") or self._latest_term() != self.term:
            raise self._refusal(self._latest(), "came first")
        self._last_beat = self.now()
        self._remove_earlier_terms()

    def beat(self) -> None:
        """Writes a heartbeat.

        Raises:
            OSError: it could not be written; the lease is valid until it expires.
        """
        if self._create(f"{self._beat + 1:08d}"):
            self._beat += 1
            self._last_beat = self.now()
            if self._beat > 1:  # the first beat stays: it guards the term
                delete(self._uri(self.term, f"{self._beat - 1:08d}"))

    def check(self) -> None:
        """Checks, just before a commit, that this run still holds the lease.

        Raises:
            ConflictError: another run has taken it, or it expired.
        """
        silent = self.now() - self._last_beat
        if silent > self.seconds:
            raise ConflictError(
                f"{self.store}: no heartbeat could be written for {silent:.0f} s, so the lease "
                "ran out; nothing was committed, and a rerun takes over what is finished"
            )
        last = self._latest()
        if last is None or last.term != self.term or last.released:
            raise self._refusal(last, "took the lease over")

    def release(self) -> None:
        """Ends the lease, so that the next run need not wait for its expiry."""
        with suppress(OSError):
            self._create("end")

    def _watch(self, last: _Beat) -> _Beat:
        """Waits for the holder's next heartbeat; returns the last one of a holder that is gone."""
        holder = self._holder(last)
        expiry = holder.seconds if holder else self.seconds
        console.say(
            f"{self.store} is held by {_name(holder)}; waiting up to {expiry:g} s for a sign of "
            "life"
        )
        end = self.now() + expiry
        while self.now() < end:
            self.sleep(expiry / _POLLS)
            latest = self._latest()
            if latest is None or latest == last:
                continue
            if latest.released:
                return latest
            raise self._refusal(latest, "is at work")
        console.warn(f"{self.store}: {_name(holder)} sent no heartbeat; taking over")
        return last

    def _refusal(self, last: _Beat | None, reason: str) -> ConflictError:
        holder = None
        with suppress(OSError):  # the error can do without the holder's name
            holder = self._holder(last) if last else None
        seconds = holder.seconds if holder else self.seconds
        return ConflictError(
            f"{self.store}: {_name(holder)} {reason}; another reindex or snapshots restore holds "
            "the lease of the store: wait for that run, or end it; a new run takes over "
            f"{seconds:g} s after its last heartbeat"
        )

    def _create(self, beat: str) -> bool:
        """Creates a lease file; True if it is ours, also by a request whose response was lost."""
        uri = self._uri(self.term, beat)
        try:
            create(uri, self.holder.model_dump_json().encode())
        except FileExistsError:
            holder = _read(uri)
            return holder is not None and holder.nonce == self.holder.nonce
        except OSError as error:
            # No response, or a server error: the request may have succeeded.
            try:
                holder = _read(uri)
            except OSError:
                raise error from None
            if holder is None:
                raise
            return holder.nonce == self.holder.nonce
        return True

    def _remove_earlier_terms(self) -> None:
        """Removes the files of earlier terms, which cannot be taken again."""
        for name in list_names(join(self.store, FOLDER)):
            match = _NAME.fullmatch(name)
            if match and int(match[1]) < self.term:
                with suppress(OSError):
                    delete(join(self.store, FOLDER, name))

    def _latest_term(self) -> int:
        last = self._latest()
        return last.term if last else 0

    def _latest(self) -> _Beat | None:
        return _latest_of(list_names(join(self.store, FOLDER)))

    def _holder(self, beat: _Beat) -> Holder | None:
        return _read(join(self.store, FOLDER, beat.name))

    def _uri(self, term: int, beat: str) -> str:
        return join(self.store, FOLDER, f"{term:012d}-{beat}.json")


@dataclass(frozen=True, kw_only=True)
class CurrentLease:
    """A lease that has not been released; times are by the storage's clock.

    Attributes:
        began, last_beat: when it was taken, and its last heartbeat (seconds since 1970).
        seconds: without a heartbeat after which its holder counts as gone.
        who: a description of the holder.
    """

    began: float
    last_beat: float
    seconds: float
    who: str


def current(store: str) -> CurrentLease | None:
    """The lease on a store, if one was taken and not released."""
    files = list_files(join(store, FOLDER))
    latest = _latest_of(files)
    if latest is None or latest.released:
        return None
    holder = _read(join(store, FOLDER, latest.name))
    times = [listed.written for name, listed in files.items() if name.startswith(latest.prefix)]
    return CurrentLease(
        began=min(times),
        last_beat=max(times),
        seconds=holder.seconds if holder else SECONDS,
        who=_name(holder),
    )


@contextmanager
def held(store: str, *, seconds: float = SECONDS) -> Iterator[Lease]:
    """Holds the lease on a store within the context, with heartbeats from a thread.

    Raises:
        ConflictError: another run holds it and is active.
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
        lease.release()


def _keep_alive(lease: Lease, done: Event) -> None:
    while not done.wait(lease.seconds / _BEATS):
        try:
            lease.beat()
        except OSError as error:  # if it persists, ``check`` raises
            console.warn(f"{lease.store}: cannot renew the lease: {error}")


def _latest_of(names: Iterable[str]) -> _Beat | None:
    matches = (_NAME.fullmatch(name) for name in names)
    beats = [_Beat(int(match[1]), match[2], match[0]) for match in matches if match]
    return max(beats, key=lambda beat: beat.name, default=None)


def _name(holder: Holder | None) -> str:
    return f"{holder.who} (since {holder.since})" if holder else "another run"


def _read(uri: str) -> Holder | None:
    """The content of a lease file; None if it is gone, or is none.

    Raises:
        OSError: it could not be read. Its expiry time must not be guessed.
    """
    try:
        return Holder(**json_text.parse(read_bytes(uri)))
    except (FileNotFoundError, ValueError, TypeError, ValidationError):
        return None
