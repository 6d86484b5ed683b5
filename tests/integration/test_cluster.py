"""A cluster of its own: jobs through Ray's Job API, metrics, and what a client is told.

One head serves all of these, started as docs/operations.md says: with a token, on the loopback.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rayhead import RAY, RayHead, ray_head

from raypq import api
from raypq.config import ClusterSettings, TrainJob
from raypq.data import generate, snapshot

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
CLASSES, DX = 24, 32


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(cpus=2) as head:
        yield head


@pytest.fixture
def client(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> RayHead:
    """The head, and this process as a client that has its token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, head.environment[name])
    return head


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated world: train, test, classes.parquet."""
    root = tmp_path_factory.mktemp("cluster")
    rng = np.random.default_rng(5)
    world = generate.World.create(classes=CLASSES, dx=DX, da=16, rng=rng)
    generate.write_classes(root / "classes.parquet", world)
    for name, chosen in (("train", np.flatnonzero(world.seen)), ("test", np.arange(CLASSES))):
        generate.write_features(
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
        "reindex": {
            "model": str(output / "model"),
            "features": [str(place / "test")],
            "codes": str(output / "codes"),
            "classify": {
                "classes": str(place / "classes.parquet"),
                "output": str(output / "predictions"),
                "calibration": 0.0,
            },
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


def test_a_job_runs_on_the_cluster(submit: Submit, place: Path, tmp_path: Path) -> None:
    """``encode``, on the nodes' own raypq, with structured log lines."""
    trained(place, tmp_path)
    said = submit("encode", configs(place, tmp_path)["encode"])
    version = snapshot.read(str(tmp_path / "codes"))
    assert version.rows == 600
    assert version.summary["run"]["settings"]["where"]["cluster"] == "auto"
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert any("encoded 600 images" in line["message"] for line in lines), said


@pytest.mark.slow
def test_every_job_runs_on_the_cluster(submit: Submit, place: Path, tmp_path: Path) -> None:
    made = configs(place, tmp_path)
    for name, config in made.items():
        said = submit(name, config)
    assert "nothing to do" in said, "reindex found what encode and classify had made"
    assert snapshot.read(str(tmp_path / "predictions")).rows == 600
    record = json.loads((tmp_path / "model" / "model.json").read_text())["record"]
    assert record["run"]["settings"]["method"] == "pqzsl"


def test_what_is_sent_along_is_the_jobs_alone(tmp_path: Path) -> None:
    """A raypq without compiled kernels must not go before the one that the nodes have."""
    import zipfile

    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "sent.zip", include_gitignore=True)
    names = {Path(name).parts[0] for name in zipfile.ZipFile(tmp_path / "sent.zip").namelist()}
    assert names == {"jobs"}


def test_prometheus_gets_the_metrics(client: RayHead, place: Path, tmp_path: Path) -> None:
    trained(place, tmp_path)
    code = f"""
import sys, time
from raypq import api
from raypq.config import ClusterSettings, EncodeJob
where = ClusterSettings(cluster={client.address!r}, workers=1)
with api.open_crew(where):
    job = EncodeJob(model={str(tmp_path / "model")!r}, features=[{str(place / "test")!r}],
                    output={str(tmp_path / "codes")!r}, where=where)
    api.encode(job)
    print("done", flush=True)
    sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=client.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "done"
        found: dict[str, float] = {}
        end = time.monotonic() + 60
        while found.get("raypq_images_total", 0) < 600 and time.monotonic() < end:
            time.sleep(0.5)
            found = values_of(client.scrape(), stage="encode")
    finally:
        process.communicate("go\n", timeout=60)
    assert found["raypq_images_total"] == 600
    assert found["raypq_bytes_read_total"] > 600 * DX * 4 * 0.8
    assert found["raypq_shard_seconds_count"] == 3
    assert found["raypq_shard_seconds_sum"] > 0
    assert found["raypq_queue_depth"] == 0
    assert "raypq_workers" in found


def values_of(text: str, *, stage: str) -> dict[str, float]:
    """Values of raypq's metrics by name (without ``ray_``), of the driver that reported last."""
    pattern = re.compile(rf'^ray_(raypq_\w+){{.*\bstage="{stage}".*}} (\S+)$', re.MULTILINE)
    return {name: float(value) for name, value in pattern.findall(text)}


