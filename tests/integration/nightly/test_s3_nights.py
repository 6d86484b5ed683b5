"""Nights, leases and gc on an object store: as on local files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raypq import api
from raypq.config import ReindexJob
from raypq.data.storage import delete, join, list_names, write_bytes
from raypq.data.store import lease, runs, snapshot
from raypq.data.store.lease import Lease
from raypq.errors import ConflictError, InputError
from raypq.stages.stores import garbage, versions

ReindexPlan = Callable[..., dict[str, Any]]


@pytest.fixture
def night(home: Any, bucket: str) -> ReindexPlan:
    """A night whose features and stores are in the bucket."""
    for path in (home.root / "features").iterdir():
        write_bytes(f"{bucket}/features/{path.name}", path.read_bytes())

    def night(**more: Any) -> dict[str, Any]:
        section = {"classes": home("classes.parquet"), "output": f"{bucket}/predictions"}
        values = {
            "model": home("old"),
            "features": [f"{bucket}/features"],
            "codes": f"{bucket}/codes",
            "classify": section,
            "where": home.where,
        }
        return api.reindex(ReindexJob.parse(values | more))

    return night


def put(home: Any, bucket: str, number: int, content: bytes | None = None) -> None:
    path: Path = home.shard(number)
    write_bytes(f"{bucket}/features/{path.name}", content or path.read_bytes())


def test_nights_follow_the_source(home: Any, bucket: str, night: ReindexPlan) -> None:
    told = night()
    assert (told["codes"]["images"], told["predictions"][0]["images"]) == (600, 600)
    assert night()["nothing_to_do"]
    home.add(6)
    home.rewrite(1)
    put(home, bucket, 6)
    put(home, bucket, 1)
    delete(f"{bucket}/features/{home.shard(4).name}")
    told = night()
    counts = {name: told["shards"][name] for name in ("new", "changed", "removed", "kept")}
    assert counts == {"new": 1, "changed": 1, "removed": 1, "kept": 4}
    put(home, bucket, 2, home.shard(2).read_bytes()[:100])
    told = night(on_bad_shard="quarantine")
    assert told["codes"]["left_out"]["shards"] == 1
    assert night(on_bad_shard="quarantine")["nothing_to_do"]
    for store in ("codes", "predictions"):
        place = f"{bucket}/{store}"
        assert versions.verify(place, sha256=True)["version"] == 3
        assert not list_names(join(place, runs.FOLDER))
        garbage.collect(place, keep=1, older_than_days=-1, remove=True)
        assert snapshot.versions(place) == [3]
        assert versions.verify(place, sha256=True)["version"] == 3
    assert night(on_bad_shard="quarantine")["nothing_to_do"]


def test_a_source_that_is_gone_empties_nothing(home: Any, bucket: str, night: ReindexPlan) -> None:
    night()
    for name in list_names(f"{bucket}/features"):
        delete(f"{bucket}/features/{name}")
    with pytest.raises(InputError):
        night()
    assert snapshot.read(f"{bucket}/codes").rows == 600


def test_a_roll_out_and_the_way_back(home: Any, bucket: str, night: ReindexPlan) -> None:
    night()
    night(model=home("new"), rollout=0.5)
    assert len({item.model for item in snapshot.read(f"{bucket}/codes").shards}) == 2
    versions.restore(f"{bucket}/codes", 1)
    assert night()["shards"]["kept"] == home.shards


class Clock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._time, self._meanwhile = 0.0, meanwhile

    def now(self) -> float:
        return self._time

    def sleep(self, seconds: float) -> None:
        self._time += seconds
        self._meanwhile()


def leased(store: str, clock: Clock) -> Lease:
    return Lease(store=store, now=clock.now, sleep=clock.sleep)


def test_a_lease_is_taken_once_and_given_back(bucket: str) -> None:
    one, other = leased(bucket, Clock()), leased(bucket, Clock())
    one.take()
    assert lease.current(bucket) is not None
    one.beat()
    one.check()
    one.release()
    assert lease.current(bucket) is None
    other.take()
    assert other.term == 2
    with pytest.raises(ConflictError, match="took the lease over"):
        one.check()
    assert len(list_names(f"{bucket}/lease")) == 1, "earlier terms are cleared"


def test_a_holder_at_work_is_left_alone_and_a_silent_one_replaced(bucket: str) -> None:
    one = leased(bucket, Clock())
    one.take()
    with pytest.raises(ConflictError, match="is at work"):
        leased(bucket, Clock(meanwhile=one.beat)).take()
    leased(bucket, Clock()).take()  # no heartbeat in all that time
    with pytest.raises(ConflictError, match="took the lease over"):
        one.check()


def test_a_store_that_is_held_is_left_alone(home: Any, bucket: str, night: ReindexPlan) -> None:
    night()
    put(home, bucket, 1, home.shard(0).read_bytes())
    holder = Lease(store=f"{bucket}/codes", seconds=60)
    holder.take()
    with pytest.raises(ConflictError, match="is at work"):
        with_beats(holder, night)
    assert snapshot.versions(f"{bucket}/codes") == [1]


def with_beats(holder: Lease, night: ReindexPlan) -> None:
    """A night that finds the store held by somebody who is at work."""
    from threading import Event, Thread

    done = Event()

    def live() -> None:
        while not done.wait(0.1):
            holder.beat()

    thread = Thread(target=live)
    thread.start()
    try:
        night()
    finally:
        done.set()
        thread.join()
