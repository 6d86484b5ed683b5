"""The work that is to be sized."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raypq.config import Job, Positive
from raypq.config.option import Option
from raypq.config.places import InputFile
from raypq.sizing.rates import Cost, Rate


class Workload(Job):
    """Sizes of the data, the model and the cluster. Names follow the legend."""

    verb: ClassVar[str] = "raypq plan"

    images: Positive = Field(description="images to encode")
    dims: Positive = Field(2048, description="feature width dx")
    classes: Positive = Field(1000, description="candidate classes T")
    M: Annotated[Positive, Option(names=("--sub-codebooks",))] = Field(
        50, description="M, the bytes of an image"
    )
    K: Annotated[int, Option(names=("--codewords",))] = Field(
        256, ge=1, le=256, description="K, codewords of a sub-codebook"
    )
    method: Literal["pqzsl", "pq", "opq"] = Field("pqzsl", description="method of training")
    train_images: Positive | None = Field(None, description="images to train on; default: all")
    train_classes: Positive | None = Field(None, description="seen classes L; default: all")
    attributes: Positive = Field(384, description="width of class embeddings")
    top_k: Positive = Field(10, description="classes per image")
    queries: Annotated[int, Field(ge=0)] = Field(
        0, description="number of queries of a search; default: no search"
    )
    results: Positive = Field(100, description="results per query")
    dtype: Literal["float32", "float16"] = Field("float32", description="type of the features")
    layout: Literal["list", "binary"] = Field(
        "list", description="of the features: as most tools write them, or as raypq repack does"
    )
    shard_images: Positive = Field(
        100_000, description="images of a feature file; one worker processes a file"
    )
    cache_bytes: Annotated[int, Option(names=("--cache-gb",), unit=2**30)] = Field(
        4 << 30,
        ge=0,
        description="features that a worker keeps in memory, in GiB (cache_bytes: in bytes); "
        "default: 4",
    )
    workers: Positive = Field(2, description="number of workers")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="workers that have a GPU")
    cluster: Literal["none", "ray"] = Field("ray", description="threads of one process, or Ray")
    bandwidth: Annotated[Rate | None, Option(unit=1e6)] = Field(
        None,
        description="storage bandwidth of a worker in MB/s (in a config file: bytes a second)",
    )
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


class PlanSettings(Workload):
    """``raypq plan``: a workload, the rates to size it with, and the form of the answer."""

    rates_file: Annotated[InputFile | None, Option(names=("--rates",))] = Field(
        None,
        description="result file of raypq bench rates, or a folder of them, of which the newest "
        "quiet one counts; default: this machine's newest quiet one, measured now if need be",
    )
    format: Literal["markdown", "json"] = Field("markdown", description="format of the output")
