"""Leases: one ``reindex`` or ``restore`` at a time on a store, with expiry after a crash.

Other commands take no lease: concurrent runs of ``encode``, for example, all commit.

``lease/<term>-<beat>.json``: every holder has its own term, one higher than the last, and adds
numbered heartbeats; ``<term>-end.json`` releases the lease. All are created in one step that fails
if the name is taken, so that one contender gets a term.

No clock of another machine is trusted. A contender that finds the lease held watches it: a new
heartbeat shows that the holder is active; if there is none for the holder's expiry time, by the
contender's own monotonic clock, the holder is gone and the next term is free. A lease that stood
still for long by the storage's clock is taken over at once. A holder that only slept finds the
higher term in ``check``, just before a commit, and gives up.

Old files are removed to keep the folder short, never to hand over the lease; the highest always
stays, so that no term is used twice.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event, Thread

from pydantic import ConfigDict, Field, ValidationError

from raypq import console
from raypq.config import Settings
from raypq.config.settings import MAX_SECONDS
from raypq.data.storage import (
    create,
    delete,
    join,
    json_text,
    list_files,
    list_names,
    read_bytes,
    storage_time,
)
from raypq.errors import ConflictError

FOLDER = "lease"
SECONDS = 60.0  # default expiry: without a heartbeat for so long, a holder counts as gone
_BEATS = 4  # heartbeats in that time: three may be lost
_POLLS = 40  # of a contender in that time
_STILL = 2.0  # times the expiry without a heartbeat, after which nobody need be watched
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
        take_all([self])

    def _claim(self, last: _Beat | None) -> None:
        """Takes the term after the last one, whose holder has released it or is gone."""
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

    def release(self) -> bool:
        """Ends the lease, so that the next run need not wait for its expiry; whether it worked."""
        with suppress(OSError):
            return self._create("end")
        return False

    def give_back(self) -> None:
        """Ends the lease where this run holds it, as after an interrupt, and says so."""
        released = False
        with suppress(OSError):
            last = self._latest()
            holder = self._holder(last) if last and not last.released else None
            if holder is None or holder.nonce != self.holder.nonce:
                return
            released = self.release()
        if released:
            console.say(f"{self.store}: the lease is given back")
        else:
            console.warn(
                f"{self.store}: the lease could not be given back; it ends {self.seconds:g} s "
                "after its last heartbeat"
            )

    def _stands_still(self, last: _Beat) -> bool:
        """Whether the last heartbeat is far older than its expiry, by the storage's own clock.

        Then there is nothing to watch. A holder that was suspended for so long finds the higher
        term before it commits.
        """
        folder = join(self.store, FOLDER)
        now = storage_time(folder)
        # Listed after the time was read: if this process sleeps in between, an active holder must
        # not seem silent.
        files = list_files(folder)
        # A listing during a heartbeat may lack the newest file, and shows an old one then.
        if _latest_of(files) != last:
            return False
        holder = self._holder(last)
        silent = now - files[last.name].written
        if holder is None or silent <= _STILL * holder.seconds:
            return False
        console.warn(
            f"{self.store}: {_name(holder)} sent no heartbeat for {silent:,.0f} s; taking over at "
            "once"
        )
        return True

    def _check_unchanged(self, last: _Beat | None) -> None:
        """Checks, just before the next term is taken, that its holder is not at work after all.

        The leases of other stores may have been watched since it was seen.

        Raises:
            ConflictError: there is a new heartbeat.
        """
        latest = self._latest()
        if latest is not None and latest != last and not latest.released:
            raise self._refusal(latest, "is at work")

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


class _Watched:
    """The lease of another holder that is watched for a sign of life.

    Attributes:
        last: its last heartbeat. seconds: until its holder counts as gone.
    """

    def __init__(self, lease: Lease, last: _Beat) -> None:
        self._lease, self.last = lease, last
        self._holder = lease._holder(last)
        self.seconds = self._holder.seconds if self._holder else lease.seconds
        self._end = lease.now() + self.seconds
        console.say(
            f"{lease.store} is held by {_name(self._holder)}; waiting up to {self.seconds:g} s for "
            "a sign of life"
        )

    def is_over(self) -> bool:
        """Looks again: whether the holder has released the lease, or is gone.

        Raises:
            ConflictError: it is active.
        """
        lease = self._lease
        latest = lease._latest()
        if latest is not None and latest != self.last:
            if not latest.released:
                raise lease._refusal(latest, "is at work")
            self.last = latest
            return True
        if lease.now() < self._end:
            return False
        console.warn(f"{lease.store}: {_name(self._holder)} sent no heartbeat; taking over")
        return True


def take_all(leases: Sequence[Lease]) -> None:
    """Takes several leases. Those of other holders are watched together, so that those of a crashed
    run take the time of one.

    Raises:
        ConflictError: another run holds one of them and is active; then none is taken.
    """
    last = {lease.store: lease._latest() for lease in leases}
    watched = {
        lease.store: _Watched(lease, beat)
        for lease in leases
        if (beat := last[lease.store]) and not beat.released and not lease._stands_still(beat)
    }
    while watched:
        leases[0].sleep(min(item.seconds for item in watched.values()) / _POLLS)
        for store, item in list(watched.items()):
            if item.is_over():
                last[store] = watched.pop(store).last
    taken: list[Lease] = []
    try:
        for lease in leases:
            lease._check_unchanged(last[lease.store])
            lease._claim(last[lease.store])
            taken.append(lease)
    except BaseException:
        for lease in taken:
            lease.give_back()
        raise


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
    with held_all([store], seconds=seconds) as leases:
        yield leases[store]


@contextmanager
def held_all(stores: Iterable[str], *, seconds: float = SECONDS) -> Iterator[dict[str, Lease]]:
    """Holds the leases on several stores within the context, by store.

    Raises:
        ConflictError: another run holds one of them and is active.
    """
    leases = {store: Lease(store=store, seconds=seconds) for store in sorted(stores)}
    finished = False
    try:
        take_all(list(leases.values()))
        with ExitStack() as stack:
            for lease in leases.values():
                stack.enter_context(_kept_alive(lease))
            yield leases
        finished = True
    finally:
        for lease in leases.values():
            if finished:
                lease.release()
            else:
                lease.give_back()


@contextmanager
def _kept_alive(lease: Lease) -> Iterator[None]:
    """Heartbeats from a thread within the context."""
    done = Event()
    thread = Thread(target=_keep_alive, args=(lease, done), name="raypq-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
