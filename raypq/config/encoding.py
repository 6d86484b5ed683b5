"""The job that encodes features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raypq.config.job import Columns, Job
from raypq.config.places import ModelFolder, NewStore, Paths
from raypq.config.settings import Precision

DuplicateIds = Annotated[
    Literal["report", "refuse", "ignore"],
    Field(description="ids that are there more than once, within a shard or across shards"),
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
