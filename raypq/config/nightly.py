"""The nightly job, and when it reports drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from raypq.config.classification import ClassificationTarget
from raypq.config.encoding import DuplicateIds, ProjectionPrecision
from raypq.config.images import (
    Backbone,
    Features,
    ImagesInstead,
    ImageSource,
    NetworkSettings,
)
from raypq.config.job import ClusterSettings, Columns, OnBadShard
from raypq.config.option import Option
from raypq.config.places import ModelFolder, NewStore
from raypq.config.retrieval import DeduplicationTarget
from raypq.config.settings import MAX_SECONDS, UserSettings


class DriftLimits(UserSettings):
    """How far a shard may be from the training data before it is called drifted."""

    error: Annotated[float, Field(ge=0)] = Field(
        0.25, description="largest rise of the relative quantization error"
    )
    norm: Annotated[float, Field(ge=0)] = Field(
        0.25, description="largest relative change of the mean norm"
    )
    entropy: Annotated[float, Field(ge=0)] = Field(
        0.5, description="largest loss of code entropy, in bits"
    )
    sigmas: Annotated[float, Field(ge=0)] = Field(
        4.0, description="standard deviations that a change must exceed to count as drift"
    )


class ReindexJob(ImageSource):
    """``raypq reindex``: codes, predictions and groups of near-duplicates brought up to date with a
    feature store."""

    verb: ClassVar[str] = "raypq reindex"

    model: ModelFolder = Field(description="model directory")
    features: Features = Field(default_factory=list)
    images: ImagesInstead = Field(default_factory=list)
    backbone: Backbone = None
    codes: NewStore = Field(description="code store to write a version of")
    precision: ProjectionPrecision = "fp32"
    duplicate_ids: DuplicateIds = "report"
    classify: Annotated[list[ClassificationTarget], Option(file_only=True)] = Field(
        default_factory=list, description="prediction store to keep up to date; may be repeated"
    )
    deduplicate: Annotated[list[DeduplicationTarget], Option(file_only=True)] = Field(
        default_factory=list,
        description="store of groups of near-duplicates to keep up to date; may be repeated",
    )
    compare: Literal["listing", "content"] = Field(
        "listing",
        description="test for a changed shard; content keeps a shard with another time "
        "that holds the same bytes",
    )
    max_removed: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="largest share of the shards that may be gone from the source"
    )
    rollout: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of all shards that one run may move to another model or settings"
    )
    drift: Annotated[DriftLimits, Option(prefix="drift-")] = DriftLimits()
    fail_on_drift: bool = Field(
        False,
        description="exit status 1 if new shards drifted; the version is committed all the same",
    )
    fail_on_quarantined: bool = Field(
        False, description="exit status 1 if shards are left out; all others are committed"
    )
    lease_seconds: Annotated[float, Field(ge=1, le=MAX_SECONDS)] = Field(
        60.0, description="seconds without a heartbeat after which a run counts as crashed"
    )
    dry_run: bool = Field(False, description="print the plan and its estimated time; do nothing")
    on_bad_shard: OnBadShard = Field(
        "fail",
        description="fail after all good shards are done (and try those that are left out), or "
        "leave bad ones out and record them",
    )
    network: NetworkSettings = NetworkSettings()
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()

    @field_validator("classify", "deduplicate", mode="before")
    @classmethod
    def _list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value
