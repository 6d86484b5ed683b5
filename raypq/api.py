"""The verbs as functions: open a crew, run the stage. The command line and jobs/ call these."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from raypq import console, exits, kernels, machine
from raypq.config import (
    AddClassesJob,
    ClassifyJob,
    ClusterabilityJob,
    ClusterSettings,
    DuplicatesJob,
    EncodeJob,
    EvaluateJob,
    ExportFaissJob,
    ExtractJob,
    FewShotJob,
    ImportFaissJob,
    ImportXlsa17Job,
    InferSemanticsJob,
    Job,
    ReindexJob,
    RepackJob,
    RetrievalJob,
    SearchJob,
    Settings,
    SplitJob,
    TrainJob,
    read_mapping,
)
from raypq.config.places import Place, Reads, path_of
from raypq.data import overlap
from raypq.data.snapshot import Snapshot
from raypq.stages.crew import Crew, Gang, LocalCrew, Worker
from raypq.stages.train import Trained

if TYPE_CHECKING:
    from raypq.stages.learner import Lesson

J = TypeVar("J", bound=Job)
S = TypeVar("S", bound=Settings)
P = ParamSpec("P")
R = TypeVar("R")


def _checked(verb: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A verb that refuses, before anything else, to write among what it reads."""

    @wraps(verb)
    def run(job: S, *args: P.args, **more: P.kwargs) -> R:
        overlap.refuse(job)
        return verb(job, *args, **more)

    return cast(Callable[Concatenate[S, P], R], run)


