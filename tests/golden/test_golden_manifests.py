"""A store whose receipts are in manifests still opens, with the same receipts.

``pytest tests/golden --regenerate-golden`` writes it anew: only when the format gets a new number.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raypq.data.store import manifest_tree, snapshot
from raypq.data.store.shard_stats import ShardStats, Spread
from raypq.data.store.shard_writer import Receipt, Source

FOLDER = Path(__file__).parent / "manifests"


def receipt(number: int, state: int = 0) -> Receipt:
    spread = Spread(mean=number / 7, std=0.1, q05=-1.5, q50=0.0, q95=1e-6)
    return Receipt(
        shard=f"part-{number:03d}", path=f"data/part-{number:03d}.{state:032x}.parquet",
        bytes=1000 + number, rows=10 * number, sha256=f"{number + 1000 * state:064x}",
        model=f"model-{number % 2}", work=f"work-{state}", ids="string" if number % 3 else None,
        source=Source(uri=f"s3://in/möwen {number}.parquet", size=number, modified=str(state),
                      sha256="ef" * 32 if number % 5 == 0 else None),
        stats=ShardStats(rows=4, error=spread, norm=spread, coded=4, entropy=number / 3)
        if number % 2
        else None,
    )  # fmt: skip


VERSIONS = [
    [receipt(number) for number in range(20)],
    [receipt(number, 1 if number == 7 else 0) for number in range(2, 21)],
]


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.config.getoption("--regenerate-golden"):
        shutil.rmtree(FOLDER, ignore_errors=True)
        monkeypatch.setattr(snapshot, "MOST_INLINE", 0)
        monkeypatch.setattr(manifest_tree, "_SMALL", 0)
        for receipts in VERSIONS:
            snapshot.commit(
                str(FOLDER), kind="codes", run_id="golden", receipts=receipts,
                expected=[item.shard for item in receipts], summary={"fingerprint": "model-1"},
            )  # fmt: skip
    return str(FOLDER)


def test_receipts_are_as_they_were_written(store: str) -> None:
    for number, receipts in enumerate(VERSIONS, start=1):
        version = snapshot.read(store, number)
        assert version.shards == tuple(receipts)
        assert version.rows == sum(item.rows for item in receipts)
    assert [(item.shards, item.removed) for item in version.shards.manifests] == [(20, 0), (2, 2)]


def test_no_key_of_a_root_is_new(store: str) -> None:
    """A key more keeps the raypq that wrote this store from reading a new one."""
    document: dict[str, Any] = json.loads(Path(store, snapshot.path_of(2)).read_text("utf-8"))
    assert document["format"] == 2
    assert document.keys() == {
        "format", "kind", "version", "parent", "nonce", "run_id", "created", "quarantined",
        "manifests", "totals", "summary",
    }  # fmt: skip
    assert document["totals"].keys() == {"shards", "rows", "bytes", "models"}
    assert all(
        item.keys() == {"path", "bytes", "sha256", "shards", "removed", "rows", "data_bytes",
                        "first", "last", "models"}
        for item in document["manifests"]
    )  # fmt: skip
