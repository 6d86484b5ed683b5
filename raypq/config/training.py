"""Jobs that train models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from raypq.config.job import Columns, Job
from raypq.config.places import (
    InputFile,
    MaybePaths,
    NewFile,
    NewModel,
    Paths,
    Text,
)
from raypq.config.settings import Positive


class TrainJob(Job):
    """``raypq train``."""

    method: Text
    features: Paths
    unlabelled: MaybePaths = Field(default_factory=list)
    classes: InputFile | None = None
    output: NewModel
    settings: dict[str, Any] = Field(default_factory=dict)
    columns: Columns = Columns()
    cache_bytes: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="features are kept in the workers' memory up to this many bytes each; by "
        "default what a worker's memory leaves, 4 GiB at most",
    )
    tune: bool = False
    overwrite: bool = Field(False, description="replace a model that is there already")


class AblationJob(Job):
    """``raypq ablation``."""

    name: Text
    train: Paths
    test: MaybePaths = Field(default_factory=list)
    classes: InputFile
    seeds: Positive = 1
    queries: Positive = 1000
    labelled: Positive = Field(500, description="rows of each class that keep their label, GPQ")
    settings: dict[str, Any] = Field(default_factory=dict)
    columns: Columns = Columns()
    json_file: NewFile | None = None
