"""Training data: shards, training classes, and rows with their targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.config import Columns, TrainJob
from raypq.data.classes import UNKNOWN_REMEDY, ClassTable
from raypq.data.features import FeatureBatch, read_batches
from raypq.data.network_info import BackboneInfo, check_aligned, check_equal
from raypq.data.storage import Shard
from raypq.data.store.sources import open_sources
from raypq.data.survey import survey
from raypq.errors import ConfigError, InputError, ShardFailure
from raypq.methods.base import Method, TrainBatch, TrainingSetInfo
from raypq.stages.stores.shard_types import check_label_column


@dataclass(frozen=True, kw_only=True)
class TrainingClasses:
    """A class table with the rows of its L training classes (``chosen``)."""

    table: ClassTable
    chosen: NDArray[np.int64]

    @classmethod
    def open(cls, uri: str) -> TrainingClasses:
        """The seen classes of a table; all classes of a table without the column ``seen``."""
        table = ClassTable.open(uri)
        chosen = table.select("all" if table.seen is None else "seen")
        return cls(table=table, chosen=chosen)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """Embeddings of the training classes [L, da]."""
        return self.table.embeddings[self.chosen]

    def embeddings_if(self, needed: bool) -> NDArray[np.float32] | None:
        """As ``embeddings``; None if the table has none and they are not needed."""
        return self.embeddings if needed or self.table.E is not None else None

    @property
    def others(self) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
        """Embeddings [T - L, da] and class_ids of all other classes."""
        rest = np.setdiff1d(np.arange(len(self.table)), self.chosen)
        names = tuple(self.table.ids[int(index)].as_py() for index in rest)
        return None if self.table.E is None else self.table.E[rest], names

    @property
    def names(self) -> tuple[str, ...]:
        """class_id of each training class."""
        return tuple(self.table.ids[int(index)].as_py() for index in self.chosen)

    def targets_of(self, batch: FeatureBatch) -> NDArray[np.int32]:
        """The index of each row's class among the L training classes [n].

        Raises:
            InputError: a row has no label, an unknown one, or that of an unseen class.
        """
        if batch.labels is None:
            raise InputError(batch.where, expected="a label column", found="none")
        return self.targets(batch.labels, where=batch.where, row0=batch.row)

    def targets(
        self,
        labels: pa.StringArray,
        *,
        where: str,
        row0: int,
        unlabelled: Literal["refuse", "skip"] = "refuse",
        remedy: str = "leave such rows out of the features to train on",
        unknown: str = UNKNOWN_REMEDY,
    ) -> NDArray[np.int32]:
        """The index of each label's class among the L training classes [n].

        Args:
            where, row0: the labels' file and the row of the first one, for errors.
            unlabelled: whether the null has the index -1, or is refused.
            remedy, unknown: for the errors of an unseen class and of one that the table lacks.

        Raises:
            InputError: a label that is unknown, or that of an unseen class; no label.
        """
        index = self.table.index(labels, where=where, row0=row0, remedy=unknown)
        target = np.full(len(self.table) + 1, -1, np.int32)
        target[self.chosen] = np.arange(len(self.chosen), dtype=np.int32)
        y = target[index]  # a null label (-1) selects the last entry, which is -1
        wrong = y < 0
        if unlabelled == "skip":
            wrong &= labels.is_valid().to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(wrong)
        if len(bad):
            row = int(bad[0])
            label = labels[row].as_py()
            kind = "class without embedding" if label in self.table.excluded else "unseen class"
            raise InputError(
                f"{where}, row {row0 + row}",
                expected="the label of a seen class",
                found=f"{'no label' if label is None else f'{kind} {label!r}'} "
                f"({len(bad)} such row(s) in this batch); {remedy}",
            )
        return y


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """One shard, its number of rows, and the index of its first row in the whole store."""

    shard: Shard
    row: int
    rows: int

    @property
    def name(self) -> str:
        """The shard's URI."""
        return self.shard.uri


def training_batches(
    task: TrainTask,
    columns: Columns,
    width: int,
    classes: TrainingClasses | None,
    *,
    for_device: bool = False,
) -> Iterator[TrainBatch]:
    """The rows of a shard, with targets if there are classes; ``for_device``: unchecked, as
    ``ReadOptions`` says."""
    for batch in read_batches(
        task.shard, columns, width=width, labels=classes is not None, for_device=for_device
    ):
        y = classes.targets_of(batch) if classes else None
        yield TrainBatch(X=batch.X, y=y, row=task.row + batch.row)


