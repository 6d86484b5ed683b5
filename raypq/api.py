"""The verbs as functions: open a crew, run the stage. The command line and jobs/ call these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raypq.config import ClassifyJob, ClusterSettings, EncodeJob, EvaluateJob, TrainJob
from raypq.data.snapshot import Snapshot
from raypq.stages.crew import Crew, LocalCrew
from raypq.stages.tally import Tally
from raypq.stages.train import Trained


@contextmanager
def open_crew(where: ClusterSettings) -> Iterator[Crew]:
    """Threads of this process (``none``), a local Ray, or the cluster at an address."""
    if where.cluster == "none":
        yield LocalCrew(where.workers, where.threads)
        return
    from raypq.distributed.pool import connect

    with connect(where) as crew:
        yield crew


def train(job: TrainJob) -> Trained:
    """Trains a model and saves it (``raypq train``)."""
    from raypq.stages import train as stage

    with open_crew(job.where) as crew:
        return stage.train(job, crew)


def encode(job: EncodeJob) -> Snapshot:
    """Turns features into a code store (``raypq encode``)."""
    from raypq.stages import encode as stage

    with open_crew(job.where) as crew:
        return stage.encode(job, crew)


def classify(job: ClassifyJob) -> tuple[Snapshot, Tally]:
    """Turns codes into predictions (``raypq classify``)."""
    from raypq.stages import classify as stage

    with open_crew(job.where) as crew:
        return stage.classify(job, crew)


def evaluate(job: EvaluateJob, where: ClusterSettings | None = None) -> dict[str, Any]:
    """Figures of a prediction store (``raypq evaluate classification``)."""
    from raypq.stages import evaluate as stage

    with open_crew(where or job.where) as crew:
        return stage.evaluate(job, crew)
