"""What Prometheus gets from a cluster, and what a client of it is told that cannot use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from raypq import api
from raypq.config import ClusterSettings, EncodeJob

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ONE = ClusterSettings(cluster="local", workers=1)


@pytest.fixture(scope="module", autouse=True)
def address() -> Iterator[str]:
    """A local Ray of two CPUs that this process is connected to; where its head is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "500")
        patch.setenv("RAY_AUTH_MODE", "token")
        import ray

        from raypq.distributed.cluster import connect

        with connect(ClusterSettings(cluster="local", workers=2)):
            yield str(ray.get_runtime_context().gcs_address)


def test_prometheus_gets_the_metrics(home: Any) -> None:
    import ray

    job = EncodeJob(model=home("old"), features=[home("features")], output=home("codes"), where=ONE)
    api.encode(job)
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    end = time.monotonic() + 120
    while found.get("raypq_shard_seconds_count", 0) < home.shards and time.monotonic() < end:
        time.sleep(0.5)
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = values_of(answer.read().decode(), stage="encode")
    assert found["raypq_images_total"] == 600
    assert found["raypq_bytes_read_total"] > 600 * 24 * 4 * 0.8
    assert found["raypq_shard_seconds_count"] == home.shards
    assert found["raypq_shard_seconds_sum"] > 0
    assert found["raypq_queue_depth"] == 0
    assert "raypq_workers" in found


def values_of(text: str, *, stage: str) -> dict[str, float]:
    """Values of raypq's metrics by name, without ``ray_``."""
    pattern = re.compile(rf'^ray_(raypq_\w+){{.*\bstage="{stage}".*}} (\S+)$', re.MULTILINE)
    return {name: float(value) for name, value in pattern.findall(text)}


def refused(words: list[str], **environment: str) -> tuple[str, float]:
    """stderr of a raypq command that must fail, and the seconds until it did."""
    env = {**os.environ, **environment}
    env.pop("RAY_ADDRESS", None)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "raypq", *words], env=env, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 8
    return done.stderr, time.monotonic() - start


Encode = Callable[[str], list[str]]


@pytest.fixture
def encode(home: Any) -> Encode:
    """The words of an encode on the cluster at an address."""
    return lambda address: [
        "encode", "--model", home("old"), "--features", home("features"),
        "--output", home("codes"), "--workers", "1", "--cluster", address,
    ]  # fmt: skip


def test_gpus_that_no_node_has_are_refused(address: str, encode: Encode) -> None:
    said, _ = refused([*encode(address), "--gpus-per-worker", "1"])
    assert "needs 1 CPU and 1 GPU, but no node has that" in said


def test_a_client_with_another_token_is_told(address: str, encode: Encode) -> None:
    said, _ = refused(encode(address), RAY_AUTH_TOKEN="wrong")
    assert "refused this client" in said
    assert "RAY_AUTH_TOKEN_PATH" in said


def test_a_client_without_a_token_is_told(address: str, encode: Encode) -> None:
    said, _ = refused(encode(address), RAY_AUTH_MODE="disabled")
    assert "refused this client" in said


def test_nodes_that_the_autoscaler_may_add_count() -> None:
    import ray
    from ray.core.generated import autoscaler_pb2

    from raypq.distributed.resources import ClusterError, check_resources

    settings = ONE.model_copy(update={"gpus_per_worker": 1.0})
    gcs = ray._private.worker.global_worker.gcs_client
    config = autoscaler_pb2.ClusterConfig()
    group = config.node_group_configs.add(name="gpu", max_count=0)
    group.resources.update({"CPU": 8, "GPU": 1})
    try:
        gcs.report_cluster_config(config.SerializeToString())
        with pytest.raises(ClusterError, match="no node has that"):
            check_resources(settings)  # a group that may have no nodes
        group.max_count = 4
        gcs.report_cluster_config(config.SerializeToString())
        check_resources(settings)
    finally:
        gcs.report_cluster_config(autoscaler_pb2.ClusterConfig().SerializeToString())


@contextmanager
def started_by(version: str) -> Iterator[None]:
    """The cluster's own notes say that this version of Ray started it."""
    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY as KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER as SPACE

    gcs = ray._private.worker.global_worker.gcs_client
    before = gcs.internal_kv_get(KEY, namespace=SPACE)
    changed = json.dumps({**json.loads(before), "ray_version": version}).encode()
    gcs.internal_kv_put(KEY, changed, overwrite=True, namespace=SPACE)
    try:
        yield
    finally:
        gcs.internal_kv_put(KEY, before, overwrite=True, namespace=SPACE)


def test_another_version_of_ray_is_named(address: str, encode: Encode) -> None:
    with started_by("2.49.1"):
        said, _ = refused(encode(address))
    assert "runs Ray 2.49.1" in said
    assert "ray job submit" in said


def test_another_version_of_raypq_is_named() -> None:
    from raypq.distributed.worker_actor import WorkerActor

    problem = WorkerActor("0.0.0", 1, "cpu", dict).ping()
    assert problem is not None
    assert problem.everywhere
    assert "the driver runs raypq 0.0.0, but the workers have" in problem.reason


def test_a_cluster_that_is_not_there_is_told_in_seconds(encode: Encode) -> None:
    said, seconds = refused(encode("127.0.0.1:1"))
    assert "cannot reach the Ray cluster at '127.0.0.1:1'" in said
    assert "ray status --address" in said
    assert seconds < 60  # most of it imports, on a machine that may be busy
