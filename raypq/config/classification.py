"""Jobs that classify codes or features and evaluate predictions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raypq.config.job import Columns, Job
from raypq.config.places import (
    InputFile,
    ModelFolder,
    NewModel,
    NewShards,
    NewStore,
    Paths,
    Reads,
    Split,
    Store,
    Text,
    Uri,
)
from raypq.config.settings import Metric, Positive, UserSettings

UnknownLabels = Annotated[
    Literal["report", "refuse"],
    Field(
        description="labels, and listed candidates, that the class table lacks: warn, or an error"
    ),
]


class ClassificationTarget(UserSettings):
    """What is asked of a store, and where the answers go: one section ``classify`` of a nightly
    job, whose predictions follow the codes, and part of a job of its own."""

    classes: InputFile
    candidates: Split = "all"
    top_k: Positive = 10
    metric: Metric | None = None
    calibration: float | Literal["model"] = 0.0
    unknown_labels: UnknownLabels = "report"
    output: NewStore


class ClassifyJob(Job, ClassificationTarget):
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


class AddClassesJob(Job):
    """``raypq add-classes``."""

    model: Annotated[Uri, Reads("model", in_place=True)]
    classes: InputFile
    output: NewModel
    overwrite: bool = Field(False, description="replace a model that is there already")


class InferSemanticsJob(Job):
    """``raypq infer-semantics``."""

    model: ModelFolder
    codes: Store
    version: Annotated[int, Field(ge=1)] | None = None
    classes: InputFile
    candidates: Split = "all"
    by: Literal["image", "label"] = "image"
    labels: tuple[Text, ...] = Field((), description="only images of these labels; default: all")
    top_k: Positive = 3
    tau: float = Field(0.0, ge=-1, le=1, description="similar from this cosine on")
    output: NewShards
