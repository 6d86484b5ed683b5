"""Jobs that encode, classify and judge, one after another or every night."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from raypq.config.job import Columns, Job
from raypq.config.places import InputFile, ModelFolder, NewStore, Paths, Split, Store
from raypq.config.settings import Metric, Positive, Precision, UserSettings

DuplicateIds = Annotated[
    Literal["report", "refuse", "ignore"],
    Field(description="ids that are there more than once, within a shard or across shards"),
]
UnknownLabels = Annotated[
    Literal["report", "refuse"],
    Field(
        description="labels, and listed candidates, that the class table lacks: warn, or an error"
    ),
]


class EncodeJob(Job):
    """``raypq encode``."""

    model: ModelFolder
    features: Paths
    output: NewStore
    precision: Precision = Field("fp32", description="of the projection; bf16 changes some codes")
    duplicate_ids: DuplicateIds = "report"
    append: bool = Field(
        False, description="keep the shards of the last version that are not among the features"
    )
    columns: Columns = Columns()


class Answers(UserSettings):
    """What is asked of a store, and where the answers go: one section ``classify`` of a nightly
    job, whose predictions follow the codes, and part of a job of its own."""

    classes: InputFile
    candidates: Split = "all"
    top_k: Positive = 10
    metric: Metric | None = None
    calibration: float | Literal["model"] = 0.0
    unknown_labels: UnknownLabels = "report"
    output: NewStore


class ClassifyJob(Job, Answers):
    """``raypq classify``: from codes, or exactly from features (no compression)."""

    model: ModelFolder | None = Field(
        None, description="needed for features; with codes a check, or each shard's own model"
    )
    codes: Store | None = None
    version: Annotated[int, Field(ge=1)] | None = None
    features: Paths | None = None
    columns: Columns = Columns()


class EvaluateJob(Job):
    """``raypq evaluate classification``."""

    predictions: Store
    version: Annotated[int, Field(ge=1)] | None = None
    classes: InputFile
    split: Split = "all"
    calibration: float | None = None
    unknown_labels: UnknownLabels = "report"


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
    classify: list[Answers] = Field(default_factory=list)
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
