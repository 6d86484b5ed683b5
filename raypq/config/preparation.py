"""Jobs that prepare feature stores: repack, extract, split, import."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raypq.config.job import Columns, Job
from raypq.config.places import (
    MaybePaths,
    NewShards,
    Paths,
    Reads,
    Uri,
    Writes,
)
from raypq.config.settings import Positive, UserSettings


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


class ImportXlsa17Job(UserSettings):
    """``raypq import-xlsa17``."""

    source: Annotated[Uri, Reads("xlsa17")] = Field(
        description="folder of res101.mat and att_splits.mat"
    )
    output: Annotated[Uri, Writes("xlsa17")]
    rows: Positive = Field(5000, description="of a Parquet file")
