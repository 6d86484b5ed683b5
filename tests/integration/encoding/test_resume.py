"""A rerun does only what is missing, and never less."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClassifyJob, ClusterSettings, EncodeJob, TrainJob
from raypq.data import synthetic
from raypq.data.storage import stem_of
from raypq.data.store import snapshot
from raypq.errors import ConfigError, InputError, JobError

WHERE = ClusterSettings(cluster="none", workers=1)
SHARDS = 6


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A trained model, features/ of six shards and classes.parquet."""
    rng = np.random.default_rng(3)
    world = synthetic.SyntheticClasses.create(classes=20, dx=24, da=12, rng=rng)
    synthetic.write_classes(tmp_path / "classes.parquet", world)
    for name, chosen in (("train", np.flatnonzero(world.seen)), ("features", np.arange(20))):
        synthetic.write_features(
            tmp_path / name, world, classes=chosen, images=600, shards=SHARDS, name=name, rng=rng
        )
    api.train(
        TrainJob(
            method="pqzsl",
            features=[str(tmp_path / "train")],
            classes=str(tmp_path / "classes.parquet"),
            output=str(tmp_path / "model"),
            settings={"M": 5, "K": 16, "iterations": 2, "polish": 1},
            where=WHERE,
        )
    )
    return tmp_path


def encode(place: Path, **more: object) -> snapshot.Snapshot:
    return api.encode(
        EncodeJob(
            model=str(place / "model"),
            features=[str(place / "features")],
            output=str(place / "codes"),
            where=WHERE,
            **more,
        )
    )


def classify(place: Path, output: str = "predictions", **more: object) -> snapshot.Snapshot:
    return api.classify(
        ClassifyJob(
            model=str(place / "model"),
            codes=str(place / "codes"),
            classes=str(place / "classes.parquet"),
            output=str(place / output),
            where=WHERE,
            **more,
        )
    )


def rewrite(place: Path, shard: int) -> None:
    """The same rows in another order."""
    path = place / "features" / f"part-{shard:05d}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(len(table))[::-1]), path)


def stem(place: Path, shard: int) -> str:
    return stem_of(str(place / "features" / f"part-{shard:05d}.parquet"))


def touch(place: Path, shard: int) -> None:
    """The same content with another time of change."""
    os.utime(place / "features" / f"part-{shard:05d}.parquet", (1, 1 + shard))


def paths(version: snapshot.Snapshot) -> dict[str, str]:
    return {receipt.shard: receipt.path for receipt in version.shards}


