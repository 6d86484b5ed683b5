"""Stores that an older raypq wrote: every verb takes them up, and does nothing again.

``tests/stores/make.py`` says what they are and how they were made. A failure here means that an
upgrade would encode every store anew: mend the code, never the stores.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import raypq
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    DuplicatesJob,
    EncodeJob,
    ReindexJob,
    SearchJob,
)
from raypq.data.store import snapshot
from raypq.stages.stores import garbage, versions

STORES = Path(__file__).parents[2] / "stores"
COMMITS = sorted(path.name for path in STORES.iterdir() if path.is_dir() and path.name[0] != "_")
WHERE = ClusterSettings(cluster="none", workers=1)
VERSIONED = ("codes", "predictions", "predictions-calibrated", "predictions-unseen",
             "predictions-exact", "found", "found-filtered", "pairs", "night-codes",
             "night-predictions", "rolled-codes", "rolled-predictions")  # fmt: skip


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_stores", STORES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=COMMITS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The stores of a commit, in the place and with the times that they had."""
    root = tmp_path / "stores"
    shutil.copytree(STORES / request.param, root)
    maker().placed(root)
    return root


def content(store: Path) -> dict[str, str]:
    """Digests of everything that makes up a store; what runs leave beside it does not count."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("data", "snapshots", "models", "journal")
        for path in sorted((store / part).rglob("*"))
        if path.is_file()
    }


def encode(root: Path, output: str = "codes", **more: Any) -> Any:
    values = {"model": str(root / "model"), "features": [str(root / "features")]} | more
    return raypq.encode(EncodeJob(output=str(root / output), where=WHERE, **values))


def classify(root: Path, output: str, **more: Any) -> Any:
    values = {"codes": str(root / "codes"), "classes": str(root / "classes.parquet")} | more
    return raypq.classify(ClassifyJob(output=str(root / output), where=WHERE, **values))


def search(root: Path, output: str, **more: Any) -> Any:
    values = {"codes": str(root / "codes"), "queries": [str(root / "queries")]} | more
    return raypq.search(SearchJob(output=str(root / output), where=WHERE, **values))


def duplicates(root: Path, output: str) -> Any:
    job = DuplicatesJob(
        codes=str(root / "codes"), threshold=0.99, output=str(root / output), where=WHERE
    )
    return raypq.duplicates(job)


def reindex(root: Path, name: str, **more: Any) -> dict[str, Any]:
    values = {
        "model": str(root / "model"),
        "features": [str(root / "odd")],
        "codes": str(root / f"{name}-codes"),
        "classify": [
            {"classes": str(root / "classes.parquet"), "output": str(root / f"{name}-predictions")}
        ],
        "rollout": 0.34,
        "on_bad_shard": "quarantine",
        "where": WHERE,
    } | more
    return raypq.reindex(ReindexJob(**values))


RERUNS: dict[str, Callable[[Path], Any]] = {
    "codes": lambda root: encode(root),
    "predictions": lambda root: classify(root, "predictions"),
    "predictions-calibrated": lambda root: classify(
        root, "predictions-calibrated", calibration=0.25
    ),
    "predictions-unseen": lambda root: classify(
        root, "predictions-unseen", candidates="unseen", top_k=2
    ),
    "predictions-exact": lambda root: classify(
        root,
        "predictions-exact",
        codes=None,
        features=[str(root / "features")],
        model=str(root / "model"),
    ),
    "found": lambda root: search(root, "found"),
    "found-filtered": lambda root: search(
        root, "found-filtered", top_k=3, filter="label = 'c1'", distance="sdc", metric="l2"
    ),
    "pairs": lambda root: duplicates(root, "pairs"),
}


@pytest.mark.parametrize("store", sorted(RERUNS))
def test_a_rerun_has_nothing_to_do(old: Path, store: str, caplog: pytest.LogCaptureFixture) -> None:
    before = content(old / store)
    with caplog.at_level("INFO", logger="raypq"):
        found = RERUNS[store](old)
    assert found.version == 1
    assert "nothing to do" in caplog.text
    assert content(old / store) == before


def test_a_night_has_nothing_to_do(old: Path) -> None:
    stores = [old / "night-codes", old / "night-predictions"]
    before = [content(store) for store in stores]
    told = reindex(old, "night")
    assert told["nothing_to_do"]
    assert told["codes"]["quarantined"] == 1
    assert [content(store) for store in stores] == before


def test_a_roll_out_goes_on(old: Path) -> None:
    """One shard waits for the second model; the two that moved are not done again."""
    before = {item.shard: item for item in snapshot.read(str(old / "rolled-codes")).shards}
    first = json.loads((old / "model" / "model.json").read_text("utf-8"))["fingerprint"]
    waiting = {name for name, item in before.items() if item.model == first}
    told = reindex(old, "rolled", model=str(old / "unlike"))
    after = {item.shard: item for item in snapshot.read(str(old / "rolled-codes")).shards}
    assert len(waiting) == 1
    assert {name for name in after if after[name] != before[name]} == waiting
    assert told["rollout"] == {"done": 3, "of": 3, "share": 1.0}


def test_an_unfinished_run_is_taken_over(old: Path) -> None:
    before = {path.name for path in (old / "cut" / "data").iterdir()}
    version = encode(old, "cut")
    assert version.version == 1
    assert {path.name for path in (old / "cut" / "data").iterdir()} == before
    assert version.summary["worked"]["shards"] == 0
    assert not list((old / "cut" / "journal").rglob("*.json")), "it is in the version now"


@pytest.mark.parametrize("store", VERSIONED)
def test_its_versions_can_be_looked_at(old: Path, store: str) -> None:
    place = str(old / store)
    numbers = snapshot.versions(place)
    assert [line["version"] for line in versions.listing(place)] == numbers
    assert versions.show(place)["format"] == 1
    assert versions.diff(place, numbers[0])["removed"] == []
    for checked in (False, True):
        assert versions.verify(place, sha256=checked)["version"] == numbers[-1]
    before = content(old / store)
    found = garbage.collect(place, older_than_days=0, remove=True)
    assert (found.versions, found.files) == ([], [])
    assert content(old / store) == before


def test_an_old_version_can_be_restored(old: Path) -> None:
    place = str(old / "rolled-codes")
    made = versions.restore(place, 1)
    assert made.version == 3
    assert made.shards == snapshot.read(place, 1).shards
    told = reindex(old, "rolled", model=str(old / "model"))
    assert not told["codes"]["new"], "it was all done under this model"


def test_the_stores_hold_nothing_of_the_machine_that_made_them() -> None:
    for path in STORES.rglob("*.json"):
        text = path.read_text("utf-8")
        assert "/tmp/" not in text
        json.loads(text)
