"""The job that encodes features."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raypq.config.images import (
    Backbone,
    Features,
    ImagesInstead,
    ImageSource,
    NetworkSettings,
)
from raypq.config.job import ClusterSettings, Columns, OnBadShard
from raypq.config.places import ModelFolder, NewStore
from raypq.config.settings import Precision

DuplicateIds = Annotated[
    Literal["report", "refuse", "ignore"],
    Field(
        description="action on ids that occur more than once, within or across shards: warn, fail "
        "without a version, or none"
    ),
]
ProjectionPrecision = Annotated[
    Precision,
    Field(
        description="precision of the projection; bf16 is faster, and the share of codes that it "
        "changes is reported"
    ),
]


class EncodeJob(ImageSource):
    """``raypq encode``."""

    verb: ClassVar[str] = "raypq encode"

    model: ModelFolder = Field(description="model directory")
    features: Features = Field(default_factory=list)
    images: ImagesInstead = Field(default_factory=list)
    backbone: Backbone = None
    output: NewStore = Field(description="code store to write a version of")
    precision: ProjectionPrecision = "fp32"
    duplicate_ids: DuplicateIds = "report"
    append: bool = Field(
        False,
        description="keep the shards of the last version that are not among these features, as "
        "they are; otherwise the new version holds these features alone",
    )
    on_bad_shard: OnBadShard = "fail"
    network: NetworkSettings = NetworkSettings()
    columns: Columns = Columns()
    where: ClusterSettings = ClusterSettings()
