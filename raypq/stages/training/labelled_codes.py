"""Labelled codes as training data: a version of a code store, its model, and rows with targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.config import TrainJob
from raypq.data.codes import CodeBatch, CodeFile
from raypq.data.ids import IdKind
from raypq.data.row_labels import RowLabels
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, ModelError
from raypq.methods import registry
from raypq.methods.base import Model, Stats
from raypq.methods.support import linear_head
from raypq.methods.support.linear_head import Loss, Weights
from raypq.stages.stores import model_store
from raypq.stages.stores.batch_cache import BatchCache
from raypq.stages.stores.code_store import check_model, id_type_of, open_store
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.training.dataset import TrainingClasses

_CODE_ROWS = 8192  # decoded at once; fixed, since sums depend on it in their last bits
_UNKNOWN = (
    "name the rows to learn from, with their labels (--labels, labels: id and label), which leaves "
    "out all others, such as those of a retired class; or add the class to the table"
)
_REMEDY = "learn from other rows (--labels, labels), or mark the class as seen in the class table"


@dataclass(frozen=True, kw_only=True)
class FileLabels:
    """Labels from a file, by id: y [n] are indices into the training classes, -1 without one."""

    labels: RowLabels
    y: NDArray[np.int32]

    @classmethod
    def open(cls, job: TrainJob, classes: TrainingClasses, version: Snapshot) -> Self | None:
        """The labels of a job's file; None for the labels of the store.

        Raises:
            InputError: it cannot be read, or has labels of other classes.
        """
        if job.labels is None:
            return None
        assert job.codes is not None, "checked before"
        kind: IdKind = "int64" if pa.types.is_int64(id_type_of(job.codes, version)) else "string"
        labels = RowLabels.open(job.labels, job.columns, kind)
        y = classes.targets(
            labels.labels, where=job.labels, row0=0, unlabelled="skip", remedy=_REMEDY
        )
        return cls(labels=labels, y=y)


@dataclass(frozen=True, kw_only=True)
class LabelledCodes:
    """A version of a code store to learn from.

    Attributes:
        tasks: the shards of ``model``; rows: of each.
        others: shards of other models, which are left out.
    """

    model: Model
    classes: TrainingClasses
    version: int
    tasks: Sequence[ShardTask]
    rows: Sequence[int]
    others: int
    labels: FileLabels | None

    @classmethod
    def open(cls, job: TrainJob) -> Self:
        """Opens the version that a job names.

        Raises:
            InputError: no code store, an empty one, or labels that cannot be used.
            ModelError: codes of several models, or none of the model that the job names.
            ConfigError: fewer than two training classes.
        """
        assert job.codes is not None, "checked before"
        assert job.classes is not None, "checked before"
        version = open_store(job.codes, job.version)
        model = _model_of(job, version)
        classes = TrainingClasses.open(job.classes)
        if len(classes.names) < 2:
            raise ConfigError(
                f"classes: a head needs at least two training classes, found {len(classes.names)} "
                f"in {job.classes}"
            )
        shards = zip(stored_shards(job.codes, version), version.shards, strict=True)
        mine = [pair for pair in shards if pair[1].model == model.fingerprint]
        return cls(
            model=model,
            classes=classes,
            version=version.version,
            tasks=[ShardTask(shard=shard, model=receipt.model) for shard, receipt in mine],
            rows=[receipt.rows for _, receipt in mine],
            others=len(version.shards) - len(mine),
            labels=FileLabels.open(job, classes, version),
        )


def _model_of(job: TrainJob, version: Snapshot) -> Model:
    """The model that made the codes, or of several the one that the job names."""
    assert job.codes is not None, "checked before"
    fingerprints = version.shards.totals.models
    shown = ", ".join(name[:12] for name in fingerprints)
    if job.model is None and len(fingerprints) > 1:
        raise ModelError(
            job.codes,
            expected="codes of one model, since a head is for the codes of one",
            found=f"codes of {len(fingerprints)} models, {shown}; name the one to learn for "
            "(--model, model), or finish the roll-out (raypq reindex)",
        )
    if job.model is None:
        return model_store.load(job.codes, fingerprints)[fingerprints[0]]
    model = registry.load(job.model)
    if model.fingerprint not in fingerprints:
        raise ModelError(
            job.codes,
            expected=f"codes made by model {model.fingerprint[:12]}, which is {job.model}",
            found=f"codes made by {shown}",
        )
    others = sum(name != model.fingerprint for name in version.shards.values("model"))
    if others:
        console.warn(
            f"{job.codes}: {others} of {len(version.shards)} shards are of other models than "
            f"{job.model}, and are not learned from",
            shards=others,
        )
    return model


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """The rows of a batch that have labels: codes B [n, M] and classes y [n].

    Attributes:
        rows: of the batch, with and without labels. matched: rows of the file of labels [n].
    """

    B: NDArray[np.uint8]
    y: NDArray[np.int32]
    rows: int
    matched: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.B.nbytes + self.y.nbytes + self.matched.nbytes


class HeadWorker:
    """Sums over the labelled codes of shards; keeps codes in memory as far as they fit.

    Args:
        cache_bytes: for codes.
    """

    def __init__(
        self, model: Model, classes: TrainingClasses, labels: FileLabels | None, cache_bytes: int
    ) -> None:
        self._model, self._classes, self._labels = model, classes, labels
        self._shift = linear_head.shift_of(model)
        self._cache: BatchCache[Labelled] = BatchCache(cache_bytes, lambda batch: batch.nbytes)

    def moments(self, task: ShardTask, loss: Loss) -> Stats:
        """Sums of ``accumulate_moments``, ``rows`` with and without labels, and the rows of the
        file of labels that the shard has (``matched``)."""
        stats = Stats()
        L = len(self._classes.names)
        for batch in self._batches(task):
            s = self._decoded(batch)
            sums = linear_head.accumulate_moments(s, batch.y, L, loss)
            sums["rows"] = np.array(batch.rows)
            stats.merge(Stats(sums=sums, rows={"matched": [batch.matched]}))
        return stats

    def softmax(self, task: ShardTask, weights: Weights, gradient: bool) -> Stats:
        """Sums of ``accumulate_softmax``."""
        stats = Stats()
        for batch in self._batches(task):
            s = self._decoded(batch)
            sums = linear_head.accumulate_softmax(s, batch.y, weights, gradient=gradient)
            stats.merge(Stats(sums=sums))
        return stats

    def squares(self, task: ShardTask, weights: Weights) -> Stats:
        """Sums of ``accumulate_squares``."""
        stats = Stats()
        for batch in self._batches(task):
            s = self._decoded(batch)
            stats.merge(Stats(sums=linear_head.accumulate_squares(s, batch.y, weights)))
        return stats

    def _decoded(self, batch: Labelled) -> NDArray[np.float32]:
        """Rows s = q − shift [n, D]."""
        s = self._model.decode(batch.B)
        s -= self._shift
        return s

    def _batches(self, task: ShardTask) -> Iterator[Labelled]:
        return self._cache.batches(task.shard.uri, lambda: self._read(task))

    def _read(self, task: ShardTask) -> Iterator[Labelled]:
        file = CodeFile.open(task.shard.uri, size=task.shard.size)
        check_model(file, {task.model: self._model})
        row = 0
        for batch in file.batches(_CODE_ROWS, labels=self._labels is None):
            yield self._labelled(batch, file.uri, row)
            row += len(batch.B)

    def _labelled(self, batch: CodeBatch, uri: str, row: int) -> Labelled:
        n, matched = len(batch.B), np.empty(0, np.int64)
        if self._labels is not None:
            position = self._labels.labels.positions(batch.ids)
            matched = np.unique(position[position >= 0])
            y = np.where(position >= 0, self._labels.y[position], np.int32(-1))
        elif batch.labels is None:
            y = np.full(n, -1, np.int32)
        else:
            y = self._classes.targets(
                batch.labels, where=uri, row0=row, unlabelled="skip", remedy=_REMEDY,
                unknown=_UNKNOWN,
            )  # fmt: skip
        keep = y >= 0
        return Labelled(B=batch.B[keep], y=y[keep], rows=n, matched=matched)


def check_counts(job: TrainJob, classes: TrainingClasses, sums: dict[str, Any]) -> None:
    """Refuses classes without rows.

    Args:
        sums: of the moments of all shards.

    Raises:
        InputError: no row has a label, or some training classes have no row.
    """
    assert job.codes is not None, "checked before"
    n = sums["n"]
    if not n.any():
        found = "no row with a label; name a file of labels (--labels, labels)"
        if job.labels is not None:
            found = f"none of the labelled ids of {job.labels}"
        raise InputError(job.codes, expected="rows with labels", found=found)
    empty = [classes.names[int(index)] for index in np.flatnonzero(n == 0)]
    if empty:
        shown = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        raise InputError(
            job.codes,
            expected="at least one labelled row of each training class",
            found=f"none of {shown} ({len(empty)} in all); label rows of them, or mark them as "
            f"not seen in {job.classes}",
        )
