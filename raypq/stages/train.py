"""Training by reduction: pass after pass over the shards, statistics merged in shard order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import Columns, TrainJob
from raypq.data.classes import ClassTable
from raypq.data.codes import bytes_per_code
from raypq.data.features import FeatureBatch, FeatureStore, read_batches, survey
from raypq.data.storage import Shard
from raypq.errors import ConfigError, InputError, ShardFailure
from raypq.methods import registry
from raypq.methods.base import Corpus, Model, ReductionMethod, State, Stats, TrainBatch
from raypq.stages.crew import Crew, Gang, in_order, settle


@dataclass(frozen=True, kw_only=True)
class TrainingClasses:
    """The class table, and which of its classes may be trained on (``chosen``, L of them)."""

    table: ClassTable
    chosen: NDArray[np.int64]

    @classmethod
    def open(cls, uri: str) -> TrainingClasses:
        """The seen classes of a table; all of them where it does not say which are seen."""
        table = ClassTable.open(uri)
        chosen = table.select("all" if table.seen is None else "seen")
        return cls(table=table, chosen=chosen)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """[L, da]"""
        return self.table.embeddings[self.chosen]

    @property
    def names(self) -> tuple[str, ...]:
        """class_id of each training class."""
        return tuple(self.table.ids[int(index)].as_py() for index in self.chosen)

    def targets(self, batch: FeatureBatch) -> NDArray[np.int32]:
        """Index among the L training classes of each row.

        Raises:
            InputError: a row without a label, with an unknown one, or of an unseen class.
        """
        if batch.labels is None:
            raise InputError(batch.where, expected="a label column", found="none")
        index = self.table.index(batch.labels, where=batch.where, row0=batch.row)
        place = np.full(len(self.table) + 1, -1, np.int32)
        place[self.chosen] = np.arange(len(self.chosen), dtype=np.int32)
        y = place[index]  # a null label (-1) takes the last place, which is -1
        bad = np.flatnonzero(y < 0)
        if len(bad):
            row = int(bad[0])
            label = batch.labels[row].as_py()
            raise InputError(
                f"{batch.where}, row {batch.row + row}",
                expected="the label of a seen class",
                found=f"{'no label' if label is None else f'unseen class {label!r}'} "
                f"({len(bad)} such row(s) in this batch)",
            )
        return y


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """One shard, and the number of its first row over the whole store."""

    shard: Shard
    row: int

    @property
    def name(self) -> str:
        return self.shard.uri


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
        keep: list[TrainBatch] | None = []
        taken = 0
        for batch in read_batches(
            task.shard, self._columns, width=self._width, labels=self._classes is not None
        ):
            y = self._classes.targets(batch) if self._classes else None
            ready = TrainBatch(X=batch.X, y=y, row=task.row + batch.row)
            if keep is not None and self._reserve(batch.X.nbytes):
                taken += batch.X.nbytes
                keep.append(ready)
            else:
                keep = None
            yield ready
        if keep is not None:
            self._kept[task.shard.uri] = keep
        else:
            self._reserve(-taken)

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


def train(job: TrainJob, crew: Crew) -> Trained:
    """Trains a method by reduction and saves its model.

    Raises:
        ConfigError: settings that do not fit each other or the data.
        JobError: shards that could not be used.
    """
    start = time.monotonic()
    # The updates run here; as many threads as a worker has, so that every crew gives equal bits.
    kernels.set_threads(job.where.threads)
    method = registry.create(job.method, job.settings)
    classes = _classes(job, method)
    found = survey(FeatureStore.open(job.features, job.columns))
    starts = [0, *accumulate(found.rows)]
    tasks = [TrainTask(shard=s, row=row) for s, row in zip(found.shards, starts, strict=False)]
    if job.on_bad_shard == "fail":
        settle(found.failures, 0, "fail")
    corpus = Corpus(
        N=starts[-1],
        dx=found.width,
        A=classes.embeddings if classes else None,
        names=classes.names if classes else (),
    )
    state = method.begin(corpus)
    failures = list(found.failures)
    with crew.hire(TrainWorker, method, job.columns, found.width, classes, job.cache_bytes) as gang:
        while not state.done:
            label = f"{job.method} {state.phase} {state.iteration}"
            stats, failed = run_pass(gang, tasks, state, label)
            failures += failed
            settle(failures, len(tasks) - len(failed), job.on_bad_shard)
            names = {failure.shard for failure in failed}
            tasks = [task for task in tasks if task.name not in names]
            state = method.update(state, stats)
            _tell(job.method, state)
    model = method.model(state)
    seconds = time.monotonic() - start
    fingerprint = model.save(job.output)
    console.say(f"trained {job.method} on {starts[-1]:,} images in {seconds:.1f} s: {job.output}")
    summary = {
        "method": job.method,
        "model": job.output,
        "fingerprint": fingerprint,
        "images": starts[-1],
        "dx": found.width,
        "M": model.M,
        "K": model.K,
        "bytes_per_image": bytes_per_code(model.M, model.K),
        "compression": 4 * found.width / bytes_per_code(model.M, model.K),
        "seconds": seconds,
        "quarantined": [str(failure) for failure in failures],
    }
    return Trained(model=model, quarantined=failures, summary=summary)


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
