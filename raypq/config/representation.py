"""Jobs that evaluate a feature space: few-shot learning and clusterability."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raypq.config.job import Columns, Job
from raypq.config.places import (
    InputFile,
    ModelFolder,
    Paths,
    Split,
)
from raypq.config.settings import Positive

Space = Literal["raw", "mapped", "codes"]


class ProbeJob(Job):
    """What is asked of a space of features: which rows, and in what space."""

    features: Paths
    model: ModelFolder | None = None
    classes: InputFile | None = None
    split: Split = "all"
    space: Space = "mapped"
    seed: Annotated[int, Field(ge=0)] = 0
    columns: Columns = Columns()


class FewShotJob(ProbeJob):
    """``raypq evaluate fewshot``."""

    split: Split = "unseen"
    ways: Annotated[int, Field(ge=2)] = 5
    shots: tuple[Positive, ...] = (1, 5)
    queries: Positive = Field(15, description="of each class in an episode, at most")
    episodes: Positive = 600


class ClusterabilityJob(ProbeJob):
    """``raypq evaluate clusterability``."""

    restarts: Positive = 5
