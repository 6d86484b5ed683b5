"""A night with nothing new costs what listings cost, not what the receipts of all shards would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import named_store
import pytest

from raypq.data.store import snapshot
from raypq.stages.stores import versions


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, named_store.__file__, *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def night(root: Path, *more: str) -> dict[str, Any]:
    return dict(json.loads(run("night", str(root), *more)))


def test_nights_over_shards_that_are_only_named(tmp_path: Path) -> None:
    run("make", str(tmp_path), "3000")
    store = str(tmp_path / "codes")
    idle = night(tmp_path)
    assert idle["nothing_to_do"]
    assert idle["shards"]["kept"] == 3000
    assert snapshot.versions(store) == [1]
    some = night(tmp_path, "5")
    assert (some["shards"]["new"], some["shards"]["kept"]) == (5, 3000)
    version = snapshot.read(store)
    assert [(item.shards, item.removed) for item in version.shards.manifests] == [(3000, 0), (5, 0)]
    assert night(tmp_path, "5")["nothing_to_do"]
    assert snapshot.versions(store) == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_shards(tmp_path: Path) -> None:
    run("make", str(tmp_path), "1000000")
    idle = night(tmp_path)
    assert idle["shards"]["kept"] == 1_000_000
    print(f"\n1,000,000 shards, nothing new: {idle['seconds']} s, {idle['MiB']} MiB")
    assert versions.listing(str(tmp_path / "codes"))[0]["shards"] == 1_000_000
    assert idle["MiB"] < 1500
