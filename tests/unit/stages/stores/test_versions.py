"""Versions listed and compared; gc takes what no version needs, and only what is old."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data.store import lease, runs, sidecars, snapshot
from raypq.data.store.shard_writer import Receipt, Source
from raypq.errors import ConfigError, ConflictError, DamagedError, InputError
from raypq.stages.stores import garbage, versions

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
    assert [line["version"] for line in versions.listing(str(store))] == [1, 2, 3]
    assert versions.listing(str(store))[2]["images"] == 10
    assert versions.show(str(store), 1)["shards"][0]["path"] == "data/a.1.parquet"


@pytest.mark.parametrize(
    ("there", "said"),
    [("nothing", "no such store"), ("folder", "a folder without versions"),
     ("model", "a model, not a store")],
)  # fmt: skip
@pytest.mark.parametrize(
    "look", [versions.listing, versions.show, versions.verify, garbage.collect]
)
def test_what_is_no_store_is_an_error_of_every_verb(
    tmp_path: Path, look: Callable[[str], object], there: str, said: str
) -> None:
    place = tmp_path / "place"
    if there != "nothing":
        place.mkdir()
    if there == "model":
        (place / "model.json").write_text("{}")
    with pytest.raises(InputError, match=said):
        look(str(place))


def test_diff(store: Path) -> None:
    found = versions.diff(str(store), 1)
    assert (found["added"], found["removed"], found["changed"]) == (["c"], ["b"], ["a"])
    assert versions.diff(str(store), 1, 2)["kept"] == 1


def test_verify_by_size_and_by_content(store: Path) -> None:
    assert versions.verify(str(store))["verified"] == "size"
    with pytest.raises(InputError, match=r"a\.2\.parquet: expected sha256 0+, found"):
        versions.verify(str(store), sha256=True)
    (store / "data" / "c.3.parquet").write_bytes(b"short")
    with pytest.raises(InputError, match=r"c\.3\.parquet: expected 13 bytes, found 5 bytes"):
        versions.verify(str(store))


@pytest.mark.parametrize("content", [False, True])
def test_verify_names_every_bad_file_and_the_remedy(tmp_path: Path, content: bool) -> None:
    names = ["missing", "longer", "shorter", "changed", "good"]
    receipts = []
    for name in names:
        path = tmp_path / "data" / f"{name}.0.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": [1]}), path)
        receipts.append(
            Receipt(
                shard=name, path=f"data/{name}.0.parquet", bytes=path.stat().st_size, rows=1,
                work="w", model="m", sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                source=Source(uri=f"/in/{name}", size=1, modified="1"),
            )
        )  # fmt: skip
    with sidecars.create(str(tmp_path), "counts", "json") as draft:
        draft.file.write(b"counted")
    snapshot.commit(
        str(tmp_path), kind="codes", run_id="r", expected=names, receipts=receipts,
        summary=sidecars.as_summary({"counts": [draft.sidecar()]}),
    )  # fmt: skip
    assert versions.verify(str(tmp_path), sha256=content)["files"] == 5
    (tmp_path / "data/missing.0.parquet").unlink()
    for name, change in (("longer", b"more"), ("shorter", None)):
        path = tmp_path / f"data/{name}.0.parquet"
        path.write_bytes(path.read_bytes() + change if change else b"PAR1")
    path = tmp_path / "data/changed.0.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (tmp_path / draft.path).unlink()
    with pytest.raises(DamagedError) as caught:
        versions.verify(str(tmp_path), sha256=content)
    said = str(caught.value)
    for name in names:
        bad = name != "good" and (content or name != "changed")
        assert (f"{name}.0.parquet: expected" in said) == bad
    assert draft.path in said
    assert "delete the file, or move it away, then run raypq encode or raypq reindex again" in said
    assert said.count("raypq encode or raypq reindex") == 1
    with pytest.raises(InputError, match=r"version 1: .*another version.*nothing was restored"):
        versions.restore(str(tmp_path), _second(tmp_path))


def _second(store: Path) -> int:
    """Makes a version after the first, which is then one to go back to; the first's number."""
    snapshot.commit(str(store), kind="codes", run_id="r", expected=[], receipts=[])
    return 1


def test_gc_tells_before_it_removes(store: Path) -> None:
    before = names(store)
    found = garbage.collect(str(store))
    assert (found.versions, found.files, found.bytes) == ([], ["data/orphan.7.parquet"], 17)
    assert names(store) == before


