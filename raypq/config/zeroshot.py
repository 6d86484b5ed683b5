"""Jobs of zero-shot models: new classes, semantics, and what a space is worth."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raypq.config.job import Columns, Job
from raypq.config.places import (
    InputFile,
    ModelFolder,
    NewModel,
    NewShards,
    Paths,
    Reads,
    Split,
    Store,
    Text,
    Uri,
    Writes,
)
from raypq.config.settings import Positive, UserSettings


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


Space = Literal["raw", "mapped", "codes"]


class ProbeJob(Job):
    """What is asked of a space of features: which rows, and in what space."""

    features: Paths
    model: ModelFolder | None = None
    classes: InputFile | None = None
    split: Split = "all"
    space: Space = "mapped"
    seed: Annotated[int, Field(ge=0)] = 0
    columns: Columns = Columns()


class FewShotJob(ProbeJob):
    """``raypq evaluate fewshot``."""

    split: Split = "unseen"
    ways: Annotated[int, Field(ge=2)] = 5
    shots: tuple[Positive, ...] = (1, 5)
    queries: Positive = Field(15, description="of each class in an episode, at most")
    episodes: Positive = 600


class ClusterabilityJob(ProbeJob):
    """``raypq evaluate clusterability``."""

    restarts: Positive = 5


class ImportXlsa17Job(UserSettings):
    """``raypq import-xlsa17``."""

    source: Annotated[Uri, Reads("xlsa17")] = Field(
        description="folder of res101.mat and att_splits.mat"
    )
    output: Annotated[Uri, Writes("xlsa17")]
    rows: Positive = Field(5000, description="of a Parquet file")
