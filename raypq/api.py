"""The commands as functions: open an executor, run the stage. Called by the CLI and jobs/."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

from raypq import console, exits, heartbeat, json_lines, kernels, machine
from raypq.config import (
    AddClassesJob,
    ClassifyJob,
    ClusterabilityJob,
    ClusterJob,
    ClusterSettings,
    DeduplicateJob,
    DuplicatesJob,
    EmbedClassesJob,
    EncodeJob,
    EvaluateJob,
    ExportFaissJob,
    ExportJob,
    ExtractJob,
    FewShotJob,
    ImageColumns,
    ImportFaissJob,
    ImportXlsa17Job,
    InferSemanticsJob,
    Job,
    MonitoredJob,
    MonitoringSettings,
    NeighborsJob,
    PredictionsSettings,
    ReindexJob,
    RepackJob,
    ReportSettings,
    RetrievalJob,
    SearchJob,
    Settings,
    SplitJob,
    TrainJob,
    WorkerSettings,
    read_mapping,
)
from raypq.config.places import Reads, Writes, is_library_model, places, with_places
from raypq.data.storage import canonical
from raypq.data.store import overlap
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.devices import with_known_device
from raypq.execution.executor import Executor, SpmdJob, WorkerPool
from raypq.execution.local import LocalExecutor
from raypq.monitoring import delivery, outcome
from raypq.stages.training.fit_result import Trained

if TYPE_CHECKING:
    from raypq.checks import Finding

J = TypeVar("J", bound=Job)
S = TypeVar("S", bound=Settings)
P = ParamSpec("P")
R = TypeVar("R")
W = TypeVar("W")


def _checked(verb: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorator: refuses a job whose outputs lie among its inputs, before any work; errors of a
    place that the job names have its key; and delivers the outcome as the job asks."""

    def checked(job: S, *args: P.args, **more: P.kwargs) -> R:
        overlap.refuse(job)
        job = with_places(job, _for_workers) if _on_ray(job) else job
        job = _with_known_device(job)
        try:
            return verb(job, *args, **more)
        except InputError as error:
            error.field = error.field or _field_of(job, error.location)
            raise

    @wraps(verb)
    def run(job: S, *args: P.args, **more: P.kwargs) -> R:
        if not isinstance(job, MonitoredJob) or job.monitoring == MonitoringSettings():
            return checked(job, *args, **more)
        ended = outcome.of_run(job, lambda: checked(job, *args, **more))
        try:
            delivery.deliver(ended)
        finally:  # the job's own error is raised, whatever becomes of the delivery
            returned = ended.value()
        return cast(R, returned)

    return cast(Callable[Concatenate[S, P], R], run)


def _with_known_device(job: S) -> S:
    where = getattr(job, "where", None)
    if not isinstance(where, ClusterSettings):
        return job
    known = with_known_device(where)
    return job if known is where else job.model_copy(update={"where": known})


def _field_of(job: Settings, location: str) -> str:
    """The key of a job that names a location to read; empty where none does, or several do."""
    fields = {
        place.field
        for place in places(job)
        if isinstance(place.use, Reads) and location in (place.uri, place.uri.rstrip("/"))
    }
    return fields.pop() if len(fields) == 1 else ""


def _on_ray(job: Settings) -> bool:
    where = getattr(job, "where", None)
    return isinstance(where, WorkerSettings) and where.cluster != "none"


def _for_workers(uri: str, use: Reads | Writes) -> str:
    """A local path as an absolute one: Ray's workers run in folders of their own."""
    if use.kind == "split":  # classes by name, or files that the driver reads
        return uri
    return uri if use.kind == "backbone" and is_library_model(uri) else canonical(uri)


@contextmanager
def open_executor(where: WorkerSettings) -> Iterator[Executor]:
    """Threads of this process (``none``), a local Ray, or the cluster at an address."""
    if where.cluster in ("none", "local") and isinstance(where, ClusterSettings):
        kernels.check_device(where.device)  # on other clusters the workers check it
    if where.cluster == "none":
        memory = int((where.memory_per_worker or 0) * machine.GIB) * where.workers
        yield LocalExecutor(where.workers, where.threads, memory)
        return
    from raypq.distributed.cluster import connect

    with connect(ClusterSettings.of(where)) as executor:
        yield executor


class _LazyExecutor:
    """Opens an executor when the first workers are started, so a job without work starts no Ray."""

    def __init__(self, where: WorkerSettings, stack: ExitStack) -> None:
        self.n_workers = where.workers
        self._where, self._stack = where, stack
        self._opened: Executor | None = None

    def _executor(self) -> Executor:
        if self._opened is None:
            self._opened = self._stack.enter_context(open_executor(self._where))
        return self._opened

    @property
    def processes(self) -> int:
        return self._executor().processes

    @property
    def worker_memory(self) -> int:
        return self._executor().worker_memory

    def start_workers(
        self, make: Callable[..., W], *args: Any, stage: str, cache: int = 0
    ) -> AbstractContextManager[WorkerPool[W]]:
        return self._executor().start_workers(make, *args, stage=stage, cache=cache)

    def run_spmd(self, job: SpmdJob) -> None:
        self._executor().run_spmd(job)


