"""A night with nothing new over 10,000 shards takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypq.config import ReindexJob
from raypq.data.storage import Shard, list_shards
from raypq.data.store import snapshot
from raypq.data.store.shard_writer import Receipt, Source
from raypq.stages.classification.classify import ClassifyPlan
from raypq.stages.nightly.reindex import _classify_job
from raypq.stages.nightly.source_diff import encode_job
from raypq.stages.stores.work_id import encode_work

JOB = Path(__file__).resolve().parents[3] / "jobs" / "reindex.py"
SHARDS = 10_000


def links(folder: Path, file: Path, name: Callable[[int], str]) -> None:
    """One file under many names: as many entries to look at, without their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(SHARDS):
        os.link(file, folder / name(number))


def multiply(store: str, template: Receipt, shards: list[Shard], works: str) -> None:
    """A version of many shards that are all like one that was really made."""
    links(Path(store, "data"), Path(store, template.path), lambda n: f"s{n:05d}.many.parquet")
    receipts = [
        template.model_copy(
            update={
                "shard": shard.stem,
                "path": f"data/s{number:05d}.many.parquet",
                "source": Source.of(shard),
                "work": works,
            }
        )
        for number, shard in enumerate(shards)
    ]
    latest = snapshot.read(store)
    snapshot.commit(
        store, kind=latest.kind, run_id="many", expected=[item.shard for item in receipts],
        receipts=receipts, summary=latest.summary,
    )  # fmt: skip


@pytest.fixture
def many(home: Any) -> dict[str, Any]:
    """A nightly config over 10,000 shards, encoded and classified."""
    file = home.shard(0)
    config = {
        "model": home("old"),
        "features": [home("one")],
        "codes": home("codes"),
        "classify": {"classes": home("classes.parquet"), "output": home("predictions")},
        "where": {"cluster": "none", "workers": 1},
    }
    Path(home("one")).mkdir()
    os.link(file, home("one/part.parquet"))
    from raypq import api
    from raypq.methods import registry

    api.reindex(ReindexJob.parse(config))
    links(Path(home("many")), file, lambda n: f"part-{n:05d}.parquet")
    job = ReindexJob.parse(config | {"features": [home("many")]})
    work = encode_work(registry.load(job.model).fingerprint, encode_job(job))
    multiply(home("codes"), snapshot.read(home("codes")).shards[0], list_shards(job.features), work)
    plan = ClassifyPlan.make(_classify_job(job, job.classify[0]))
    template = snapshot.read(home("predictions")).shards[0]
    multiply(
        home("predictions"), template, [task.shard for task in plan.run.tasks],
        plan.run.tasks[0].work,
    )  # fmt: skip
    return config | {"features": [home("many")]}


@pytest.mark.parametrize("cluster", ["none", "local"])
def test_a_night_with_nothing_new(many: dict[str, Any], tmp_path: Path, cluster: str) -> None:
    """With Ray as without: it is not even started."""
    config = tmp_path / "nightly.yaml"
    config.write_text(
        yaml.safe_dump(many | {"where": {"cluster": cluster, "workers": 2}}), encoding="utf-8"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(JOB), "--config", str(config)], capture_output=True, text=True
    )
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert "nothing to do: everything is up to date" in done.stderr
    assert "ray" not in done.stderr.lower().replace("raypq", "")
    assert snapshot.versions(many["codes"]) == [1, 2]
    print(f"\n10,000 shards, nothing new, cluster {cluster}: {seconds:.1f} s")