def test_gc_keeps_what_retained_versions_name(store: Path) -> None:
    found = garbage.collect(str(store), keep=1, remove=True)
    assert found.versions == [1, 2]
    assert names(store) == {"a.2.parquet", "c.3.parquet"}
    assert snapshot.versions(str(store)) == [3]
    assert snapshot.read(str(store)).rows == 10


def test_gc_spares_the_young(store: Path) -> None:
    os.utime(store / "data" / "orphan.7.parquet")
    assert garbage.collect(str(store)).files == []


def test_gc_clears_old_journals(store: Path) -> None:
    old = store / "journal" / "w" / "1.json"
    old.parent.mkdir(parents=True)
    old.write_text("[]")
    os.utime(old, (OLD, OLD))
    assert "journal/w/1.json" in garbage.collect(str(store), remove=True).files
    assert not old.exists()


def test_gc_refuses_a_wrong_place(tmp_path: Path, store: Path) -> None:
    with pytest.raises(InputError, match="no such store"):
        garbage.collect(str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="keep"):
        garbage.collect(str(store), keep=0)


def test_restore_makes_a_new_version_of_an_old_one(store: Path) -> None:
    made = versions.restore(str(store), 2)
    assert made.version == 4
    assert made.shards == snapshot.read(str(store), 2).shards
    assert made.summary["restored"] == 2
    assert [line["version"] for line in versions.listing(str(store))] == [1, 2, 3, 4]


def test_restoring_the_latest_does_nothing(store: Path) -> None:
    assert versions.restore(str(store), 3).version == 3
    assert snapshot.versions(str(store)) == [1, 2, 3]


def test_what_gc_took_cannot_be_restored(store: Path) -> None:
    (store / "data" / "b.1.parquet").unlink()
    with pytest.raises(InputError, match=r"b\.1\.parquet"):
        versions.restore(str(store), 1)
    assert snapshot.versions(str(store)) == [1, 2, 3]
    with pytest.raises(InputError, match="version 9"):
        versions.restore(str(store), 9)


def test_a_store_that_a_night_is_at_work_on_is_not_restored(store: Path) -> None:
    with lease.held(str(store), seconds=1), pytest.raises(ConflictError, match="is at work"):
        versions.restore(str(store), 1)
    assert snapshot.versions(str(store)) == [1, 2, 3]


@pytest.mark.parametrize(
    "folder", ["journal/w", "models/f", "sidecars", "manifests", "runs", "lease"]
)
def test_gc_does_not_follow_a_link_out_of_the_store(
    tmp_path: Path, store: Path, folder: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / f".{'0' * 32}.part").write_text("years of work")
    os.utime(victim / f".{'0' * 32}.part", (OLD, OLD))
    (store / folder).parent.mkdir(parents=True, exist_ok=True)
    (store / folder).symlink_to(victim)
    with pytest.raises(InputError, match=f"{folder}: expected a folder inside the store"):
        garbage.collect(str(store), older_than_days=0)
    assert len(list(victim.iterdir())) == 1


def test_gc_takes_models_that_no_version_needs(store: Path) -> None:
    for name, age in (("m" * 64, OLD), ("old", OLD), ("young", None)):
        for file in ("model.json", "model.safetensors"):
            path = store / "models" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            if age:
                os.utime(path, (age, age))
    (store / "models" / "young" / "model.json").touch()
    found = garbage.collect(str(store), remove=True).files
    assert [path for path in found if path.startswith("models")] == [
        "models/old/model.json", "models/old/model.safetensors",
    ]  # fmt: skip
    kept = {path.parent.name for path in (store / "models").rglob("*.json")}
    assert kept == {"m" * 64, "young"}


def test_gc_takes_old_temporary_files_everywhere(store: Path) -> None:
    for folder in ("data", "snapshots", "lease", "runs", "journal", "models", "journal/w"):
        for name in (f".{'0' * 32}.part", f".clock-{'1' * 32}"):
            path = store / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            os.utime(path, (OLD, OLD))
    keep = store / "snapshots" / "notes.txt"
    keep.write_text("not ours")
    os.utime(keep, (OLD, OLD))
    garbage.collect(str(store), remove=True)
    assert not list(store.rglob("*.part"))
    assert not list(store.rglob(".clock-*"))
    assert keep.exists()


