"""The nightly job, and when it reports drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from raypq.config.classification import ClassificationTarget
from raypq.config.encoding import DuplicateIds
from raypq.config.job import Columns, Job
from raypq.config.places import ModelFolder, NewStore, Paths
from raypq.config.settings import Precision, UserSettings


class DriftLimits(UserSettings):
    """How far a shard may be from the training data before it is called drifted."""

    error: Annotated[float, Field(ge=0)] = Field(0.25, description="rise of the relative error")
    norm: Annotated[float, Field(ge=0)] = Field(0.25, description="relative change, either way")
    entropy: Annotated[float, Field(ge=0)] = Field(0.5, description="bits lost")
    sigmas: Annotated[float, Field(ge=0)] = Field(
        4.0, description="standard deviations (of shards, and of a sample's mean) that are chance"
    )


class ReindexJob(Job):
    """``raypq reindex``: codes and predictions brought up to date with a feature store."""

    model: ModelFolder
    features: Paths
    codes: NewStore
    precision: Precision = "fp32"
    duplicate_ids: DuplicateIds = "report"
    columns: Columns = Columns()
    classify: list[ClassificationTarget] = Field(default_factory=list)
    compare: Literal["listing", "content"] = Field(
        "listing", description="content keeps a shard that was touched but holds the same bytes"
    )
    max_removed: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="a source that lost a larger share of its shards is refused"
    )
    rollout: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of all shards that a night moves to another model or settings"
    )
    drift: DriftLimits = DriftLimits()
    fail_on_drift: bool = False
    fail_on_quarantined: bool = Field(
        False, description="an error, after the commit, where shards are left out"
    )
    lease_seconds: Annotated[float, Field(ge=1)] = Field(
        60.0, description="a run without a sign of life for so long counts as crashed"
    )
    dry_run: bool = False

    @field_validator("classify", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value
