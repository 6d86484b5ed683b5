"""Jobs that prepare feature stores: repack, extract, split, import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from raypq.config.job import ClusterSettings, Columns, CpuJob, Job, OnBadShard, Seed
from raypq.config.option import Option
from raypq.config.places import (
    MaybePaths,
    NewShards,
    Paths,
    Reads,
    Uri,
    Writes,
)
from raypq.config.settings import Positive

_IMAGE = "image"  # column of an image store


class RepackJob(CpuJob):
    """``raypq repack``."""

    verb: ClassVar[str] = "raypq repack"

    features: Paths = Field(description="feature store: folder, file or glob; may be repeated")
    output: NewShards = Field(description="folder to write; shards keep their names")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="type of the features written"
    )
    overwrite: bool = Field(False, description="replace shards that are there already")
    on_bad_shard: OnBadShard = "fail"
    columns: Columns = Columns()


class ExtractJob(Job):
    """``raypq extract``."""

    verb: ClassVar[str] = "raypq extract"

    images: Paths = Field(
        description="folder, file or glob of encoded images (Parquet); may be repeated"
    )
    backbone: Annotated[Uri, Reads("backbone")] = Field(
        description="torchvision:NAME, timm:NAME, a TorchScript (.pt) or ONNX (.onnx) file, "
        "or a model directory"
    )
    output: NewShards = Field(description="folder to write; shards keep their names")
    mean: list[float] = Field(
        [0.485, 0.456, 0.406],
        min_length=3,
        max_length=3,
        description="mean of red, green and blue, subtracted from an image",
    )
    std: list[Annotated[float, Field(gt=0)]] = Field(
        [0.229, 0.224, 0.225],
        min_length=3,
        max_length=3,
        description="standard deviation of red, green and blue, by which they are divided",
    )
    on_bad_shard: OnBadShard = "fail"
    columns: Columns = Columns(feature=_IMAGE)
    where: ClusterSettings = ClusterSettings()

    @field_validator("columns", mode="before")
    @classmethod
    def _image_column(cls, value: Any) -> Any:
        return {"feature": _IMAGE, **value} if isinstance(value, Mapping) else value


class SplitJob(CpuJob):
    """``raypq split``."""

    verb: ClassVar[str] = "raypq split"

    protocol: Literal[1, 2]
    features: Paths = Field(description="labelled rows; may be repeated")
    test: MaybePaths = Field(
        default_factory=list, description="test rows, if stored apart; may be repeated"
    )
    output: Annotated[Uri, Writes("parts")] = Field(description="folder to write the parts below")
    labelled: Positive | None = Field(
        None, description="labelled rows per class, protocol 1; default: all"
    )
    queries: Annotated[int, Field(ge=0)] = Field(
        1000, description="number of query rows, protocol 1"
    )
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.75, description="share of the classes whose labels are known, protocol 2"
    )
    seed: Seed = 0
    columns: Columns = Columns()


class ImportXlsa17Job(Job):
    """``raypq import-xlsa17``."""

    verb: ClassVar[str] = "raypq import-xlsa17"

    source: Annotated[Uri, Reads("xlsa17"), Option(argument=True)] = Field(
        description="folder of res101.mat and att_splits.mat"
    )
    output: Annotated[Uri, Writes("xlsa17")] = Field(
        description="folder for the stores and the class table"
    )
    rows: Positive = Field(5000, description="rows per Parquet file")
