"""Clusters with and without tokens, joined from a machine that has a token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

_JOBS = """
import os
import sys

from ray._raylet import Config
from ray.cluster_utils import Cluster

from raypq.config import ClusterSettings
from raypq.distributed.cluster import ClusterError, connect
from test_tokens import Job, Worker

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
mode = os.environ.get("CLIENT_AUTH_MODE")
if mode:
    os.environ["RAY_AUTH_MODE"] = mode
    Config.initialize("")
places = sys.argv[1].split(",")
for place in places:
    address = cluster.address if place == "cluster" else place
    try:
        with connect(ClusterSettings(cluster=address, workers=1)) as executor:
            with executor.start_workers(Worker, stage="test") as pool:
                print(*(result.value for result in pool.map(Worker.double, [Job("a"), Job("b")])))
    except ClusterError as error:
        print("refused:", error)
    assert os.environ.get("RAY_AUTH_MODE") == mode, "the mode of this process is as before"
cluster.shutdown()
"""


class Job:
    def __init__(self, name: str) -> None:
        self.name = name


class Worker:
    def double(self, job: Job) -> str:
        return job.name * 2


def run(places: str, **environment: str) -> str:
    """Output of one process that starts a cluster and joins what ``places`` names, in order."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    env |= {"RAY_raylet_start_wait_time_s": "280", "RAY_health_check_timeout_ms": "60000"}
    env |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", _JOBS, places]
    done = subprocess.run(command, env=env | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_an_open_cluster_after_a_local_one_that_uses_tokens() -> None:
    """A local Ray makes a token and uses it; a cluster without tokens is joined without it."""
    assert run("local,cluster", RAY_AUTH_TOKEN="0" * 64).splitlines() == ["aa bb"] * 2


def test_tokens_that_only_the_client_uses_are_refused() -> None:
    said = run("cluster,local", RAY_AUTH_TOKEN="0" * 64, CLIENT_AUTH_MODE="token").splitlines()
    assert "runs without tokens" in said[0]
    assert "unset RAY_AUTH_MODE" in said[0]
    assert said[1] == "aa bb"
