"""Settings that jobs share: where they run, and the columns that they read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from raypq.config.settings import Positive, UserSettings
from raypq.machine import usable

_START_TIMEOUT = 300.0

Name = Annotated[str, Field(min_length=1)]


class Columns(UserSettings):
    """Names of the columns in feature files."""

    id: Name = "id"
    feature: Name = "feature"
    label: Name = "label"
    width: Positive | None = Field(
        None, description="feature width; needed for fixed_size_binary where no model tells it"
    )
    image_size: Positive | None = Field(
        None, description="pixels on a side, where the feature column holds encoded images"
    )
    bad_images: int = Field(
        0, ge=0, description="undecodable images of one shard that are left out; more make it bad"
    )


def _workers(given: dict[str, Any]) -> int:
    return usable().workers(given.get("threads", 1))


class ClusterSettings(UserSettings):
    """Where the work runs."""

    cluster: Name = Field("local", description="none, local, or the address of a Ray cluster")
    threads: Positive = Field(1, description="CPU threads of one worker; also its num_cpus on Ray")
    workers: Positive = Field(
        default_factory=_workers,
        description="by default as many as the CPUs and the memory that this process may use allow",
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs that Ray keeps for a worker; a part of one shares it"
    )
    device: Literal["cpu", "cuda"] = "cpu"
    memory_per_worker: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="GiB of memory of one worker, which Ray keeps for it; by default the worker's "
        "part of its node, 5 GiB at most",
    )
    start_timeout: Annotated[float, Field(gt=0)] = Field(
        _START_TIMEOUT, description="seconds to wait for a first worker on Ray"
    )

    @field_validator("gpus_per_worker", "start_timeout")
    @classmethod
    def _heeded(cls, value: float, info: ValidationInfo) -> float:
        """Refuses what only Ray would heed."""
        ignored = {
            "gpus_per_worker": (0.0, "leave it out and name the device (--device cuda)"),
            "start_timeout": (_START_TIMEOUT, "leave it out"),
        }
        default, instead = ignored[str(info.field_name)]
        if info.data.get("cluster") == "none" and value != default:
            raise ValueError(
                f"is for Ray, and cluster 'none' is without: {instead}, or run on Ray "
                f"(--cluster local), found {value:g}"
            )
        return value


class Job(UserSettings):
    """What all jobs share."""

    where: ClusterSettings = ClusterSettings()
    on_bad_shard: Literal["fail", "quarantine"] = "fail"
