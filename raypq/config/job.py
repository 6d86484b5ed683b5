"""Settings that jobs share: where they run, and the columns that they read."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from raypq.config.monitoring import MonitoringSettings
from raypq.config.option import Option
from raypq.config.settings import MAX_SECONDS, Positive, Threads, UserSettings, Workers
from raypq.machine import usable

_START_TIMEOUT = 300.0
_MAX_GIB = 1 << 20  # of memory
_MAX_GPUS = 1024

Name = Annotated[str, Field(min_length=1)]
Version = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, description="seed of the random numbers")]
Overwrite = Annotated[bool, Field(description="replace a model that is there already")]
OnBadShard = Annotated[
    Literal["fail", "quarantine"],
    Field(description="fail after all good shards are done, or leave bad ones out and record them"),
]


_ID, _LABEL = "column of the ids", "column of the labels, which are class_ids"


class Columns(UserSettings):
    """Names of the columns in feature files, and how to read the feature column."""

    id: Annotated[Name, Option(names=("--id-column",))] = Field("id", description=_ID)
    feature: Annotated[Name, Option(names=("--feature-column",))] = Field(
        "feature", description="column of the vectors, or of encoded images"
    )
    label: Annotated[Name, Option(names=("--label-column",))] = Field("label", description=_LABEL)
    width: Annotated[Positive | None, Option(names=("--feature-width",))] = Field(
        None,
        description="values of a vector stored as bytes (fixed_size_binary); default: the model's, "
        "where there is one",
    )
    image_size: Positive | None = Field(
        None,
        description="side of a square image in pixels, if the feature column holds encoded images",
    )
    bad_images: int = Field(
        0,
        ge=0,
        description="largest number of undecodable images that a shard may leave out",
    )


class ImageColumns(UserSettings):
    """Names of the columns of images, where they are only looked at."""

    id: Annotated[Name, Option(names=("--id-column",))] = Field("id", description=_ID)
    feature: Annotated[Name, Option(names=("--feature-column",))] = Field(
        "image", description="column of the encoded images"
    )
    label: Annotated[Name, Option(names=("--label-column",))] = Field("label", description=_LABEL)


def _workers(given: dict[str, Any]) -> int:
    return usable().workers(given.get("threads", 1))


class WorkerSettings(UserSettings):
    """Workers of a job that uses CPUs alone."""

    cluster: Name = Field("local", description="Ray cluster: none, local, or an address")
    threads: Threads = Field(1, description="CPU threads per worker; also its num_cpus on Ray")
    workers: Workers = Field(
        default_factory=_workers,
        description="number of workers; default: as CPUs and memory allow (raypq doctor)",
    )
    memory_per_worker: Annotated[float, Field(gt=0, le=_MAX_GIB)] | None = Field(
        None,
        description="memory per worker in GiB, which Ray reserves; default: its share of a node, 5 "
        "at most",
    )
    start_timeout: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = Field(
        _START_TIMEOUT, description="seconds to wait for the first worker on Ray"
    )

    @field_validator("start_timeout", "gpus_per_worker", check_fields=False)
    @classmethod
    def _refuse_without_ray(cls, value: float, info: ValidationInfo) -> float:
        """Refuses what only Ray uses where there is no Ray."""
        unused = {
            "gpus_per_worker": (0.0, "leave it out and name the device (--device cuda)"),
            "start_timeout": (_START_TIMEOUT, "leave it out"),
        }
        default, instead = unused[str(info.field_name)]
        if info.data.get("cluster") == "none" and value != default:
            raise ValueError(
                f"is for Ray, and cluster 'none' is without: {instead}, or run on Ray "
                f"(--cluster local), found {value:g}"
            )
        return value


class ClusterSettings(WorkerSettings):
    """Workers of a job, which may use GPUs."""

    gpus_per_worker: Annotated[float, Field(ge=0, le=_MAX_GPUS)] = Field(
        0.0, description="GPUs that Ray reserves per worker; a fraction, such as 0.5, shares one"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "cpu",
        description="device of a worker's computations; auto: cuda where each worker has a GPU",
    )

    @classmethod
    def of(cls, workers: WorkerSettings) -> ClusterSettings:
        """The same workers, without GPUs where they have none."""
        if isinstance(workers, ClusterSettings):
            return workers
        return cls(**{name: getattr(workers, name) for name in WorkerSettings.model_fields})

    def without_gpus(self) -> WorkerSettings:
        """The same workers for a job that uses CPUs alone."""
        return WorkerSettings(**{name: getattr(self, name) for name in WorkerSettings.model_fields})


class Job(UserSettings):
    """Base of all jobs; ``verb`` is the command that runs one."""

    verb: ClassVar[str] = ""


class MonitoredJob(Job):
    """A job with a result, which can be written to a file, and be reported as metrics."""

    monitoring: MonitoringSettings = MonitoringSettings()


class CpuJob(MonitoredJob):
    """A job whose workers use CPUs alone."""

    where: WorkerSettings = WorkerSettings()

    @field_validator("where")
    @classmethod
    def _refuse_gpus(cls, value: WorkerSettings) -> WorkerSettings:
        if isinstance(value, ClusterSettings) and (value.device != "cpu" or value.gpus_per_worker):
            raise ValueError(
                f"expected workers without GPUs, which {cls.verb} does not use, found device "
                f"{value.device!r} and {value.gpus_per_worker:g} GPUs for each"
            )
        return value