@contextmanager
def open_crew(where: ClusterSettings) -> Iterator[Crew]:
    """Threads of this process (``none``), a local Ray, or the cluster at an address."""
    if where.cluster in ("none", "local"):
        kernels.check_device(where.device)  # elsewhere the workers look for themselves
    if where.cluster == "none":
        memory = int((where.memory_per_worker or 0) * machine.GIB) * where.workers
        yield LocalCrew(where.workers, where.threads, memory)
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

    def _called(self) -> Crew:
        if self._crew is None:
            self._crew = self._stack.enter_context(open_crew(self._where))
        return self._crew

    @property
    def worker_memory(self) -> int:
        return self._called().worker_memory

    def hire(
        self, make: Callable[..., Worker], *args: Any, cache: int = 0
    ) -> AbstractContextManager[Gang]:
        return self._called().hire(make, *args, cache=cache)

    def learn(self, lesson: Lesson, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._called().learn(lesson, tell)


@contextmanager
def _crew_on_demand(where: ClusterSettings) -> Iterator[Crew]:
    with ExitStack() as stack:
        yield _OnDemand(where, stack)


@_checked
def train(job: TrainJob) -> Trained:
    """Trains a model and saves it (``raypq train``)."""
    from raypq.stages import train as stage

    with open_crew(job.where) as crew:
        return stage.train(job, crew)


@_checked
def repack(job: RepackJob) -> dict[str, Any]:
    """Rewrites a feature store to the layout that reads fastest (``raypq repack``)."""
    from raypq.stages import repack as stage

    with open_crew(job.where) as crew:
        return stage.repack(job, crew)


@_checked
def extract(job: ExtractJob) -> dict[str, Any]:
    """Writes the features of an image store under a backbone (``raypq extract``)."""
    from raypq.stages import extract as stage

    with open_crew(job.where) as crew:
        return stage.extract(job, crew)


@_checked
def split(job: SplitJob) -> dict[str, Any]:
    """Cuts a labelled store into the parts of a protocol (``raypq split``)."""
    from raypq.stages import split as stage

    with open_crew(job.where) as crew:
        return stage.split(job, crew)


@_checked
def encode(job: EncodeJob) -> Snapshot:
    """Turns features into a code store (``raypq encode``)."""
    from raypq.stages import encode as stage

    with _crew_on_demand(job.where) as crew:
        return stage.encode(job, crew)


@_checked
def classify(job: ClassifyJob) -> Snapshot:
    """Turns codes into predictions (``raypq classify``)."""
    from raypq.stages import classify as stage

    with _crew_on_demand(job.where) as crew:
        return stage.classify(job, crew)


@_checked
def search(job: SearchJob) -> Snapshot:
    """Answers queries from a code store (``raypq search``)."""
    from raypq.stages import search as stage

    with open_crew(job.where) as crew:
        return stage.search(job, crew)


@_checked
def duplicates(job: DuplicatesJob) -> Snapshot:
    """Finds pairs of stored images that look alike (``raypq duplicates``)."""
    from raypq.stages import near_duplicates as stage

    with open_crew(job.where) as crew:
        return stage.duplicates(job, crew)


@_checked
def export_faiss(job: ExportFaissJob) -> dict[str, Any]:
    """Writes a code store as a FAISS index (``raypq export-faiss``)."""
    from raypq.stages import faiss_exchange as stage

    return stage.export_faiss(job)


@_checked
def import_faiss(job: ImportFaissJob) -> dict[str, Any]:
    """Makes a model of a trained FAISS index (``raypq import-faiss``)."""
    from raypq.stages import faiss_exchange as stage

    return stage.import_faiss(job)


@_checked
def reindex(job: ReindexJob) -> dict[str, Any]:
    """Brings codes and predictions up to date with a feature store (``raypq reindex``)."""
    from raypq.stages import reindex as stage

    with _crew_on_demand(job.where) as crew:
        return stage.reindex(job, crew)


@_checked
def evaluate(job: EvaluateJob, where: ClusterSettings | None = None) -> dict[str, Any]:
    """Figures of a prediction store (``raypq evaluate classification``)."""
    from raypq.stages import evaluate as stage

    with open_crew(where or job.where) as crew:
        return stage.evaluate(job, crew)


@_checked
def evaluate_retrieval(job: RetrievalJob) -> dict[str, Any]:
    """Figures of a code store (``raypq evaluate retrieval``)."""
    from raypq.stages import retrieval as stage

    with open_crew(job.where) as crew:
        return stage.evaluate(job, crew)


def report(
    places: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    title: str = "raypq report",
) -> int:
    """One HTML page of what result files, models and stores tell (``raypq report``).

    Args:
        places: result files (JSON), models, stores, or folders of them. output: the HTML file.

    Returns:
        How many figures the page has.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed; the output is one of the places.
        InputError: a place that is not there, or nothing to report on.
    """
    from raypq.reporting import page

    several = [places] if isinstance(places, str | os.PathLike) else places
    read = [path_of(place) for place in several]
    to = path_of(output)
    named = [Place(field="places", uri=uri, use=Reads("results")) for uri in read]
    written = overlap.written_file("output", to)
    overlap.refuse_places([*named, *([written] if written else [])])
    return page.make(read, to, title=title)


@_checked
def add_classes(job: AddClassesJob) -> dict[str, Any]:
    """Extends a model by classes, without touching codes (``raypq add-classes``)."""
    from raypq.stages import add_classes as stage

    return stage.add_classes(job)


@_checked
def infer_semantics(job: InferSemanticsJob) -> dict[str, Any]:
    """What images without a class embedding are like (``raypq infer-semantics``)."""
    from raypq.stages import infer as stage

    with open_crew(job.where) as crew:
        return stage.infer_semantics(job, crew)


@_checked
def fewshot(job: FewShotJob) -> dict[str, Any]:
    """Few-shot accuracy in a space (``raypq evaluate fewshot``)."""
    from raypq.stages import probe as stage

    return stage.fewshot(job)


@_checked
def clusterability(job: ClusterabilityJob) -> dict[str, Any]:
    """Mutual information of k-means with labels (``raypq evaluate clusterability``)."""
    from raypq.stages import probe as stage

    return stage.clusterability(job)


@_checked
def import_xlsa17(job: ImportXlsa17Job) -> dict[str, Any]:
    """A published benchmark as feature stores (``raypq import-xlsa17``)."""
    from raypq.stages import import_xlsa17 as stage

    return stage.import_xlsa17(job)


def run_job(cls: type[J], verb: Callable[[J], object], argv: list[str] | None = None) -> None:
    """The body of an entry point in jobs/: reads ``--config FILE`` and runs the verb.

    Ends the process with the error's exit code, its message on stderr.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, help="YAML file, such as those in jobs/configs")
    parser.add_argument("--quiet", action="store_true", help="warnings only")
    parser.add_argument("--log-json", action="store_true", help="one JSON object a log line")
    parser.add_argument("--debug", action="store_true", help="tracebacks and debug lines")
    options = parser.parse_args(argv)
    console.set_up(quiet=options.quiet, as_json=options.log_json, debug=options.debug)
    with exits.told(debug=options.debug):
        job = cls.parse(read_mapping(options.config), origin=options.config)
        overlap.refuse(job, config=overlap.read_file("--config", options.config))
        verb(job)
