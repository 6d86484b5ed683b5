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

from ray._raylet import Config
from ray.cluster_utils import Cluster

from raypq.config import ClusterSettings
from raypq.distributed.cluster import ClusterError, connect
from test_tokens import Job, Worker


def run(address):
    mode = os.environ.get("RAY_AUTH_MODE")
    try:
        with connect(ClusterSettings(cluster=address, workers=1)) as executor:
            with executor.start_workers(Worker, stage="test") as pool:
                print(*(result.value for result in pool.map(Worker.double, [Job("a"), Job("b")])))
    except ClusterError as error:
        print("refused:", error)
    assert os.environ.get("RAY_AUTH_MODE") == mode, "the mode of this process is as before"


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
run("local")
run(cluster.address)
os.environ["RAY_AUTH_MODE"] = "token"
Config.initialize("")
run(cluster.address)
cluster.shutdown()
"""


class Job:
    def __init__(self, name: str) -> None:
        self.name = name


class Worker:
    def double(self, job: Job) -> str:
        return job.name * 2


def test_an_open_cluster_is_joined_without_the_token_of_a_local_one() -> None:
    """A local Ray makes a token and uses it. Where the client insists on tokens, it is refused."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    env |= {"RAY_raylet_start_wait_time_s": "280", "RAY_health_check_timeout_ms": "60000"}
    env |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    env |= {"RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-c", _JOBS]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    local, cluster, insisting = done.stdout.splitlines()
    assert (local, cluster) == ("aa bb", "aa bb")
    assert "runs without tokens" in insisting
    assert "unset RAY_AUTH_MODE" in insisting
