"""Checks of a job whose stores have a million shards make no object of each of their receipts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from raypq.checks import check_job
from raypq.config import NeighborsJob
from raypq.data.store import manifest, snapshot
from raypq.data.store.shard_writer import Receipt, Source
from raypq.monitoring.gauges import of_outcome
from raypq.monitoring.outcome import Outcome
from raypq.monitoring.results import version_summary

SHARDS = 20


@pytest.fixture
def codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A code store whose receipts are in a manifest; each of its files has ten bytes."""
    monkeypatch.setattr(snapshot, "MOST_INLINE", 0)
    store = tmp_path / "codes"
    (store / "data").mkdir(parents=True)
    receipts = [
        Receipt(
            shard=f"s{i:02d}", path=f"data/s{i:02d}.0.parquet", bytes=10, rows=5, sha256="0" * 64,
            model="m", work="w", source=Source(uri=f"/in/{i}", size=1, modified="1"),
        )
        for i in range(SHARDS)
    ]  # fmt: skip
    for item in receipts:
        (store / item.path).write_bytes(b"0123456789")
    snapshot.commit(
        str(store), kind="codes", run_id="r", expected=[item.shard for item in receipts],
        receipts=receipts, summary={"seconds": 1.0},
    )  # fmt: skip

    def refuse(columns: Any) -> NoReturn:
        raise AssertionError(f"objects are made of {len(columns)} receipts")

    monkeypatch.setattr(manifest, "receipts_of", refuse)
    return str(store)


def test_checks_and_reports_read_sums_and_columns(codes: str) -> None:
    job = NeighborsJob.parse(
        {"codes": codes, "output": codes, "where": {"cluster": "none", "workers": 1}}
    )
    found = {finding.subject: finding.found for finding in check_job(job)}
    assert found[f"codes: {codes}"] == "version 1, 100 rows"
    assert "a whole version takes about 2e-07 GB" in found["disk of output"]
    outcome = Outcome(job=job, began=datetime.now(UTC), seconds=1.0, passes={})
    gauges = {gauge.name: gauge for gauge in of_outcome(outcome)}
    assert [*gauges["raypq_store_bytes"].samples.values()] == [10 * SHARDS]
    summary = version_summary(snapshot.read(codes), codes)
    assert (summary["bytes"], summary["shards"]) == (10 * SHARDS, SHARDS)
