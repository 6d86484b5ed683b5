"""The device of a job: what ``auto`` stands for, and devices that its workers cannot have."""

from __future__ import annotations

from raypq import kernels
from raypq.config import ClusterSettings
from raypq.errors import ConfigError


def with_known_device(where: ClusterSettings) -> ClusterSettings:
    """The same workers with ``cpu`` or ``cuda`` in place of ``auto``; all compute on one kind of
    device, so that a store holds no codes of two.

    On Ray a worker has a GPU if one is reserved for it; without Ray, if this process can use one.

    Raises:
        ConfigError: ``cuda`` on Ray without a GPU for each worker.
    """
    on_ray = where.cluster != "none"
    if where.device == "auto":
        has_gpu = where.gpus_per_worker > 0 if on_ray else kernels.cuda_available()
        return where.model_copy(update={"device": "cuda" if has_gpu else "cpu"})
    if where.device == "cuda" and on_ray and not where.gpus_per_worker:
        if where.cluster == "local":
            kernels.check_device("cuda")
        raise ConfigError(
            "device: cuda on Ray needs a GPU for each worker, which Ray reserves: "
            "--gpus-per-worker 1 (gpus_per_worker: 1 below where), or a part such as 0.25, so "
            "that several workers share one; found none"
        )
    return where
