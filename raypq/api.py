"""The verbs as functions: open a crew, run the stage. The command line and jobs/ call these."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

from raypq import console
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    EncodeJob,
    EvaluateJob,
    Job,
    ReindexJob,
    RepackJob,
    TrainJob,
    read_mapping,
)
from raypq.data.snapshot import Snapshot
from raypq.errors import RaypqError
from raypq.stages.crew import Crew, Gang, LocalCrew, Worker
from raypq.stages.train import Trained

J = TypeVar("J", bound=Job)


@contextmanager
def open_crew(where: ClusterSettings) -> Iterator[Crew]:
    """Threads of this process (``none``), a local Ray, or the cluster at an address."""
    if where.cluster == "none":
        yield LocalCrew(where.workers, where.threads)
        return
    from raypq.distributed.pool import connect

    with connect(where) as crew:
        yield crew


class _OnDemand:
    """A crew that is called together by the first hire: to do nothing, Ray need not start."""

    def __init__(self, where: ClusterSettings, stack: ExitStack) -> None:
        self.workers = where.workers
        self._where, self._stack = where, stack
        self._crew: Crew | None = None

    def hire(self, make: Callable[..., Worker], *args: Any) -> AbstractContextManager[Gang]:
        if self._crew is None:
            self._crew = self._stack.enter_context(open_crew(self._where))
        return self._crew.hire(make, *args)


@contextmanager
def _crew_on_demand(where: ClusterSettings) -> Iterator[Crew]:
    with ExitStack() as stack:
        yield _OnDemand(where, stack)


def train(job: TrainJob) -> Trained:
    """Trains a model and saves it (``raypq train``)."""
    from raypq.stages import train as stage

    with open_crew(job.where) as crew:
        return stage.train(job, crew)


def repack(job: RepackJob) -> dict[str, Any]:
    """Rewrites a feature store to the layout that reads fastest (``raypq repack``)."""
    from raypq.stages import repack as stage

    with open_crew(job.where) as crew:
        return stage.repack(job, crew)


def encode(job: EncodeJob) -> Snapshot:
    """Turns features into a code store (``raypq encode``)."""
    from raypq.stages import encode as stage

    with _crew_on_demand(job.where) as crew:
        return stage.encode(job, crew)


def classify(job: ClassifyJob) -> Snapshot:
    """Turns codes into predictions (``raypq classify``)."""
    from raypq.stages import classify as stage

    with _crew_on_demand(job.where) as crew:
        return stage.classify(job, crew)


def reindex(job: ReindexJob) -> dict[str, Any]:
    """Brings codes and predictions up to date with a feature store (``raypq reindex``)."""
    from raypq.stages import reindex as stage

    with _crew_on_demand(job.where) as crew:
        return stage.reindex(job, crew)


def evaluate(job: EvaluateJob, where: ClusterSettings | None = None) -> dict[str, Any]:
    """Figures of a prediction store (``raypq evaluate classification``)."""
    from raypq.stages import evaluate as stage

    with open_crew(where or job.where) as crew:
        return stage.evaluate(job, crew)


def report(places: Sequence[str], output: str, *, title: str = "raypq report") -> int:
    """One HTML page of what result files, models and stores tell (``raypq report``).

    Args:
        places: result files (JSON), models, stores, or folders of them. output: the HTML file.

    Returns:
        How many figures the page has.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
        InputError: a place that is not there, or nothing to report on.
    """
    from raypq.reporting import page

    return page.make(places, output, title=title)


def run_job(cls: type[J], verb: Callable[[J], object], argv: list[str] | None = None) -> None:
    """The body of an entry point in jobs/: reads ``--config FILE`` and runs the verb.

    Ends the process with the error's exit code, its message on stderr.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, help="YAML file, such as those in jobs/configs")
    path = parser.parse_args(argv).config
    console.set_up()
    try:
        verb(cls.parse(read_mapping(path), origin=path))
    except RaypqError as error:
        print(f"raypq: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
