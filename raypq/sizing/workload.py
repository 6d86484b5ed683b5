"""The work that is to be sized."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raypq.config import Positive, UserSettings
from raypq.sizing.rates import Cost, Rate


class Workload(UserSettings):
    """What is to be done, and by whom. Names follow the legend."""

    images: Positive
    dims: Positive = Field(2048, description="feature width dx")
    classes: Positive = Field(1000, description="candidate classes T")
    M: Positive = Field(50, description="sub-codebooks")
    K: int = Field(256, ge=1, le=256)
    method: Literal["pqzsl", "pq", "opq"] = "pqzsl"
    train_images: Positive | None = Field(None, description="default: all images")
    train_classes: Positive | None = Field(None, description="seen classes L; default: classes")
    attributes: Positive = Field(384, description="width of class embeddings")
    top_k: Positive = 10
    queries: Annotated[int, Field(ge=0)] = Field(0, description="of a search; 0: no search")
    results: Positive = Field(100, description="of a query")
    dtype: Literal["float32", "float16"] = "float32"
    layout: Literal["list", "binary"] = "list"
    shard_images: Positive = Field(100_000, description="images in one feature file")
    cache_bytes: Annotated[int, Field(ge=0)] = 4 << 30
    workers: Positive = 2
    gpus: Annotated[int, Field(ge=0)] = 0
    cluster: Literal["none", "ray"] = "ray"
    bandwidth: Rate | None = Field(None, description="bytes a second that storage gives a worker")
    worker_hour: Cost = Field(0.0, description="price of a worker for an hour")
    gpu_hour: Cost = Field(0.0, description="price of a GPU for an hour")

    @property
    def L(self) -> int:
        """Training classes."""
        return self.train_classes or self.classes

    @property
    def D(self) -> int:
        """Width of the common space: L (pqzsl) or dx, rounded up to a multiple of M."""
        return -(-(self.L if self.method == "pqzsl" else self.dims) // self.M) * self.M

    @property
    def feature_bytes(self) -> int:
        """Bytes of one image's features."""
        return self.dims * (4 if self.dtype == "float32" else 2)
