"""Training by reduction: pass after pass over the shards, statistics merged in shard order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from threading import Lock
from typing import Any

from raypq import console, kernels
from raypq.config import Columns, TrainJob
from raypq.data.codes import bytes_per_code
from raypq.data.features import FeatureStore, survey
from raypq.errors import ConfigError, ShardFailure
from raypq.methods import registry
from raypq.methods.base import Corpus, Model, ReductionMethod, State, Stats, TrainBatch
from raypq.stages.crew import Crew, Gang, in_order, settle
from raypq.stages.training_rows import TrainingClasses, TrainTask, training_batches
from raypq.stages.tune import tune


class TrainWorker:
    """Reads shards and accumulates a pass; keeps the features that fit in its memory."""

    def __init__(
        self,
        method: ReductionMethod,
        columns: Columns,
        width: int,
        classes: TrainingClasses | None,
        cache_bytes: int,
    ) -> None:
        self._method, self._columns, self._width = method, columns, width
        self._classes, self._room = classes, cache_bytes
        self._kept: dict[str, list[TrainBatch]] = {}
        self._lock = Lock()

    def __call__(self, task: TrainTask, state: State) -> Stats:
        stats = Stats()
        for batch in self._batches(task):
            stats.merge(self._method.accumulate(state, batch))
        return stats

    def _batches(self, task: TrainTask) -> Iterator[TrainBatch]:
        if task.shard.uri in self._kept:
            yield from self._kept[task.shard.uri]
            return
        kept: list[TrainBatch] = []
        fits = True
        complete = False
        try:
            for batch in training_batches(task, self._columns, self._width, self._classes):
                fits = fits and self._reserve(batch.X.nbytes)
                if fits:
                    kept.append(batch)
                yield batch
            complete = True
        finally:
            if fits and complete:
                self._kept[task.shard.uri] = kept
            else:
                self._reserve(-sum(batch.X.nbytes for batch in kept))

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if size > self._room:
                return False
            self._room -= size
            return True


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model, and the shards that were left out on request."""

    model: Model
    quarantined: Sequence[ShardFailure]
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The shards to train on, and what their footers and the class table say."""

    tasks: Sequence[TrainTask]
    corpus: Corpus
    classes: TrainingClasses | None
    failures: Sequence[ShardFailure]

    @classmethod
    def make(cls, job: TrainJob, classes: TrainingClasses | None) -> Plan:
        """Surveys the store; what is wrong with its footers is told with the first pass."""
        found = survey(FeatureStore.open(job.features, job.columns))
        starts = [0, *accumulate(found.rows)]
        corpus = Corpus(
            N=starts[-1],
            dx=found.width,
            A=classes.embeddings if classes else None,
            names=classes.names if classes else (),
        )
        tasks = [
            TrainTask(shard=shard, row=row, rows=rows)
            for shard, row, rows in zip(found.shards, starts, found.rows, strict=False)
        ]
        return cls(tasks=tasks, corpus=corpus, classes=classes, failures=found.failures)


def train(job: TrainJob, crew: Crew) -> Trained:
    """Trains a method by reduction and saves its model.

    Raises:
        ConfigError: settings that do not fit each other or the data.
        JobError: shards that could not be used.
    """
    start = time.monotonic()
    # The updates run here; as many threads as a worker has, so that every crew gives equal bits.
    kernels.set_threads(job.where.threads)
    method = registry.create_reduction(job.method, job.settings)
    plan = Plan.make(job, _classes(job, method))
    tuned = tune(job, plan, crew) if job.tune else None
    if tuned:
        method = registry.create_reduction(job.method, tuned.settings)
    state, failures, images = _run(job, method, plan, crew)
    model = method.model(state)
    quarantined = [str(failure) for failure in failures]
    record = {**model.record, "images": images, "quarantined": quarantined}
    model = replace(model, record={**record, **(tuned.record() if tuned else {})})
    fingerprint = model.save(job.output)
    seconds = time.monotonic() - start
    console.say(f"trained {job.method} on {images:,} images in {seconds:.1f} s: {job.output}")
    width = bytes_per_code(model.M, model.K)
    summary = {
        "method": job.method,
        "model": job.output,
        "fingerprint": fingerprint,
        "images": images,
        "dx": model.dx,
        "M": model.M,
        "K": model.K,
        "bytes_per_image": width,
        "compression": 4 * model.dx / width,
        "settings": model.settings.model_dump(mode="json"),
        "calibration": model.record.get("calibration"),
        "seconds": seconds,
        "quarantined": quarantined,
    }
    return Trained(model=model, quarantined=failures, summary=summary)


def _run(
    job: TrainJob, method: ReductionMethod, plan: Plan, crew: Crew
) -> tuple[State, list[ShardFailure], int]:
    """Every pass; the final state, the shards left out, and the images that were used."""
    tasks = list(plan.tasks)
    failures: list[ShardFailure] = []
    footers = list(plan.failures)
    state = method.begin(plan.corpus)
    args = (method, job.columns, plan.corpus.dx, plan.classes, job.cache_bytes)
    with crew.hire(TrainWorker, *args) as gang:
        while not state.done:
            label = f"{job.method} {state.phase} {state.iteration}"
            stats, failed = run_pass(gang, tasks, state, label)
            settle(footers + failed, len(tasks) - len(failed), job.on_bad_shard)
            failures += footers + failed
            footers = []
            names = {failure.shard for failure in failed}
            tasks = [task for task in tasks if task.name not in names]
            state = method.update(state, stats)
            _tell(job.method, state)
    return state, failures, sum(task.rows for task in tasks)


def run_pass(
    gang: Gang, tasks: Sequence[TrainTask], state: State, label: str
) -> tuple[Stats, list[ShardFailure]]:
    """One pass: the statistics of all good shards, merged in shard order, and the failures."""
    stats = Stats()
    failures = []
    with console.progress(len(tasks), label) as progress:
        for outcome in in_order(gang.map(tasks, state.for_workers())):
            if outcome.failure:
                failures.append(outcome.failure)
            else:
                stats.merge(outcome.result)
            progress.done()
    return stats, failures


def _classes(job: TrainJob, method: ReductionMethod) -> TrainingClasses | None:
    if not method.needs_classes:
        return None
    if job.classes is None:
        raise ConfigError(f"{job.method} learns from classes: pass a class table (--classes)")
    return TrainingClasses.open(job.classes)


def _tell(name: str, state: State) -> None:
    if state.history:
        note = state.history[-1]
        text = ", ".join(
            f"{key} {value:.6g}" for key, value in note.items() if key != "iteration" and value
        )
        console.say(f"{name} iteration {note['iteration']}: {text}", **note)
