"""Approximate semantic inference for classes without embeddings (PSR, section 4.5).

Each image, or each group of images with one label, is compared with the known classes. The result
has the most and the least similar classes with their cosines; of a group, the mean cosines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq.config import InferSemanticsJob
from raypq.data.classes import ClassTable
from raypq.data.codes import CodeBatch, CodeFile
from raypq.data.plain_folder import refuse_others, remove_left_out
from raypq.data.storage import atomic_write, join
from raypq.data.store import snapshot
from raypq.errors import InputError, ModelError, ShardFailure
from raypq.execution.executor import Executor, completed
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.stores.code_store import check_model
from raypq.stages.stores.shard_task import ShardTask, stored_shards

_BATCH_ROWS = 1024  # images compared with all classes at once
_MAX_LINES = 20  # of the readable table

Groups = dict[str, tuple[int, NDArray[np.float64]]]  # label to images, and sums of cosines [T]


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """Result of one shard: number of images, first lines of the table, and sums by label."""

    images: int
    lines: list[dict[str, Any]]
    groups: Groups


class InferWorker:
    """Compares the images of code files with known classes."""

    def __init__(
        self, model: Model, V: NDArray[np.float32], names: list[str], job: InferSemanticsJob
    ) -> None:
        self._model, self._V, self._names, self._job = model, V, names, job

    def infer(self, task: ShardTask) -> ShardResult:
        """Compares the codes of a shard with the classes."""
        file = CodeFile.open(task.shard.uri, size=task.shard.size)
        check_model(file, {self._model.fingerprint: self._model})
        groups: Groups = {}
        if self._job.by == "label":
            images = sum(self._add(groups, *part) for part in self._compared(file))
            return ShardResult(images=images, lines=[], groups=groups)
        images = 0
        first_lines: list[dict[str, Any]] = []
        with _writing(join(self._job.output, f"{task.shard.stem}.parquet")) as writer:
            for batch, rows, cosines in self._compared(file):
                ids = batch.ids.take(pa.array(rows)).to_pylist()
                lines = [
                    line(str(key), 1, values, self._names, self._job)
                    for key, values in zip(ids, cosines, strict=True)
                ]
                writer.write_table(pa.Table.from_pylist(lines, SCHEMA))
                images += len(lines)
                first_lines += lines[: _MAX_LINES - len(first_lines)]
        return ShardResult(images=images, lines=first_lines, groups=groups)

    def _compared(
        self, file: CodeFile
    ) -> Iterator[tuple[CodeBatch, NDArray[np.int64], NDArray[np.float32]]]:
        """Batches, the rows of them to compare [n], and the cosines of these rows [n, T]."""
        for batch in file.batches(_BATCH_ROWS):
            rows = self._chosen(batch)
            yield batch, rows, self._model.cosines(self._model.decode(batch.B[rows]), self._V)

    def _chosen(self, batch: CodeBatch) -> NDArray[np.int64]:
        if not self._job.labels:
            return np.arange(len(batch.B))
        if batch.labels is None:  # a shard without labels has no image of any class
            return np.empty(0, np.int64)
        chosen = set(self._job.labels)
        return np.flatnonzero([label in chosen for label in batch.labels.to_pylist()])

    def _add(
        self,
        groups: Groups,
        batch: CodeBatch,
        rows: NDArray[np.int64],
        cosines: NDArray[np.float32],
    ) -> int:
        """Adds the labelled rows of a batch to their groups; returns their number."""
        if batch.labels is None:
            return 0
        labels = batch.labels.take(pa.array(rows)).to_pylist()
        for name in sorted({label for label in labels if label is not None}):
            members = [index for index, label in enumerate(labels) if label == name]
            merge(groups, name, len(members), cosines[members].sum(axis=0, dtype=np.float64))
        return sum(label is not None for label in labels)


def merge(
    groups: Groups,
    name: str,
    count: int,
    total: NDArray[np.float64],
) -> None:
    """Adds images, and their sum of cosines [T], to a group."""
    before = groups.get(name)
    # A copy, since the sum may be a view of shared memory.
    groups[name] = (
        (count, total.copy()) if before is None else (before[0] + count, before[1] + total)
    )


def line(
    key: str, images: int, cosines: NDArray[Any], names: list[str], job: InferSemanticsJob
) -> dict[str, Any]:
    """A row of the result: the most similar classes, best first, and the least, worst first."""
    order = np.argsort(-cosines, kind="stable")
    most, least = order[: job.top_k], order[::-1][: job.top_k]
    return {
        "key": key,
        "images": images,
        "most_similar": [names[index] for index in most],
        "most_cosine": [float(cosines[index]) for index in most],
        "least_similar": [names[index] for index in least],
        "least_cosine": [float(cosines[index]) for index in least],
        "similar": int((cosines >= job.tau).sum()),
    }


SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("most_similar", pa.list_(pa.string()), nullable=False),
        pa.field("most_cosine", pa.list_(pa.float32()), nullable=False),
        pa.field("least_similar", pa.list_(pa.string()), nullable=False),
        pa.field("least_cosine", pa.list_(pa.float32()), nullable=False),
        pa.field("similar", pa.int64(), nullable=False),
    ]
)
"""``key``: id of the image, or label of the group. ``similar``: number of cosines ≥ τ."""


def infer_semantics(job: InferSemanticsJob, executor: Executor) -> dict[str, Any]:
    """Compares stored codes with the known classes; writes a Parquet file for each shard, or one
    for all groups.

    Raises:
        ConfigError: the output holds other files.
        InputError: no labels where they are needed, or no image with the requested labels.
        ModelError: another model made the codes, or the model has a linear head.
        JobError: some shards could not be read.
    """
    model = registry.load(job.model)
    if model.has_head:
        raise ModelError(
            job.model,
            expected="a model without a linear head, to compare images with class embeddings",
            found="a head; name the model without it",
        )
    table = ClassTable.open(job.classes)
    chosen = table.select(job.candidates)
    ids = [table.ids[int(index)].as_py() for index in chosen]
    model.check_encoder(table.encoder, ids, where=job.classes)
    V, _ = model.prototypes_of(ids, table.embeddings[chosen])
    version = snapshot.read(job.codes, job.version)
    tasks = [ShardTask(shard=shard) for shard in stored_shards(job.codes, version)]
    stems = ["groups"] if job.by == "label" else [task.shard.stem for task in tasks]
    refuse_others(job.output, [f"{stem}.parquet" for stem in stems])
    images = 0
    lines: list[dict[str, Any]] = []
    groups: Groups = {}
    failures: list[ShardFailure] = []
    with executor.start_workers(InferWorker, model, V, ids, job, stage="infer") as pool:
        # In order, since the last bit of float sums depends on it.
        results = pool.map(InferWorker.infer, tasks, ordered=True)
        for result in completed(
            results,
            total=len(tasks),
            label="infer",
            on_bad_shard=job.on_bad_shard,
            failures=failures,
        ):
            images += result.images
            lines += result.lines[: _MAX_LINES - len(lines)]
            for name, (count, total) in result.groups.items():
                merge(groups, name, count, total)
    remove_left_out(job.output, [task.shard for task in tasks], failures)
    if not images:
        raise _no_images(job)
    if job.by == "label":
        lines = _write_groups(job, groups, ids)
    names = dict(zip(table.ids.to_pylist(), table.names, strict=True))
    return {
        "output": job.output,
        "images": images,
        "quarantined": [str(failure) for failure in failures],
        "table": readable(lines, names),
    }


def _no_images(job: InferSemanticsJob) -> InputError:
    expected = "images with labels" if job.by == "label" else "images"
    if job.labels:
        expected = f"an image labelled {', '.join(job.labels)}"
    return InputError(job.codes, expected=expected, found="none")


def _write_groups(job: InferSemanticsJob, groups: Groups, ids: list[str]) -> list[dict[str, Any]]:
    """Writes the mean cosines of all groups; returns the rows of the file."""
    lines = [
        line(name, count, total / count, ids, job)
        for name, (count, total) in sorted(groups.items())
    ]
    with _writing(join(job.output, "groups.parquet")) as writer:
        writer.write_table(pa.Table.from_pylist(lines, SCHEMA))
    return lines


@contextmanager
def _writing(uri: str) -> Iterator[pq.ParquetWriter]:
    with (
        atomic_write(uri) as sink,
        pq.ParquetWriter(sink, SCHEMA, write_page_checksum=True) as writer,
    ):
        yield writer


def readable(lines: list[dict[str, Any]], names: Mapping[str, str]) -> list[str]:
    """The first lines as text, with names instead of class_ids."""

    def classes(ids: list[str], cosines: list[float]) -> str:
        return ", ".join(
            f"{names[name]} {cosine:+.2f}" for name, cosine in zip(ids, cosines, strict=True)
        )

    return [
        f"{row['key']} ({row['images']}): like "
        f"{classes(row['most_similar'], row['most_cosine'])}; unlike "
        f"{classes(row['least_similar'], row['least_cosine'])}"
        for row in lines[:_MAX_LINES]
    ]