def run(head: RayHead, *words: str, **environment: str | None) -> tuple[str, float]:
    """stderr of a raypq command that must fail, and the seconds until it did."""
    env = {**head.environment, **{key: value for key, value in environment.items() if value}}
    for key, value in environment.items():
        if value is None:
            env.pop(key, None)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "raypq", *words], env=env, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr, time.monotonic() - start


@pytest.fixture
def encode_words(place: Path, tmp_path: Path, head: RayHead) -> list[str]:
    trained(place, tmp_path)
    return [
        "encode", "--model", str(tmp_path / "model"), "--features", str(place / "test"),
        "--output", str(tmp_path / "codes"), "--workers", "1", "--cluster", head.address,
    ]  # fmt: skip


def test_gpus_that_no_node_has_are_refused(head: RayHead, encode_words: list[str]) -> None:
    said, _ = run(head, *encode_words, "--gpus-per-worker", "1")
    assert "needs 1 CPU and 1 GPU, but no node has that" in said


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_client_without_the_token_is_told(
    head: RayHead, encode_words: list[str], tmp_path: Path, token: str | None
) -> None:
    mode = "token" if token else "disabled"
    said, _ = run(head, *encode_words, RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    assert "RAY_AUTH_TOKEN" in said, said


def test_nodes_that_the_autoscaler_may_add_count(client: RayHead) -> None:
    code = f"""
import ray
from ray.core.generated import autoscaler_pb2
from raypq.config import ClusterSettings
from raypq.distributed.pool import ClusterError, check_resources, connect
settings = ClusterSettings(cluster={client.address!r}, workers=1, gpus_per_worker=1.0)
def refused():
    try:
        check_resources(settings)
    except ClusterError:
        return True
with connect(settings):
    assert refused()
    config = autoscaler_pb2.ClusterConfig()
    group = config.node_group_configs.add(name="gpu", max_count=0)
    group.resources.update({{"CPU": 8, "GPU": 1}})
    gcs = ray._private.worker.global_worker.gcs_client
    gcs.report_cluster_config(config.SerializeToString())
    assert refused(), "a group that may have no nodes"
    group.max_count = 4
    gcs.report_cluster_config(config.SerializeToString())
    assert not refused()
    gcs.report_cluster_config(autoscaler_pb2.ClusterConfig().SerializeToString())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=client.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_another_version_of_ray_is_named(head: RayHead, encode_words: list[str]) -> None:
    """The cluster's notes are changed to say that it was started by an older Ray."""
    from ray._common.usage import usage_constants as names

    code = f"""
import json, ray, sys
from ray._private import ray_constants
from ray._raylet import GcsClient
client = GcsClient(address={head.address!r})
key, space = {names.CLUSTER_METADATA_KEY!r}, ray_constants.KV_NAMESPACE_CLUSTER
old = client.internal_kv_get(key, namespace=space)
changed = {{**json.loads(old), "ray_version": "2.49.1"}}
new = sys.stdin.read().encode() or json.dumps(changed).encode()
client.internal_kv_put(key, new, overwrite=True, namespace=space)
print(old.decode())
"""

    def change(to: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=head.environment, input=to, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    before = change("")
    try:
        said, _ = run(head, *encode_words)
    finally:
        change(before)
    assert "runs Ray 2.49.1" in said
    assert "ray job submit" in said
    assert len(said.strip().splitlines()) <= 5


def test_another_version_of_raypq_is_named() -> None:
    from raypq.distributed.seat import Seat

    refusal = Seat("0.0.0", 1, dict).ready()
    assert refusal is not None
    assert refusal.final
    assert "raypq 0.0.0 asks" in refusal.reason


def test_a_cluster_that_is_not_there_is_told_in_seconds(encode_words: list[str]) -> None:
    nowhere = RayHead(address="", dashboard="", metrics="", environment=dict(os.environ))
    place = encode_words.index("--cluster") + 1
    said, seconds = run(nowhere, *encode_words[:place], "127.0.0.1:1")
    assert "cannot reach the Ray cluster at '127.0.0.1:1'" in said
    assert "ray status --address" in said
    assert seconds < 30  # most of it imports, on a machine that may be busy