@pytest.mark.parametrize("times", [1, 3, 99])
def test_a_clock_file_that_a_gc_took_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A gc of age 0 takes it between the writing and the look."""
    from raypq.data.storage import operations

    looks = []
    look = operations.list_files

    def taken(folder: str) -> dict[str, Any]:
        looks.append(folder)
        found = look(folder)
        return {} if len(looks) <= times else found

    monkeypatch.setattr(operations, "list_files", taken)
    if times == 99:
        with pytest.raises(OSError, match="5 files were removed as they were written"):
            operations.storage_time(str(tmp_path))
    else:
        assert abs(operations.storage_time(str(tmp_path)) - time.time()) < 60
        assert len(looks) == times + 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["json", "tensors", "folder", "all", "swapped"])
@pytest.mark.parametrize("content", [False, True])
def test_verify_looks_at_the_models(store: Path, damage: str, content: bool) -> None:
    """Of a version of codes: each that made some of them, byte by byte."""
    import shutil

    import numpy as np

    from raypq.data.model_files import ModelFiles

    files = ModelFiles(content={"method": "pq"}, tensors={"C": np.ones(3)}, record={})
    other = ModelFiles(content={"method": "pq"}, tensors={"C": np.ones(4)}, record={})
    path = store / "data" / "z.0.parquet"
    pq.write_table(pa.table({"id": [1]}), path)
    content_of = path.read_bytes()
    made = Receipt(
        shard="z", path="data/z.0.parquet", bytes=len(content_of), rows=1, work="w",
        model=files.fingerprint, sha256=hashlib.sha256(content_of).hexdigest(),
        source=Source(uri="/in/z", size=1, modified="1"),
    )  # fmt: skip
    where = store / "models" / files.fingerprint
    files.save(str(where))
    snapshot.commit(
        str(store), kind="codes", run_id="r", expected=["z"], receipts=[made],
        summary={"fingerprint": files.fingerprint},
    )  # fmt: skip
    assert versions.verify(str(store), sha256=content)["models"] == 1
    if damage == "json":
        (where / "model.json").unlink()
    elif damage == "tensors":
        (where / "model.safetensors").unlink()
    elif damage == "folder":
        shutil.rmtree(where)
    elif damage == "all":
        shutil.rmtree(where.parent)
    else:
        other.save(str(where))
    with pytest.raises(DamagedError, match=rf"copy the model.*\s.*{files.fingerprint}"):
        versions.verify(str(store), sha256=content)


def test_gc_beside_a_run_leaves_what_it_may_need(store: Path) -> None:
    old = store / "journal" / "w" / "1.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps([receipt(store, "orphan", 7).model_dump()]))
    os.utime(old, (OLD, OLD))
    receipt(store, "lost", 8)
    with runs.active(str(store), "encode"):
        found = garbage.collect(str(store), keep=1, older_than_days=-1, remove=True)
        assert found.versions == []
        assert found.files == ["data/lost.8.parquet"], "neither journals nor what they name"
        assert "encode (process" in found.live_runs[0]
    found = garbage.collect(str(store), keep=1, remove=True)
    assert (found.versions, len(found.files), list(found.live_runs)) == ([1, 2], 4, [])
    assert not list((store / "runs").iterdir())


def test_a_run_that_is_long_silent_counts_as_gone(store: Path) -> None:
    with runs.active(str(store), "encode") as mine:
        for path in (store / "runs").iterdir():
            os.utime(path, (OLD, OLD))
        assert not garbage.collect(str(store)).live_runs
        mine.beat()
        assert len(garbage.collect(str(store)).live_runs) == 1


def test_a_night_of_an_older_raypq_is_told_by_its_lease(store: Path) -> None:
    with lease.held(str(store)):
        assert "a nightly run" in garbage.collect(str(store), keep=1).live_runs[0]
    assert not garbage.collect(str(store), keep=1).live_runs


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"nonce": 1}', b"\xff"])
def test_a_mark_that_cannot_be_read_protects_all_the_same(
    store: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (store / "runs").mkdir()
    (store / "runs" / f"run-{'0' * 32}.json").write_bytes(content)
    assert garbage.collect(str(store), keep=1).versions == []
    assert "unreadable" in caplog.text
