"""What jobs share: where they run, and the columns that they read."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from raypq.config.settings import Positive, UserSettings

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


class ClusterSettings(UserSettings):
    """Where the work runs."""

    cluster: Name = Field("local", description="none, local, or the address of a Ray cluster")
    workers: Positive = Field(default_factory=lambda: max(1, os.cpu_count() or 1))
    threads: Positive = Field(1, description="CPU threads of one worker; also its num_cpus on Ray")
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    device: Literal["cpu", "cuda"] = "cpu"


class Job(UserSettings):
    """What all jobs share."""

    where: ClusterSettings = ClusterSettings()
    on_bad_shard: Literal["fail", "quarantine"] = "fail"
