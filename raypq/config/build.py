"""Jobs that make features ready and train models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raypq.config.job import Columns, Job
from raypq.config.places import (
    InputFile,
    MaybePaths,
    NewFile,
    NewModel,
    NewShards,
    Paths,
    Reads,
    Text,
    Uri,
    Writes,
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


class RepackJob(Job):
    """``raypq repack``."""

    features: Paths
    output: NewShards
    dtype: Literal["float32", "float16"] = "float32"
    columns: Columns = Columns()
    overwrite: bool = Field(False, description="write over shards that are there already")


class ExtractJob(Job):
    """``raypq extract``."""

    images: Paths
    backbone: Annotated[Uri, Reads("backbone")] = Field(
        description="torchvision:NAME, timm:NAME, a TorchScript (.pt) or ONNX (.onnx) file, "
        "or a model directory"
    )
    output: NewShards
    columns: Columns = Columns(feature="image")
    mean: list[float] = Field([0.485, 0.456, 0.406], min_length=3, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field(
        [0.229, 0.224, 0.225], min_length=3, max_length=3
    )


class SplitJob(Job):
    """``raypq split``."""

    protocol: Literal[1, 2]
    features: Paths
    test: MaybePaths = Field(default_factory=list)
    output: Annotated[Uri, Writes("parts")]
    labelled: Positive | None = Field(None, description="rows of each class; default: all")
    queries: Annotated[int, Field(ge=0)] = Field(1000, description="rows that ask, protocol 1")
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.75, description="of the classes whose labels are known, protocol 2"
    )
    seed: Annotated[int, Field(ge=0)] = 0
    columns: Columns = Columns()


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
