"""Settings of jobs that hand the content of stores to people and to other tools."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raypq.config.job import CpuJob, Job
from raypq.config.places import InputFile, NewShards, NoPlace
from raypq.config.settings import Positive
from raypq.config.tools import LatestVersion, StoreArgument


class ExportJob(CpuJob):
    """``raypq export``."""

    verb: ClassVar[str] = "raypq export"

    store: StoreArgument
    version: LatestVersion = None
    format: Annotated[Literal["parquet", "jsonl", "npy", "lance"], NoPlace()] = Field(
        "parquet",
        description="format of the files; npy has the vectors of codes or features, and other "
        "columns in a Parquet file beside each",
    )
    output: NewShards = Field(description="folder to write")
    decode: bool = Field(False, description="decoded vectors instead of codes")
    classes: InputFile | None = Field(
        None, description="class table whose names are added to predictions"
    )


class PredictionsSettings(Job):
    """``raypq predictions``."""

    verb: ClassVar[str] = "raypq predictions"

    store: StoreArgument
    version: LatestVersion = None
    classes: InputFile | None = Field(None, description="class table with the names")
    id: Annotated[list[Annotated[str, NoPlace()]], Field(description="images to show")] = Field(
        default_factory=list
    )
    limit: Positive = Field(20, description="largest number of images to show")