@contextmanager
def _lazy_executor(where: WorkerSettings) -> Iterator[Executor]:
    with ExitStack() as stack:
        yield _LazyExecutor(where, stack)


def check(job: Job) -> list[Finding]:
    """Checks what a job needs, without running it (``raypq doctor --config``)."""
    from raypq import checks

    return checks.check_job(_with_known_device(job))


@_checked
def train(job: TrainJob) -> Trained:
    """Trains a model, or a head over its codes, and saves it (``raypq train``)."""
    from raypq.stages.training import train as stage

    with _lazy_executor(job.where) as executor:
        return stage.train(job, executor)


@_checked
def repack(job: RepackJob) -> dict[str, Any]:
    """Rewrites a feature store to the layout that reads fastest (``raypq repack``)."""
    from raypq.stages.preparation import repack as stage

    with open_executor(job.where) as executor:
        return stage.repack(job, executor)


@_checked
def export(job: ExportJob) -> dict[str, Any]:
    """Writes a store in another format (``raypq export``)."""
    from raypq.stages.results import export as stage

    with open_executor(job.where) as executor:
        return stage.export(job, executor)


@_checked
def predictions(settings: PredictionsSettings) -> Iterator[str]:
    """Lines that show predictions by name (``raypq predictions``)."""
    from raypq.stages.results import shown_predictions

    return shown_predictions.lines(settings)


@_checked
def embed_classes(job: EmbedClassesJob) -> dict[str, Any]:
    """Makes a class table from names of classes (``raypq embed-classes``)."""
    from raypq.stages.preparation import embed_classes as stage

    return stage.embed_classes(job)


@_checked
def extract(job: ExtractJob) -> Snapshot:
    """Writes the features of images by a backbone (``raypq extract``)."""
    from raypq.stages.preparation import extract as stage

    with open_executor(job.where) as executor:
        return stage.extract(job, executor)


@_checked
def split(job: SplitJob) -> dict[str, Any]:
    """Splits a labelled store by a retrieval protocol (``raypq split``)."""
    from raypq.stages.preparation import split as stage

    with open_executor(job.where) as executor:
        return stage.split(job, executor)


@_checked
def encode(job: EncodeJob) -> Snapshot:
    """Turns features into a code store (``raypq encode``)."""
    from raypq.stages.encoding import encode as stage

    with _lazy_executor(job.where) as executor:
        return stage.encode(job, executor)


@_checked
def classify(job: ClassifyJob) -> Snapshot:
    """Turns codes into predictions (``raypq classify``)."""
    from raypq.stages.classification import classify as stage

    with _lazy_executor(job.where) as executor:
        return stage.classify(job, executor)


@_checked
def search(job: SearchJob) -> Snapshot:
    """Answers queries from a code store (``raypq search``)."""
    from raypq.stages.retrieval import search as stage

    with open_executor(job.where) as executor:
        return stage.search(job, executor)


@_checked
def duplicates(job: DuplicatesJob) -> Snapshot:
    """Finds near-duplicates among stored images (``raypq duplicates``)."""
    from raypq.stages.retrieval.duplicates import near_duplicates as stage

    with open_executor(job.where) as executor:
        return stage.near_duplicates(job, executor)


@_checked
def export_faiss(job: ExportFaissJob) -> dict[str, Any]:
    """Writes a code store as a FAISS index (``raypq export-faiss``)."""
    from raypq.stages.retrieval import faiss_exchange as stage

    return stage.export_faiss(job)


@_checked
def import_faiss(job: ImportFaissJob) -> dict[str, Any]:
    """Makes a model of a trained FAISS index (``raypq import-faiss``)."""
    from raypq.stages.retrieval import faiss_exchange as stage

    return stage.import_faiss(job)


@_checked
def reindex(job: ReindexJob) -> dict[str, Any]:
    """Brings codes and predictions up to date with a feature store (``raypq reindex``)."""
    from raypq.stages.nightly import reindex as stage

    with _lazy_executor(job.where) as executor:
        return stage.reindex(job, executor)


@_checked
def evaluate(job: EvaluateJob, where: WorkerSettings | None = None) -> dict[str, Any]:
    """Evaluates a prediction store (``raypq evaluate classification``)."""
    from raypq.stages.classification import evaluate as stage

    with open_executor(where or job.where) as executor:
        return stage.evaluate(job, executor)


@_checked
def deduplicate(job: DeduplicateJob) -> Snapshot:
    """Groups near-duplicates, and says what to keep (``raypq deduplicate``)."""
    from raypq.stages.retrieval.duplicates import deduplicate as stage

    with open_executor(job.where) as executor:
        return stage.deduplicate(job, executor)


