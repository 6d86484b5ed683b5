"""Sidecars are named by versions, checked where they are read, and kept by gc as long as named."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from raypq.data.store import sidecars, snapshot
from raypq.data.store.sidecars import Sidecar
from raypq.errors import InputError
from raypq.stages.stores import garbage, versions

OLD = time.time() - 8 * 86_400


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def made(store: str, content: bytes = b"{}") -> Sidecar:
    with sidecars.create(store, "counts", "json") as draft:
        draft.file.write(content)
        draft.about["entries"] = len(content)
    sidecar = draft.sidecar()
    os.utime(Path(store) / sidecar.path, (OLD, OLD))
    return sidecar


def commit(store: str, *items: Sidecar, **more: Any) -> snapshot.Snapshot:
    summary = {**sidecars.as_summary({"counts": items}), **more}
    return snapshot.commit(
        store, kind="codes", run_id="r", expected=[], receipts=[], summary=summary
    )


def test_what_was_written_is_read(store: str) -> None:
    sidecar = made(store, b"what was counted")
    commit(store, sidecar)
    found = snapshot.read(store)
    assert found.sidecars(store) == {"counts": [sidecar]}
    assert found.files(store) == {sidecar.path}
    assert sidecars.read(store, sidecar) == b"what was counted"
    assert sidecar.about == {"entries": 16}
    assert "sidecars" not in commit(store).summary, "a version without any says nothing"


def test_nothing_is_left_of_one_that_was_not_finished(store: str) -> None:
    def half() -> None:
        with sidecars.create(store, "counts", "json") as draft:
            draft.file.write(b"half")
            raise RuntimeError("something went wrong on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        half()
    assert os.listdir(Path(store) / "sidecars") == []


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_damage_is_named(store: str, damage: str) -> None:
    sidecar = made(store, b"what was counted")
    commit(store, sidecar)
    versions.verify(store, sha256=True)
    path = Path(store) / sidecar.path
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"what" if damage == "short" else b"what was Counted")
    with pytest.raises(InputError, match="counts-"):
        sidecars.read(store, sidecar)
    with pytest.raises(InputError, match="counts-"):
        versions.verify(store, sha256=True)


@pytest.mark.parametrize(
    "path",
    [
        "../counts-00000000000000000000000000000000.json",
        "sidecars/../../counts-00000000000000000000000000000000.json",
        "/sidecars/counts-00000000000000000000000000000000.json",
        "data/counts-00000000000000000000000000000000.json",
        "sidecars/counts-00000000000000000000000000000000.json\n",
        "sidecars/counts.json",
        "",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(store: str, path: str) -> None:
    sidecar = made(store)
    commit(store, sidecar)
    place = Path(store) / "snapshots" / f"{1:020d}.json"
    document = json.loads(place.read_text())
    document["summary"]["sidecars"]["counts"][0]["path"] = path
    place.write_text(json.dumps(document))
    for verb in (snapshot.read, garbage.collect):
        with pytest.raises(InputError, match=r"summary\.sidecars"):
            verb(store)


@pytest.mark.parametrize("noted", [7, {"counts": 7}, {"counts": [{}]}, ["counts"]])
def test_what_cannot_be_read_is_refused(store: str, noted: Any) -> None:
    commit(store, sidecars=noted)
    with pytest.raises(InputError, match=r"summary\.sidecars"):
        snapshot.read(store)


def test_a_folder_that_is_a_link_is_refused(store: str, tmp_path: Path) -> None:
    sidecar = made(store)
    commit(store, sidecar)
    (Path(store) / "sidecars").rename(tmp_path / "elsewhere")
    (Path(store) / "sidecars").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="inside the store"):
        snapshot.read(store)


def test_gc_keeps_those_of_retained_versions(store: str) -> None:
    first, second, orphan = made(store), made(store), made(store)
    commit(store, first)
    commit(store, second)
    assert garbage.collect(store).files == [orphan.path]
    assert set(garbage.collect(store, keep=1).files) == {first.path, orphan.path}
    garbage.collect(store, keep=1, remove=True)
    assert os.listdir(Path(store) / "sidecars") == [Path(second.path).name]
    versions.verify(store, sha256=True)


def test_restore_keeps_them_where_they_are_there(store: str) -> None:
    first, second = made(store), made(store)
    commit(store, first)
    commit(store, second)
    assert versions.restore(store, 1).sidecars(store) == {"counts": [first]}
    (Path(store) / second.path).unlink()
    assert versions.restore(store, 2).sidecars(store) == {}
    versions.verify(store)
