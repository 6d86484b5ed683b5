"""What an output says of the run that made it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.random import default_rng

from raypq import api, io_counters
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    Columns,
    EncodeJob,
    EvaluateJob,
    RepackJob,
    TrainJob,
)
from raypq.data import storage
from raypq.errors import InputError
from raypq.execution.local import LocalExecutor
from raypq.execution.run_record import RunRecord

JOB = EncodeJob(model="m", features=["f"], output="o")


class Task:
    def __init__(self, name: str) -> None:
        self.name = name


class SleepWorker:
    def sleep(self, task: Task) -> str:
        if task.name == "bad":
            raise InputError("bad", expected="x", found="y")
        if task.name == "broken":
            raise OSError("gone")
        time.sleep(0.2)
        return task.name


def test_phases_and_pools_are_measured() -> None:
    executor = LocalExecutor(2)
    record = RunRecord(JOB, executor)
    time.sleep(0.1)
    with executor.start_workers(SleepWorker, stage="sleep") as pool, record.observe(pool):
        tasks = [Task("a"), Task("b"), Task("bad"), Task("broken")]
        for result in pool.map(SleepWorker.sleep, tasks):
            if result.value:
                record.finished(10)
        record.end_of_work("sleep")
        time.sleep(0.1)
        record.lap("check")
    told = record.summary()
    assert list(told["seconds"]) == ["plan", "start", "sleep", "check", "finish"]
    seconds = told["seconds"]
    assert seconds["plan"] >= 0.1
    assert seconds["sleep"] >= 0.2
    assert seconds["check"] >= 0.1
    workers = told["workers"]
    assert workers["busy_seconds"] >= 0.4
    assert workers["utilisation"] == pytest.approx(
        workers["busy_seconds"] / (2 * seconds["sleep"]), abs=0.01
    )
    assert (workers["tasks"], workers["failed"], workers["retries"]) == (2, 2, 2)
    assert told["timeline"][-1][1] == 20
    assert told["settings"]["model"] == "m"
    assert {"python", "raypq", "numpy"} <= set(told["versions"])
    json.dumps(told)


def test_a_long_timeline_is_thinned_and_still_ends_at_the_end() -> None:
    record = RunRecord(JOB, LocalExecutor(1))
    for _ in range(12_345):
        record.finished(3)
    timeline = record.summary()["timeline"]
    assert 50 <= len(timeline) <= 201
    images = [images for _, images in timeline]
    assert images == sorted(images)
    assert images[-1] == 3 * 12_345


def test_the_meter_counts_the_columns_that_are_read(write: Callable[..., str]) -> None:
    X = default_rng(0).standard_normal((3000, 32)).astype("float32")
    uri = write("a.parquet", row_group=1000, id=list(range(3000)), feature=X, other=[1.5] * 3000)
    before = io_counters.read()
    with storage.open_parquet(uri) as file:
        list(storage.stream(file, 256, ["id", "feature"]))
    some = io_counters.read().since(before)
    assert some.images == 3000
    assert 0.8 * X.nbytes < some.bytes < storage.file_size(uri)
    with storage.open_parquet(uri) as file:
        list(storage.stream(file, 256))
    both = io_counters.read().since(before)
    assert both.images == 6000
    assert both.bytes > 2 * some.bytes
    assert both.bytes - some.bytes < storage.file_size(uri)


def test_every_output_has_its_summary(world: Any, tmp_path: Path, alone: ClusterSettings) -> None:
    model, codes, out = (str(tmp_path / name) for name in ("model", "codes", "predictions"))
    trained = api.train(
        TrainJob(
            method="pqzsl",
            features=[world.train],
            classes=world.classes,
            output=model,
            settings={"M": 4, "K": 16, "iterations": 2},
            where=alone,
        )
    )
    encoded = api.encode(EncodeJob(model=model, features=[world.test], output=codes, where=alone))
    classified = api.classify(
        ClassifyJob(codes=codes, classes=world.classes, output=out, where=alone)
    )
    fast = str(tmp_path / "fast")
    api.repack(RepackJob(features=[world.test], output=fast, columns=Columns(), where=alone))
    evaluated = api.evaluate(EvaluateJob(predictions=out, classes=world.classes, where=alone))
    stored = json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8"))
    runs = {
        "train": stored["record"]["run"],
        "encode": encoded.summary["run"],
        "classify": classified.summary["run"],
        "repack": json.loads((tmp_path / "fast" / "_repack.json").read_text())["run"],
        "evaluate": evaluated["run"],
    }
    assert trained.model.record["run"] == stored["record"]["run"]
    for name, run in runs.items():
        assert {name, "plan", "start"} <= set(run["seconds"]), name
        assert run["workers"]["utilisation"] > 0, name
        assert run["workers"]["images_read"] > 0, name
        assert run["workers"]["bytes_read"] > 0, name
        assert run["settings"]["where"]["cluster"] == "none", name
    assert runs["encode"]["workers"]["images_read"] == 120
    assert runs["encode"]["timeline"][-1][1] == 120
    assert runs["encode"]["workers"]["tasks"] == 2