@dataclass(frozen=True, kw_only=True)
class ShardListing:
    """The shards of a feature store as tasks, and failures of those with bad footers."""

    tasks: Sequence[TrainTask]
    width: int
    failures: Sequence[ShardFailure]
    backbone: BackboneInfo | None = None

    @classmethod
    def open(cls, uris: Sequence[str], columns: Columns) -> ShardListing:
        """Reads every footer."""
        footers = survey(open_sources(uris, columns))
        starts = [0, *accumulate(footers.rows)]
        tasks = [
            TrainTask(shard=shard, row=row, rows=rows)
            for shard, row, rows in zip(footers.shards, starts, footers.rows, strict=False)
        ]
        return cls(
            tasks=tasks,
            width=footers.width,
            failures=footers.failures,
            backbone=footers.backbone,
        )

    @property
    def rows(self) -> int:
        """Images of all tasks."""
        return sum(task.rows for task in self.tasks)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The shards to train on, with the sizes and classes of the training set."""

    tasks: Sequence[TrainTask]
    dataset_info: TrainingSetInfo
    classes: TrainingClasses | None
    failures: Sequence[ShardFailure]
    unlabelled: ShardListing | None = None
    backbone: BackboneInfo | None = None

    @classmethod
    def make(cls, job: TrainJob, method: Method) -> TrainingPlan:
        """Reads footers and the class table; the first pass reports bad footers.

        Raises:
            ConfigError: the method needs classes, and the job names no class table.
            InputError: the unlabelled store has another width.
        """
        classes = _classes(job, method)
        listing = ShardListing.open(job.features, job.columns)
        check_label_column([task.shard for task in listing.tasks], job.columns)
        unlabelled = _unlabelled(job, method, listing)
        others = classes.others if classes else None
        aligned = _aligned(job, method, listing)
        dataset_info = TrainingSetInfo(
            N=listing.rows,
            dx=listing.width,
            A=classes.embeddings_if(method.needs_embeddings) if classes else None,
            names=classes.names if classes else (),
            A_other=others[0] if others else None,
            other_names=others[1] if others else (),
            unlabelled=unlabelled.rows if unlabelled else 0,
            aligned=aligned,
        )
        return cls(
            tasks=listing.tasks,
            dataset_info=dataset_info,
            classes=classes,
            failures=[*listing.failures, *(unlabelled.failures if unlabelled else ())],
            unlabelled=unlabelled,
            backbone=listing.backbone,
        )

    def without(self, failures: Sequence[ShardFailure]) -> TrainingPlan:
        """The plan without shards that were left out, so that they are not read again."""
        bad = {failure.shard for failure in failures}
        return replace(self, tasks=[task for task in self.tasks if task.shard.uri not in bad])


def _classes(job: TrainJob, method: Method) -> TrainingClasses | None:
    if not method.needs_classes:
        return None
    if job.classes is None:
        raise ConfigError(f"{job.method} needs classes: pass a class table (--classes)")
    return TrainingClasses.open(job.classes)


def _aligned(job: TrainJob, method: Method, listing: ShardListing) -> NDArray[np.float32] | None:
    """Embeddings [T, dx] of the classes that codes are fitted to, if there are any."""
    if method.needs_classes or job.classes is None:
        return None
    if method.aligned_defaults is None:
        console.warn(f"classes: {job.method} uses no class table; {job.classes} is not read")
        return None
    table = ClassTable.open(job.classes)
    if table.E is None or table.E.shape[1] != listing.width:
        found = "none" if table.E is None else f"of width {table.E.shape[1]}"
        console.warn(
            f"classes: {job.method} fits codes to class embeddings of the features' space, of "
            f"width {listing.width}, found {found} in {table.uri}; codes of the features alone are "
            "trained"
        )
        return None
    check_aligned(listing.backbone, table.encoder, where=table.uri)
    return table.embeddings


def _unlabelled(job: TrainJob, method: Method, labelled: ShardListing) -> ShardListing | None:
    if job.unlabelled and not method.needs_unlabelled:
        raise ConfigError(f"--unlabelled (unlabelled): {job.method} uses labelled rows only")
    if not job.unlabelled:
        return None
    listing = ShardListing.open(job.unlabelled, job.columns)
    if listing.width != labelled.width:
        raise InputError(
            job.unlabelled[0],
            expected=f"features of width {labelled.width}, as the labelled ones",
            found=str(listing.width),
        )
    check_equal(labelled.backbone, listing.backbone, where=job.unlabelled[0])
    return listing