def test_a_second_run_does_nothing(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = encode(place)
    with caplog.at_level("INFO", logger="raypq"):
        assert encode(place) == first
    assert "nothing to do" in caplog.text
    assert snapshot.versions(str(place / "codes")) == [1]
    told = classify(place)
    assert classify(place) == told


def test_only_a_changed_shard_is_done_again(place: Path) -> None:
    first = paths(encode(place))
    before = classify(place)
    rewrite(place, 2)
    second = encode(place)
    changed = {shard for shard, path in paths(second).items() if first[shard] != path}
    assert changed == {stem(place, 2)}
    after = classify(place)
    moved = {shard for shard, path in paths(after).items() if paths(before)[shard] != path}
    assert moved == {stem(place, 2)}
    # The kept shards are counted too: the result is that of a run from nothing.
    assert after.summary["result"] == classify(place, "fresh").summary["result"]
    assert after.summary["result"]["rows"] == 600


def test_equal_codes_need_no_new_predictions(place: Path) -> None:
    first = encode(place)
    before = classify(place)
    touch(place, 2)
    second = encode(place)
    assert paths(second)[stem(place, 2)] != paths(first)[stem(place, 2)]
    assert classify(place) == before


def test_a_removed_shard_leaves_the_store(place: Path) -> None:
    encode(place)
    (place / "features" / "part-00005.parquet").unlink()
    second = encode(place)
    assert (second.version, len(second.shards)) == (2, SHARDS - 1)


def test_other_settings_are_other_work(place: Path) -> None:
    first = encode(place)
    second = encode(place, precision="bf16")
    assert not set(paths(first).values()) & set(paths(second).values())
    told = classify(place, top_k=3)
    assert classify(place, top_k=4).version == told.version + 1


def test_a_changed_class_table_is_other_work(place: Path) -> None:
    encode(place)
    first = classify(place)
    rng = np.random.default_rng(4)
    world = synthetic.SyntheticClasses.create(classes=20, dx=24, da=12, rng=rng)
    synthetic.write_classes(place / "classes.parquet", world)
    assert not set(paths(first).values()) & set(paths(classify(place)).values())


def test_after_a_bad_shard_only_it_is_done(place: Path) -> None:
    bad = place / "features" / "part-00003.parquet"
    good = bad.read_bytes()
    bad.write_bytes(good[:100])
    with pytest.raises(JobError, match=r"part-00003.*\n?.*"):
        encode(place)
    assert snapshot.versions(str(place / "codes")) == []
    finished = {path.name for path in (place / "codes" / "data").iterdir()}
    assert len(finished) >= SHARDS - 1
    bad.write_bytes(good)
    version = encode(place)
    assert len(version.shards) == SHARDS
    kept = {Path(path).name for path in paths(version).values()} & finished
    assert len(kept) == SHARDS - 1
    assert not list((place / "codes" / "journal").rglob("*.json"))


def test_a_quarantined_shard_is_tried_again(place: Path) -> None:
    bad = place / "features" / "part-00003.parquet"
    good = bad.read_bytes()
    bad.write_bytes(good[:100])
    first = encode(place, on_bad_shard="quarantine")
    assert [item.shard for item in first.quarantined] == [stem(place, 3)]
    bad.write_bytes(good)
    second = encode(place, on_bad_shard="quarantine")
    assert (len(second.shards), second.quarantined) == (SHARDS, ())


def test_a_lost_output_file_is_made_again(place: Path) -> None:
    first = encode(place)
    (place / "codes" / first.shards[0].path).unlink()
    second = encode(place)
    assert second.version == 2
    assert second.shards[0].sha256 == first.shards[0].sha256
    assert second.shards[1:] == first.shards[1:]


def test_a_damaged_journal_costs_only_time(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = place / "features" / "part-00003.parquet"
    good = bad.read_bytes()
    bad.write_bytes(b"PAR1")
    with pytest.raises(JobError):
        encode(place)
    bad.write_bytes(good)
    for path in (place / "codes" / "journal").rglob("*.json"):
        path.write_text(path.read_text()[:-20])
    with caplog.at_level("WARNING", logger="raypq"):
        assert len(encode(place).shards) == SHARDS
    assert "unreadable journal file" in caplog.text


def test_a_store_of_another_kind_is_refused(place: Path) -> None:
    encode(place)
    with pytest.raises(ConfigError, match="codes is the same place as the input codes"):
        classify(place, "codes")
    (place / "codes").rename(place / "other")
    encode(place)
    with pytest.raises(InputError, match="a store of predictions, found one of codes"):
        classify(place, "other")


def test_a_killed_driver_is_taken_over(place: Path) -> None:
    """kill -9 in the middle: what was written down is kept, nothing is lost or doubled."""
    config = place / "encode.json"
    job = {
        "model": str(place / "model"),
        "features": [str(place / "features")],
        "output": str(place / "codes"),
        "where": {"cluster": "none", "workers": 1},
    }
    config.write_text(json.dumps(job))
    slow = (
        "import sys, time\n"
        "from raypq import api\n"
        "from raypq.config import EncodeJob, read_mapping\n"
        "from raypq.data.store import journal\n"
        "from raypq.stages.encoding.encode import EncodeWorker\n"
        "journal._SECONDS = 0.0\n"
        "work = EncodeWorker.encode\n"
        "def slowly(self, task):\n"
        "    time.sleep(0.4)\n"
        "    return work(self, task)\n"
        "EncodeWorker.encode = slowly\n"
        "api.encode(EncodeJob(**read_mapping(sys.argv[1])))\n"
    )
    run = subprocess.Popen([sys.executable, "-c", slow, str(config)])
    folder = place / "codes" / "journal"
    deadline = time.monotonic() + 60
    while len(list(folder.rglob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert snapshot.versions(str(place / "codes")) == []
    finished = {path.name for path in (place / "codes" / "data").iterdir()}
    version = encode(place)
    assert version.rows == 600
    assert len(version.shards) == SHARDS
    kept = {Path(path).name for path in paths(version).values()} & finished
    assert len(kept) >= 2
