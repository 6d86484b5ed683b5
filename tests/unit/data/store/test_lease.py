"""Of all runs that want a store one has it; a dead one loses it, a sleeping one notices."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from lossy import LossyFileSystem, emptied

from raypq.data.storage import Listed, Storage, create, join, list_names, use_storage
from raypq.data.store.lease import Lease, held, held_all, take_all
from raypq.errors import ConflictError


class Clock:
    """A clock of one's own: sleeping moves it, and lets others do something meanwhile."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.time, self.meanwhile = 1000.0, meanwhile

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.meanwhile()


def lease(store: str, clock: Clock | None = None) -> Lease:
    clock = clock or Clock()
    return Lease(store=store, seconds=60.0, now=clock, sleep=clock.sleep)


@pytest.fixture(params=["local", "object"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"memory://lease/{tmp_path.name}/{request.node.name}"


def test_one_after_another(store: str) -> None:
    for term in (1, 2, 3):
        one = lease(store)
        one.take()
        one.check()
        assert one.term == term
        one.release()
        with pytest.raises(ConflictError):
            one.check()
    assert list_names(join(store, "lease")) == [
        "000000000003-00000000.json", "000000000003-end.json",
    ]  # fmt: skip


def test_a_holder_at_work_is_named_and_left_alone(store: str) -> None:
    first = lease(store)
    first.take()
    second = lease(store, Clock(meanwhile=first.beat))
    with pytest.raises(ConflictError, match=r"process \d+ on .* is at work.*wait for that run"):
        second.take()
    first.check()


def test_a_crashed_holder_loses_it_after_its_time(store: str) -> None:
    lease(store).take()
    clock = Clock()
    second = lease(store, clock)
    second.take()
    assert second.term == 2
    assert clock.time == pytest.approx(1060, abs=2)


def test_the_time_that_counts_is_the_one_the_holder_promised(store: str) -> None:
    long = Lease(store=store, seconds=500.0)
    long.take()
    clock = Clock()
    lease(store, clock).take()
    assert clock.time == pytest.approx(1500, abs=15)


def test_a_holder_that_gives_back_ends_the_wait(store: str) -> None:
    first = lease(store)
    first.take()
    clock = Clock(meanwhile=first.release)
    lease(store, clock).take()
    assert clock.time < 1010


def test_a_sleeper_finds_that_it_was_replaced(store: str) -> None:
    """SIGSTOP, a suspended machine, a paused pod: awake again, it must not commit."""
    sleeper = lease(store)
    sleeper.take()
    lease(store).take()
    with pytest.raises(ConflictError, match="took the lease over"):
        sleeper.check()
    sleeper.beat()  # its thread wakes up first: that changes nothing
    with pytest.raises(ConflictError, match="took the lease over"):
        sleeper.check()


def test_a_holder_that_cannot_renew_gives_up_by_itself(store: str) -> None:
    clock = Clock()
    one = lease(store, clock)
    one.take()
    clock.time += 61
    with pytest.raises(ConflictError, match="for 61 s, so the lease ran out"):
        one.check()


def test_wall_clocks_do_not_matter(store: str) -> None:
    """A holder whose clock is a year off is neither dead nor immortal."""
    first = lease(store)
    first.holder = first.holder.model_copy(update={"since": "1999-01-01T00:00:00+00:00"})
    first.take()
    with pytest.raises(ConflictError, match="1999-01-01"):
        lease(store, Clock(meanwhile=first.beat)).take()


def test_of_those_who_race_one_wins(tmp_path: Path) -> None:
    """All have waited a crashed holder out, and reach for the next term together."""
    store, start = str(tmp_path), Barrier(8)
    lease(store).take()

    def attempt(_: int) -> bool:
        one = lease(store)
        claim = one._claim
        one._claim = lambda last: (start.wait(), claim(last))[1]
        try:
            one.take()
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert sum(won) == 1


def test_a_term_that_is_long_over_is_not_taken_again(store: str, monkeypatch: Any) -> None:
    """A contender that slept between looking and creating finds the later term."""
    slow = lease(store)
    looked = slow._latest
    looks = iter([None, None])
    monkeypatch.setattr(slow, "_latest", lambda: next(looks, looked()))
    for _ in range(2):
        other = lease(store)
        other.take()
        other.release()
    assert "000000000001-00000000.json" not in list_names(join(store, "lease"))
    with pytest.raises(ConflictError):
        slow.take()


def test_beats_do_not_pile_up(store: str) -> None:
    one = lease(store)
    one.take()
    for _ in range(5):
        one.beat()
    one.check()
    assert list_names(join(store, "lease")) == [
        "000000000001-00000000.json", "000000000001-00000005.json",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"nonce": 1}'])
def test_a_damaged_file_is_waited_out(store: str, content: bytes) -> None:
    create(join(store, "lease", "000000000007-00000000.json"), content)
    one = lease(store)
    one.take()
    assert one.term == 8


@pytest.mark.parametrize("seconds", ["1e300", "1e9", "-5", "0", '"60"', "true", "null", "1e999"])
def test_an_impossible_expiry_counts_as_damage(store: str, seconds: str) -> None:
    text = f'{{"nonce": "a", "who": "b", "since": "c", "seconds": {seconds}}}'
    create(join(store, "lease", "000000000007-00000000.json"), text.encode())
    clock = Clock()
    one = lease(store, clock)
    one.take()
    assert one.term == 8
    assert clock.time == pytest.approx(1060, abs=2)


def test_other_files_are_no_leases(store: str) -> None:
    create(join(store, "lease", "notes.json"), b"{}")
    one = lease(store)
    one.take()
    assert one.term == 1


@pytest.mark.parametrize("answer", [FileExistsError("again"), TimeoutError(), OSError(5, "500")])
def test_a_lost_answer_is_read_back(tmp_path: Path, answer: Exception) -> None:
    emptied().answers.append(answer)
    one = lease(f"lossy://{tmp_path.name}")
    one.take()
    LossyFileSystem.answers.append(answer)
    one.beat()
    one.check()


def test_a_request_that_failed_is_an_error(tmp_path: Path) -> None:
    emptied().answers.append(OSError(5, "error 500"))
    LossyFileSystem.done = False
    with pytest.raises(OSError, match="error 500"):
        lease(f"lossy://{tmp_path.name}").take()


def test_held_keeps_alive_and_gives_back(tmp_path: Path) -> None:
    store = str(tmp_path)
    with held(store, seconds=2.0) as mine:
        folder = Path(store, "lease")
        with pytest.raises(ConflictError, match="is at work"):
            Lease(store=store, seconds=2.0).take()
        mine.check()
        said = json.loads((folder / "000000000001-00000000.json").read_text())
        assert said["nonce"] == mine.holder.nonce
    Lease(store=store).take()  # at once


@pytest.mark.parametrize("error", [OSError(5, "EIO"), PermissionError(13, "no")])
def test_a_mark_that_cannot_be_read_is_not_taken_for_one_that_is_gone(
    store: str, error: OSError
) -> None:
    """It may promise an hour: a watcher that guessed a minute would take over from a live run."""

    class Blind(Storage):
        def read_bytes(self, uri: str) -> bytes:
            raise error

    Lease(store=store, seconds=3600).take()
    late = lease(store)
    with use_storage(Blind()), pytest.raises(type(error)):
        late.take()
    assert late.term == 0
    assert list_names(join(store, "lease")) == ["000000000001-00000000.json"]


def test_the_leases_of_a_crashed_run_take_the_time_of_one(tmp_path: Path) -> None:
    stores = [str(tmp_path / name) for name in "abcd"]
    for store in stores:
        lease(store).take()
    released, clock = lease(stores[0]), Clock()
    released.term = 1
    released.release()
    start = clock.time
    mine = [lease(store, clock) for store in stores]
    take_all(mine)
    assert 60 <= clock.time - start < 65
    assert [one.term for one in mine] == [2, 2, 2, 2]


def test_of_several_leases_all_or_none_are_taken(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    active = lease(b)
    active.take()
    with pytest.raises(ConflictError, match="is at work"):
        take_all([lease(a, clock := Clock(active.beat)), lease(b, clock)])
    assert list_names(join(a, "lease")) == []
    other = lease(b)

    def first() -> None:  # another run takes it while it is watched
        other.term = 1
        other._create("00000005")

    with pytest.raises(ConflictError):
        take_all([lease(a, clock := Clock(first)), lease(b, clock)])
    assert list_names(join(a, "lease")) == []


def test_a_lease_that_stood_still_for_long_is_taken_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = str(tmp_path)
    lease(store).take()
    (beat,) = (tmp_path / "lease").iterdir()
    old = time.time() - 3 * 3600
    os.utime(beat, (old, old))
    clock = Clock()
    lease(store, clock).take()
    assert clock.time == 1000.0
    assert "sent no heartbeat for 10,800 s; taking over at once" in caplog.text
    assert list_names(join(store, "lease")) == ["000000000002-00000000.json"]


def age(store: Path, seconds: float) -> None:
    """Dates the files of a lease back."""
    old = time.time() - seconds
    for file in (store / "lease").iterdir():
        os.utime(file, (old, old))


def test_a_contender_that_sleeps_while_it_looks_takes_no_active_lease(tmp_path: Path) -> None:
    """Asleep for three hours before its look at the storage's clock."""
    holder, hours = lease(str(tmp_path)), 3 * 3600
    holder.take()

    class Sleeps(Storage):
        def create(self, uri: str, content: bytes) -> None:
            super().create(uri, content)
            if ".clock-" in uri:
                if holder._beat == 0:
                    holder.beat()
                age(tmp_path, -hours)

    clock = Clock(meanwhile=holder.beat)
    with use_storage(Sleeps()), pytest.raises(ConflictError, match="is at work"):
        lease(str(tmp_path), clock).take()
    holder.check()


@pytest.mark.parametrize("from_listing", [2, 3])
def test_a_listing_that_lacks_the_newest_heartbeat_ends_no_lease(
    tmp_path: Path, from_listing: int
) -> None:
    """A heartbeat creates one file and deletes another; a listing meanwhile may show neither."""
    holder, listings = lease(str(tmp_path)), 0
    holder.take()
    age(tmp_path, 3 * 3600)
    holder.beat()

    class LacksNewest(Storage):
        def list_files(self, uri: str) -> dict[str, Listed]:
            nonlocal listings
            listings += 1
            files = super().list_files(uri)
            if listings >= from_listing:
                files.pop("000000000001-00000001.json", None)
            return files

    with use_storage(LacksNewest()), pytest.raises(ConflictError, match="is at work"):
        lease(str(tmp_path), Clock(meanwhile=holder.beat)).take()
    holder.check()


def test_a_holder_that_wakes_while_others_are_watched_keeps_its_lease(tmp_path: Path) -> None:
    stores = [str(tmp_path / name) for name in "ab"]
    sleeper, other = map(lease, stores)
    sleeper.take()
    other.take()
    age(tmp_path / "a", 3 * 3600)
    with pytest.raises(ConflictError, match="is at work"):
        take_all([lease(store, clock) for clock in [Clock(sleeper.beat)] for store in stores])
    sleeper.check()
    assert list_names(join(stores[1], "lease")) == ["000000000001-00000000.json"]


def test_a_lease_that_ends_by_an_error_is_given_back_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stores = [str(tmp_path / name) for name in "ab"]
    with caplog.at_level("INFO", "raypq"), pytest.raises(KeyboardInterrupt), held_all(stores):
        raise KeyboardInterrupt
    assert sorted(caplog.messages) == [f"{store}: the lease is given back" for store in stores]
    with held_all(stores):
        assert len(caplog.messages) == 2, "nobody waits"