@_checked
def neighbors(job: NeighborsJob) -> Snapshot:
    """Finds the nearest stored images of every stored image (``raypq neighbors``)."""
    from raypq.stages.retrieval import neighbors as stage

    with _lazy_executor(job.where) as executor:
        return stage.neighbors(job, executor)


@_checked
def cluster(job: ClusterJob) -> Snapshot:
    """Divides stored images into clusters by k-means (``raypq cluster``)."""
    from raypq.stages.retrieval import cluster as stage

    with _lazy_executor(job.where) as executor:
        return stage.cluster(job, executor)


@_checked
def evaluate_retrieval(job: RetrievalJob) -> dict[str, Any]:
    """Evaluates the retrieval of a code store (``raypq evaluate retrieval``)."""
    from raypq.stages.retrieval import evaluate as stage

    with open_executor(job.where) as executor:
        return stage.evaluate(job, executor)


def report(
    places: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    title: str = "raypq report",
    images: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    classes: str | os.PathLike[str] | None = None,
    columns: ImageColumns | None = None,
) -> int:
    """Writes one HTML page about result files, models and stores (``raypq report``).

    Args:
        places: result files (JSON), models, stores, or folders of them. output: the HTML file.
        images: of the stores, to show some of them. classes: class table with the names of
            classes. columns: of the images.

    Returns:
        Number of figures in the page.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed; the output is one of the inputs.
        InputError: a missing input, nothing to report on, or images of no id in the stores.
    """
    from raypq.reporting import page
    from raypq.reporting.picture_chapters import PictureSource

    settings = ReportSettings(
        places=places, output=output, title=title, images=images, classes=classes,
        columns=columns or ImageColumns(),
    )  # fmt: skip
    overlap.refuse(settings)
    pictures = None
    if settings.images:
        pictures = PictureSource(
            images=settings.images, columns=settings.columns, classes=settings.classes
        )
    return page.make(settings.places, settings.output, title=settings.title, pictures=pictures)


@_checked
def add_classes(job: AddClassesJob) -> dict[str, Any]:
    """Extends a model by classes, without touching codes (``raypq add-classes``)."""
    from raypq.stages.classification import add_classes as stage

    return stage.add_classes(job)


@_checked
def infer_semantics(job: InferSemanticsJob) -> dict[str, Any]:
    """Describes images without a class embedding by known classes (``raypq infer-semantics``)."""
    from raypq.stages.classification import infer_semantics as stage

    with open_executor(job.where) as executor:
        return stage.infer_semantics(job, executor)


@_checked
def fewshot(job: FewShotJob) -> dict[str, Any]:
    """Few-shot accuracy in a feature space (``raypq evaluate fewshot``)."""
    from raypq.stages.representation.fewshot import fewshot as stage

    return stage(job)


@_checked
def clusterability(job: ClusterabilityJob) -> dict[str, Any]:
    """Mutual information of k-means with labels (``raypq evaluate clusterability``)."""
    from raypq.stages.representation.clusterability import clusterability as stage

    return stage(job)


@_checked
def import_xlsa17(job: ImportXlsa17Job) -> dict[str, Any]:
    """Converts a published benchmark to feature stores (``raypq import-xlsa17``)."""
    from raypq.stages.preparation import import_xlsa17 as stage

    return stage.import_xlsa17(job)


class _Parser(argparse.ArgumentParser):
    """The parser of an entry point; its errors are JSON lines where ``as_json`` is true."""

    as_json = False

    def error(self, message: str) -> NoReturn:
        if self.as_json:
            exits.refuse_usage(message, kind="UsageError", code=2)
        super().error(message)


def run_job(cls: type[J], verb: Callable[[J], object], argv: list[str] | None = None) -> None:
    """The body of an entry point in jobs/: reads ``--config FILE`` and runs the verb.

    The outcome is one line of JSON on stdout. Ends the process with the error's exit code, its
    message on stderr.
    """
    parser = _Parser()
    parser.as_json = "--log-json" in (sys.argv[1:] if argv is None else argv)
    parser.add_argument("--config", required=True, help="YAML file, such as those in jobs/configs")
    parser.add_argument("--quiet", action="store_true", help="warnings only")
    parser.add_argument("--log-json", action="store_true", help="one JSON object a log line")
    parser.add_argument("--debug", action="store_true", help="tracebacks and debug lines")
    options = parser.parse_args(argv)
    quiet, as_json, debug = options.quiet, options.log_json, options.debug
    with json_lines.wrapped(active=as_json) as streams:
        console.set_up(quiet=quiet, as_json=as_json, debug=debug, streams=streams)
        with exits.handle_errors(debug=debug), heartbeat.watched():
            job = cls.parse(read_mapping(options.config), origin=options.config)
            overlap.refuse(job, config=overlap.read_file("--config", options.config))
            ended = outcome.of_run(job, lambda: verb(job))
            try:
                console.emit(ended.line())
            finally:  # the job's own error is raised, also where nobody reads the line
                ended.value()
