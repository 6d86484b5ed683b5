"""The device that ``auto`` stands for, and those that are refused."""

from __future__ import annotations

import pytest
import torch

from raypq.config import ClusterSettings
from raypq.errors import ConfigError
from raypq.execution.devices import with_known_device


@pytest.mark.parametrize("cluster", ["local", "10.0.0.1:6379", "auto"])
@pytest.mark.parametrize(("gpus", "device"), [(0.0, "cpu"), (0.25, "cuda"), (2.0, "cuda")])
def test_on_ray_auto_follows_the_gpus_of_a_worker(cluster: str, gpus: float, device: str) -> None:
    where = ClusterSettings(cluster=cluster, gpus_per_worker=gpus, device="auto")
    assert with_known_device(where).device == device


def test_without_ray_auto_is_what_this_process_can_use() -> None:
    where = ClusterSettings(cluster="none", device="auto")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert with_known_device(where).device == expected


@pytest.mark.parametrize("cluster", ["local", "10.0.0.1:6379"])
def test_cuda_without_a_gpu_for_each_worker(cluster: str) -> None:
    where = ClusterSettings(cluster=cluster, device="cuda")
    with pytest.raises(ConfigError, match=r"needs a GPU for each worker|cannot be used here"):
        with_known_device(where)
    if cluster != "local":
        with pytest.raises(ConfigError, match=r"--gpus-per-worker 1.*0\.25"):
            with_known_device(where)
    given = where.model_copy(update={"gpus_per_worker": 1.0})
    assert with_known_device(given) == given
