"""Jobs that evaluate a feature space: few-shot learning and clusterability."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raypq.config.job import Columns, MonitoredJob, Seed
from raypq.config.places import InputFile, ModelFolder, Paths, Split
from raypq.config.settings import Positive

Space = Literal["raw", "mapped", "codes"]


def _space(given: dict[str, Any]) -> Space:
    return "raw" if given.get("model") is None else "mapped"


class ProbeJob(MonitoredJob):
    """Labelled rows, and the space to evaluate them in; runs in this process."""

    features: Paths = Field(description="labelled feature store; may be repeated")
    model: ModelFolder | None = Field(
        None, description="model directory; default: features as they are"
    )
    classes: InputFile | None = Field(None, description="class table, to choose classes by --split")
    split: Split = Field("all", description="classes to evaluate (as --candidates)")
    space: Space = Field(
        default_factory=_space,
        description="features as they are, as the model maps them, or as its codes give them back; "
        "default: mapped, or raw without a model",
    )
    seed: Seed = 0
    columns: Columns = Columns()


class FewShotJob(ProbeJob):
    """``raypq evaluate fewshot``."""

    verb: ClassVar[str] = "raypq evaluate fewshot"

    split: Split = Field("unseen", description="classes to evaluate (as --candidates)")
    ways: Annotated[int, Field(ge=2)] = Field(5, description="classes of an episode")
    shots: tuple[Positive, ...] = Field(
        (1, 5), description="examples of each class; may be repeated"
    )
    queries: Positive = Field(
        15, description="other images of each class to recognise in an episode, at most"
    )
    episodes: Positive = Field(600, description="episodes whose accuracies are averaged")


class ClusterabilityJob(ProbeJob):
    """``raypq evaluate clusterability``."""

    verb: ClassVar[str] = "raypq evaluate clusterability"

    restarts: Positive = Field(5, description="initialisations of k-means")
