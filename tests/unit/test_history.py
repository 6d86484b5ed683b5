"""Versions listed and compared; gc takes what no version needs, and only what is old."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from raypq.data import lease, snapshot
from raypq.data.output import Receipt, Source
from raypq.errors import ConfigError, ConflictError, InputError
from raypq.stages import history

OLD = time.time() - 8 * 86_400


def receipt(store: Path, shard: str, attempt: int) -> Receipt:
    path = store / "data" / f"{shard}.{attempt}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"x" * (10 + attempt))
        os.utime(path, (OLD, OLD))
    return Receipt(
        shard=shard,
        path=f"data/{path.name}",
        bytes=10 + attempt,
        rows=5,
        sha256="0" * 64,
        model="m" * 64,
        work="w",
        source=Source(uri=f"/in/{shard}", size=1, modified="now"),
    )


def commit(store: Path, **attempts: int) -> None:
    receipts = [receipt(store, shard, attempt) for shard, attempt in attempts.items()]
    snapshot.commit(
        str(store), kind="codes", run_id="r", expected=list(attempts), receipts=receipts
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three versions; a.1 and b.1 are only in the first, and one old file is in none."""
    place = tmp_path / "store"
    commit(place, a=1, b=1)
    commit(place, a=2, b=1)
    commit(place, a=2, c=3)
    receipt(place, "orphan", 7)
    return place


def names(store: Path) -> set[str]:
    return {path.name for path in (store / "data").iterdir()}


def test_listing_and_show(store: Path) -> None:
    assert [line["version"] for line in history.listing(str(store))] == [1, 2, 3]
    assert history.listing(str(store))[2]["images"] == 10
    assert history.show(str(store), 1)["shards"][0]["path"] == "data/a.1.parquet"


def test_diff(store: Path) -> None:
    found = history.diff(str(store), 1)
    assert (found["added"], found["removed"], found["changed"]) == (["c"], ["b"], ["a"])
    assert history.diff(str(store), 1, 2)["kept"] == 1


def test_verify_by_size_and_by_content(store: Path) -> None:
    assert history.verify(str(store))["verified"] == "size"
    with pytest.raises(InputError, match=r"a\.2\.parquet: expected sha256 0+, found"):
        history.verify(str(store), content=True)
    (store / "data" / "c.3.parquet").write_bytes(b"short")
    with pytest.raises(InputError, match=r"c\.3\.parquet: expected 13 bytes, found 5 bytes"):
        history.verify(str(store))


def test_gc_tells_before_it_removes(store: Path) -> None:
    before = names(store)
    found = history.collect(str(store))
    assert (found.versions, found.files, found.bytes) == ([], ["data/orphan.7.parquet"], 17)
    assert names(store) == before


def test_gc_keeps_what_retained_versions_name(store: Path) -> None:
    found = history.collect(str(store), keep=1, remove=True)
    assert found.versions == [1, 2]
    assert names(store) == {"a.2.parquet", "c.3.parquet"}
    assert snapshot.versions(str(store)) == [3]
    assert snapshot.read(str(store)).rows == 10


def test_gc_spares_the_young(store: Path) -> None:
    os.utime(store / "data" / "orphan.7.parquet")
    assert history.collect(str(store)).files == []


def test_gc_clears_old_journals(store: Path) -> None:
    old = store / "journal" / "w" / "1.json"
    old.parent.mkdir(parents=True)
    old.write_text("[]")
    os.utime(old, (OLD, OLD))
    assert "journal/w/1.json" in history.collect(str(store), remove=True).files
    assert not old.exists()


def test_gc_refuses_a_wrong_place(tmp_path: Path, store: Path) -> None:
    with pytest.raises(InputError, match="no such store"):
        history.collect(str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="keep"):
        history.collect(str(store), keep=0)


def test_restore_makes_a_new_version_of_an_old_one(store: Path) -> None:
    made = history.restore(str(store), 2)
    assert made.version == 4
    assert made.shards == snapshot.read(str(store), 2).shards
    assert made.summary["restored"] == 2
    assert [line["version"] for line in history.listing(str(store))] == [1, 2, 3, 4]


def test_restoring_the_latest_does_nothing(store: Path) -> None:
    assert history.restore(str(store), 3).version == 3
    assert snapshot.versions(str(store)) == [1, 2, 3]


def test_what_gc_took_cannot_be_restored(store: Path) -> None:
    (store / "data" / "b.1.parquet").unlink()
    with pytest.raises(InputError, match=r"b\.1\.parquet"):
        history.restore(str(store), 1)
    assert snapshot.versions(str(store)) == [1, 2, 3]
    with pytest.raises(InputError, match="version 9"):
        history.restore(str(store), 9)


def test_a_store_that_a_night_is_at_work_on_is_not_restored(store: Path) -> None:
    with lease.held(str(store), seconds=1), pytest.raises(ConflictError, match="is at work"):
        history.restore(str(store), 1)
    assert snapshot.versions(str(store)) == [1, 2, 3]
