"""Approximate semantic inference for classes without embeddings (PSR, section 4.5).

Every image, or every group of images with one label, is compared with the known classes; the
most and the least similar ones are told with their cosines. Of a group it is the mean cosine.
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
from raypq.data.plain_folder import refuse_others
from raypq.data.storage import join, replacing
from raypq.data.store import snapshot
from raypq.errors import InputError
from raypq.execution.executor import Executor, completed
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.stores.code_store import check_model
from raypq.stages.stores.shard_task import ShardTask, stored_shards

_ROWS = 1024  # times the classes: cosines held at once
_SHOWN = 20  # lines of the readable table


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a shard gives: images, lines to show, and the sum of cosines [T] of each label."""

    images: int
    lines: list[dict[str, Any]]
    groups: dict[str, tuple[int, NDArray[np.float64]]]


class InferWorker:
    """Compares the images of code files with known classes."""

    def __init__(
        self, model: Model, V: NDArray[np.float32], names: list[str], job: InferSemanticsJob
    ) -> None:
        self._model, self._V, self._names, self._job = model, V, names, job

    def infer(self, task: ShardTask) -> Found:
        """Compares the codes of a shard with the classes."""
        file = CodeFile.open(task.shard.uri, size=task.shard.size)
        check_model(file, {self._model.fingerprint: self._model})
        groups: dict[str, tuple[int, NDArray[np.float64]]] = {}
        if self._job.by == "label":
            images = sum(self._add(groups, *one) for one in self._compared(file))
            return Found(images=images, lines=[], groups=groups)
        images = 0
        shown: list[dict[str, Any]] = []
        with _writing(join(self._job.output, f"{task.shard.stem}.parquet")) as writer:
            for batch, keep, cosines in self._compared(file):
                ids = batch.ids.take(pa.array(keep)).to_pylist()
                lines = [
                    line(str(key), 1, row, self._names, self._job)
                    for key, row in zip(ids, cosines, strict=True)
                ]
                writer.write_table(pa.Table.from_pylist(lines, SCHEMA))
                images += len(lines)
                shown += lines[: _SHOWN - len(shown)]
        return Found(images=images, lines=shown, groups=groups)

    def _compared(
        self, file: CodeFile
    ) -> Iterator[tuple[CodeBatch, NDArray[np.int64], NDArray[np.float32]]]:
        """Batches, which of their rows are asked for, and these rows' cosines [n, T]."""
        for batch in file.batches(_ROWS):
            keep = self._chosen(batch)
            yield batch, keep, self._model.cosines(self._model.decode(batch.B[keep]), self._V)

    def _chosen(self, batch: CodeBatch) -> NDArray[np.int64]:
        if not self._job.labels:
            return np.arange(len(batch.B))
        if batch.labels is None:  # a shard without labels has no image of any class
            return np.empty(0, np.int64)
        wanted = set(self._job.labels)
        return np.flatnonzero([label in wanted for label in batch.labels.to_pylist()])

    def _add(
        self,
        groups: dict[str, tuple[int, NDArray[np.float64]]],
        batch: CodeBatch,
        keep: NDArray[np.int64],
        cosines: NDArray[np.float32],
    ) -> int:
        if batch.labels is None:
            return 0
        labels = batch.labels.take(pa.array(keep)).to_pylist()
        for name in sorted({label for label in labels if label is not None}):
            rows = [index for index, label in enumerate(labels) if label == name]
            merge(groups, name, len(rows), cosines[rows].sum(axis=0, dtype=np.float64))
        return sum(label is not None for label in labels)


def merge(
    groups: dict[str, tuple[int, NDArray[np.float64]]],
    name: str,
    count: int,
    total: NDArray[np.float64],
) -> None:
    """Adds images to a group."""
    before = groups.get(name)
    # A copy: it may be a view of shared memory.
    groups[name] = (
        (count, total.copy()) if before is None else (before[0] + count, before[1] + total)
    )


def line(
    key: str, images: int, cosines: NDArray[Any], names: list[str], job: InferSemanticsJob
) -> dict[str, Any]:
    """One line of the result: the most and the least similar classes, best and worst first."""
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
"""``key`` is the image's id or the group's label; ``similar`` counts classes at τ or above."""


def infer_semantics(job: InferSemanticsJob, executor: Executor) -> dict[str, Any]:
    """Compares stored codes with the known classes; writes one Parquet file a shard, or one of
    all groups.

    Raises:
        ConfigError: an output with other files in it.
        InputError: codes without labels where they are needed, no image of the labels asked for.
        ModelError: codes of another model.
        JobError: shards that could not be read.
    """
    model = registry.load(job.model)
    table = ClassTable.open(job.classes)
    chosen = table.select(job.candidates)
    ids = [table.ids[int(index)].as_py() for index in chosen]
    V, _ = model.prototypes_of(ids, table.embeddings[chosen])
    version = snapshot.read(job.codes, job.version)
    tasks = [ShardTask(shard=shard) for shard in stored_shards(job.codes, version)]
    stems = ["groups"] if job.by == "label" else [task.shard.stem for task in tasks]
    refuse_others(job.output, [f"{stem}.parquet" for stem in stems])
    images = 0
    lines: list[dict[str, Any]] = []
    groups: dict[str, tuple[int, NDArray[np.float64]]] = {}
    with executor.start_workers(InferWorker, model, V, ids, job, stage="infer") as pool:
        # Float sums: the order fixes the last bit.
        results = pool.map(InferWorker.infer, tasks, ordered=True)
        for found in completed(
            results, total=len(tasks), label="infer", on_bad_shard=job.on_bad_shard
        ):
            images += found.images
            lines += found.lines[: _SHOWN - len(lines)]
            for name, (count, total) in found.groups.items():
                merge(groups, name, count, total)
    if not images:
        wanted = "images with labels" if job.by == "label" else "images"
        if job.labels:
            wanted = f"an image labelled {', '.join(job.labels)}"
        raise InputError(job.codes, expected=wanted, found="none")
    if job.by == "label":
        lines = [
            line(name, count, total / count, ids, job)
            for name, (count, total) in sorted(groups.items())
        ]
        with _writing(join(job.output, "groups.parquet")) as writer:
            writer.write_table(pa.Table.from_pylist(lines, SCHEMA))
    names = dict(zip(table.ids.to_pylist(), table.names, strict=True))
    return {"output": job.output, "images": images, "table": readable(lines, names)}


@contextmanager
def _writing(uri: str) -> Iterator[pq.ParquetWriter]:
    with replacing(uri) as sink, pq.ParquetWriter(sink, SCHEMA, write_page_checksum=True) as writer:
        yield writer


def readable(lines: list[dict[str, Any]], names: Mapping[str, str]) -> list[str]:
    """The first lines for people, with names in place of class_ids."""

    def told(ids: list[str], cosines: list[float]) -> str:
        return ", ".join(f"{names[a]} {b:+.2f}" for a, b in zip(ids, cosines, strict=True))

    return [
        f"{one['key']} ({one['images']}): like {told(one['most_similar'], one['most_cosine'])}; "
        f"unlike {told(one['least_similar'], one['least_cosine'])}"
        for one in lines[:_SHOWN]
    ]
