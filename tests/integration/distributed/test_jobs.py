"""The entry points of jobs/ run, and their example configs are valid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raypq.config import ClassifyJob, EncodeJob, ReindexJob, SearchJob, TrainJob, read_mapping
from raypq.methods import registry

JOBS = Path(__file__).resolve().parents[3] / "jobs"
CLASSES = {
    "train": TrainJob,
    "encode": EncodeJob,
    "classify": ClassifyJob,
    "search": SearchJob,
    "reindex": ReindexJob,
}


def test_every_job_has_an_example() -> None:
    assert {path.stem for path in JOBS.glob("*.py")} == set(CLASSES)
    assert {path.stem for path in (JOBS / "configs").glob("*.yaml")} == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_example_config_is_valid(name: str) -> None:
    job = CLASSES[name].parse(read_mapping(JOBS / "configs" / f"{name}.yaml"))
    if isinstance(job, TrainJob):
        registry.create(job.method, job.settings)


def test_jobs_run_the_main_path(generated: Path) -> None:
    """Train, encode, classify and search by their entry points, without Ray."""
    where = {"cluster": "none", "workers": 1}
    configs = {
        "train": {
            "method": "pqzsl",
            "features": [str(generated / "train")],
            "classes": str(generated / "classes.parquet"),
            "output": str(generated / "model"),
            "settings": {"M": 5, "K": 16},
        },
        "encode": {
            "model": str(generated / "model"),
            "features": [str(generated / "test")],
            "output": str(generated / "codes"),
        },
        "classify": {
            "model": str(generated / "model"),
            "codes": str(generated / "codes"),
            "classes": str(generated / "classes.parquet"),
            "output": str(generated / "predictions"),
        },
        "search": {
            "codes": str(generated / "codes"),
            "queries": [str(generated / "test" / "part-00000.parquet")],
            "top_k": 3,
            "output": str(generated / "neighbours"),
        },
    }
    for name, config in configs.items():
        path = generated / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**config, "where": where}), encoding="utf-8")
        done = _run(name, path)
        assert done.returncode == 0, done.stderr
    assert len(list((generated / "predictions" / "snapshots").glob("*.json"))) == 1
    # The nightly job takes all of it over, and finds nothing to do.
    reindex = {
        "model": str(generated / "model"),
        "features": [str(generated / "test")],
        "codes": str(generated / "codes"),
        "classify": {
            "classes": str(generated / "classes.parquet"),
            "output": str(generated / "predictions"),
        },
    }
    path = generated / "reindex.yaml"
    path.write_text(yaml.safe_dump({**reindex, "where": where}), encoding="utf-8")
    done = _run("reindex", path)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    (generated / "test" / "part-00001.parquet").unlink()
    assert "1 removed, 2 kept" in _run("reindex", path).stderr
    assert len(list((generated / "predictions" / "snapshots").glob("*.json"))) == 2


def test_a_bad_config_ends_with_two(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: m\nfeatures: [f]\noutput: o\nworkers: 3\n", encoding="utf-8")
    done = _run("encode", path)
    assert done.returncode == 2
    assert "unknown key 'workers'" in done.stderr
    assert "Traceback" not in done.stderr


def _run(name: str, config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / f"{name}.py"), "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """A small generated world: train, test, classes.parquet."""
    import numpy as np

    from raypq.data import synthetic

    rng = np.random.default_rng(5)
    world = synthetic.SyntheticClasses.create(classes=24, dx=32, da=16, rng=rng)
    synthetic.write_classes(tmp_path / "classes.parquet", world)
    for name, chosen in (("train", np.flatnonzero(world.seen)), ("test", np.arange(24))):
        synthetic.write_features(
            tmp_path / name, world, classes=chosen, images=600, shards=3, name=name, rng=rng
        )
    return tmp_path
