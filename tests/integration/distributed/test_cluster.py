"""Jobs through Ray's Job API, on a head with a token, as docs/operations.md says."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rayhead import RAY, RayHead, ray_head

from raypq import api
from raypq.config import ClusterSettings, TrainJob
from raypq.data import synthetic
from raypq.data.store import snapshot

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[3]
CLASSES, DX = 24, 32


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(cpus=2) as head:
        yield head


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated world: train, test, classes.parquet."""
    root = tmp_path_factory.mktemp("cluster")
    rng = np.random.default_rng(5)
    world = synthetic.SyntheticClasses.create(classes=CLASSES, dx=DX, da=16, rng=rng)
    synthetic.write_classes(root / "classes.parquet", world)
    for name, chosen in (("train", np.flatnonzero(world.seen)), ("test", np.arange(CLASSES))):
        synthetic.write_features(
            root / name, world, classes=chosen, images=600, shards=3, name=name, rng=rng
        )
    return root


def configs(place: Path, output: Path) -> dict[str, dict[str, Any]]:
    """The settings of jobs/configs with this place's paths in them, in the order of the work."""
    where = {"cluster": "auto", "workers": 1}
    paths = {
        "train": {
            "features": [str(place / "train")],
            "classes": str(place / "classes.parquet"),
            "output": str(output / "model"),
            "settings": {"M": 4, "K": 16, "iterations": 2},
            "tune": False,
        },
        "encode": {
            "model": str(output / "model"),
            "features": [str(place / "test")],
            "output": str(output / "codes"),
        },
        "classify": {
            "codes": str(output / "codes"),
            "classes": str(place / "classes.parquet"),
            "output": str(output / "predictions"),
            "calibration": 0.0,
        },
        "search": {
            "codes": str(output / "codes"),
            "queries": [str(place / "test")],
            "features": [str(place / "test")],
            "top_k": 5,
            "rerank": 10,
            "output": str(output / "neighbours"),
        },
        "reindex": {
            "model": str(output / "model"),
            "features": [str(place / "test")],
            "codes": str(output / "codes"),
            "classify": {
                "classes": str(place / "classes.parquet"),
                "output": str(output / "predictions"),
                "calibration": 0.0,
            },
            "deduplicate": {"metric": "l2", "threshold": 0.05, "output": str(output / "groups")},
        },
    }
    found = {}
    for name, changed in paths.items():
        example = yaml.safe_load((ROOT / "jobs" / "configs" / f"{name}.yaml").read_text())
        found[name] = {**example, **changed, "where": where}
    return found


Submit = Callable[[str, dict[str, Any]], str]


@pytest.fixture
def submit(head: RayHead, tmp_path: Path) -> Submit:
    """Runs a job of jobs/ by ``ray job submit --working-dir .``; its output."""

    def submit(name: str, config: dict[str, Any]) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [
            *RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--",
            "python", f"jobs/{name}.py", "--config", str(path), "--log-json",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        return done.stdout

    return submit


def trained(place: Path, output: Path) -> None:
    values = configs(place, output)["train"]
    job = TrainJob.parse(values).model_copy(update={"where": ClusterSettings(cluster="none")})
    api.train(job)


def test_a_job_runs_on_the_cluster(
    head: RayHead, submit: Submit, place: Path, tmp_path: Path
) -> None:
    """``encode``, on the nodes' own raypq, with structured log lines."""
    trained(place, tmp_path)
    said = submit("encode", configs(place, tmp_path)["encode"])
    version = snapshot.read(str(tmp_path / "codes"))
    assert version.rows == 600
    assert version.summary["run"]["settings"]["where"]["cluster"] == "auto"
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert any("encoded 600 images" in line.get("message", "") for line in lines), said
    assert lines[-1]["status"] == "done"
    assert lines[-1]["result"]["images"] == 600
    told = metrics(head)
    assert told["ray_raypq_shards_failed_total"] < 0.5  # it is there, at 0
    assert told["ray_raypq_shard_seconds_count"] == 3
    assert told["ray_raypq_worker_seconds_total"] > 0
    assert told["ray_raypq_images_total"] == 600


def metrics(head: RayHead) -> dict[str, float]:
    """The values of raypq's metrics of the stage ``encode`` that the head offers."""
    with urllib.request.urlopen(head.metrics, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("ray_raypq") and 'stage="encode"' in line]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in found}


@pytest.mark.slow
def test_every_job_runs_on_the_cluster(submit: Submit, place: Path, tmp_path: Path) -> None:
    made = configs(place, tmp_path)
    for name, config in made.items():
        said = submit(name, config)
    assert "nothing to do" in said, "reindex found what encode and classify had made"
    assert snapshot.read(str(tmp_path / "predictions")).rows == 600
    record = json.loads((tmp_path / "model" / "model.json").read_text())["record"]
    assert record["run"]["settings"]["method"] == "pqzsl"


def test_a_job_without_the_token_is_refused(head: RayHead) -> None:
    command = [*RAY, "job", "submit", "--address", head.dashboard, "--", "true"]
    environment = {**head.environment, "RAY_AUTH_TOKEN": "wrong"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode
    assert "Invalid authentication token" in done.stderr


def test_what_is_sent_along_is_the_jobs_alone(tmp_path: Path) -> None:
    """A raypq without compiled kernels must not go before the one that the nodes have."""
    import zipfile

    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "sent.zip", include_gitignore=True)
    names = {Path(name).parts[0] for name in zipfile.ZipFile(tmp_path / "sent.zip").namelist()}
    assert names == {"jobs"}
