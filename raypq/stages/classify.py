"""Classify: codes (or, exactly, features) against the tables of a class set; top-k per image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import ClassifyJob, Metric
from raypq.data import output, predictions, snapshot
from raypq.data.ahead import ahead
from raypq.data.classes import ClassTable
from raypq.data.codes import CodeFile
from raypq.data.features import FeatureStore, open_features
from raypq.data.predictions import Best, PredictionBatch
from raypq.data.snapshot import Snapshot
from raypq.data.storage import Shard, join
from raypq.errors import ConfigError, ModelError
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.crew import Crew
from raypq.stages.store import ShardTask, StoreRun, stored_shards, work_id
from raypq.stages.tally import Tally

_CODE_ROWS = 65_536  # a tile of tables is read once for all of them


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The classes to choose among.

    Attributes:
        table: the whole class table. chosen: indices of the candidates, ascending.
        calibration: taken off the scores of seen classes (calibrated stacking).
    """

    table: ClassTable
    chosen: NDArray[np.int64]
    calibration: float

    def prototypes(
        self, model: Model, chosen: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Prototypes V [t, D] and bias [t] of some classes of the table."""
        ids = [self.table.ids[int(index)].as_py() for index in chosen]
        E = self.table.E if model.classes is not None else self.table.embeddings
        return model.prototypes_of(ids, None if E is None else E[chosen])

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """The candidates by seen and unseen; one group of all where only one kind is there."""
        seen = self.table.seen
        if seen is None:
            return {"all": self.chosen}
        parts = {
            "seen": self.chosen[seen[self.chosen]],
            "unseen": self.chosen[~seen[self.chosen]],
        }
        return {name: part for name, part in parts.items() if len(part)}


TopK = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and classes, both [n, k]


@dataclass(frozen=True)
class _Found:
    """Some images and the best of each group for them."""

    ids: pa.Array
    labels: pa.StringArray | None
    best: dict[str, TopK]


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """An open shard of codes or of features."""

    id_type: pa.DataType
    label: bool
    batches: Iterator[_Found]


class ClassifyWorker:
    """Scans shards with the tables of one model and class set, built on first use."""

    def __init__(
        self, model: Model, candidates: Candidates, job: ClassifyJob, metric: Metric
    ) -> None:
        self._model, self._candidates, self._job, self._metric = model, candidates, job, metric

    @cached_property
    def _tables(self) -> dict[str, kernels.Tables]:
        model, candidates = self._model, self._candidates
        built = {}
        for name, chosen in candidates.groups.items():
            V, bias = candidates.prototypes(model, chosen)
            if name == "seen":
                bias = bias - candidates.calibration
            built[name] = model.tables(V, bias, self._metric)
        return built

    def __call__(self, task: ShardTask, shared: None) -> tuple[output.Receipt, Tally]:
        tally = Tally.empty(len(self._candidates.table))
        if task.kept is not None:
            place = join(self._job.output, task.kept.path)
            table = self._candidates.table
            for batch in predictions.read(place, table, size=task.kept.bytes):
                tally.add(batch)
            return task.kept, tally
        with self._open(task.shard) as rows:
            schema = self._schema(rows.id_type, rows.label)
            receipt = output.write_shard(
                self._job.output,
                task.shard,
                model=self._model.fingerprint,
                work=task.work,
                schema=schema,
                batches=self._batches(rows.batches, schema, tally, task.shard.uri),
                options=predictions.WRITE_OPTIONS,
            )
        return receipt, tally

    @contextmanager
    def _open(self, shard: Shard) -> Iterator[_Rows]:
        if self._job.codes is not None:
            file = CodeFile.open(shard.uri, size=shard.size)
            check_model(file, self._model)
            found = (_Found(b.ids, b.labels, self._scan(b.B)) for b in file.batches(_CODE_ROWS))
            yield _Rows(id_type=file.id_type, label=file.label, batches=found)
            return
        columns = self._job.columns
        with open_features(shard, columns, width=self._model.dx) as reader:
            found = (_Found(b.ids, b.labels, self._score(b.X)) for b in ahead(reader.batches()))
            yield _Rows(id_type=reader.id_type, label=reader.label, batches=found)

    def _scan(self, B: NDArray[np.uint8]) -> dict[str, TopK]:
        """The best of each group for codes [n, M]."""
        k, device = self._job.top_k, self._job.where.device
        return {
            name: kernels.topk_per_code(B, tables, k, device=device)
            for name, tables in self._tables.items()
        }

    def _score(self, X: NDArray[np.float32]) -> dict[str, TopK]:
        """The best of each group for features [n, dx], uncompressed."""
        U = self._model.embed(X)
        k, device = self._job.top_k, self._job.where.device
        return {
            name: kernels.topk_per_vector(U, tables, k, device=device)
            for name, tables in self._tables.items()
        }

    def _batches(
        self, batches: Iterator[_Found], schema: pa.Schema, tally: Tally, where: str
    ) -> Iterator[pa.RecordBatch]:
        groups, table = self._candidates.groups, self._candidates.table
        row = 0
        for found in batches:
            placed = {name: (score, groups[name][at]) for name, (score, at) in found.best.items()}
            score, classes = kernels.merge_topk(list(placed.values()), self._job.top_k)
            n = len(found.ids)
            y = np.full(n, -1, np.int32)
            if found.labels is not None:
                y = table.index(found.labels, where=where, row0=row)
            best = {name: Best(score=s[:, 0], classes=c[:, 0]) for name, (s, c) in placed.items()}
            batch = PredictionBatch(score=score, classes=classes, y=y, best=best)
            tally.add(batch)
            row += n
            yield predictions.record_batch(schema, table, batch, ids=found.ids, labels=found.labels)

    def _schema(self, id_type: pa.DataType, label: bool) -> pa.Schema:
        metadata = {
            "raypq.model": self._model.fingerprint,
            "raypq.metric": self._metric,
            "raypq.candidates": self._job.candidates,
            "raypq.calibration": repr(self._candidates.calibration),
            "raypq.compressed": str(self._job.codes is not None).lower(),
        }
        both = set(self._candidates.groups) == set(predictions.GROUPS)
        return predictions.schema(id_type=id_type, label=label, groups=both, metadata=metadata)


def check_model(file: CodeFile, model: Model) -> None:
    """Refuses codes that another model made.

    Raises:
        ModelError: naming both fingerprints.
    """
    if file.fingerprint != model.fingerprint:
        raise ModelError(
            file.uri,
            expected=f"codes made by model {model.fingerprint[:12]}",
            found=f"codes made by model {file.fingerprint[:12]}",
        )


def classify(job: ClassifyJob, crew: Crew) -> Snapshot:
    """Classifies a store; returns the version of the prediction store that holds the result.

    Its summary has the counts of all shards under ``result``.

    Raises:
        ConfigError: neither or both of codes and features, an unknown split.
        JobError: shards that could not be classified; every good one is finished.
    """
    if (job.codes is None) == (job.features is None):
        raise ConfigError("classify reads either codes or features: pass exactly one of them")
    model = registry.load(job.model)
    metric = job.metric or model.class_metric
    table = ClassTable.open(job.classes)
    candidates = Candidates(
        table=table, chosen=table.select(job.candidates), calibration=_calibration(job, model)
    )
    if candidates.calibration and table.seen is None:
        raise ConfigError(f"calibration: {job.classes} has no column 'seen' to calibrate by")
    model = _with_table(model, table)
    # They must fit before any work starts.
    candidates.prototypes(model, candidates.chosen[: 1 if model.classes is None else None])
    calibrated = f"{metric}:{candidates.calibration!r}:{table.digest}"
    if model.layer is not None:
        calibrated += f":{model.layer.digest}"
    settings = job.model_dump_json(include={"candidates", "top_k", "columns"})
    run = StoreRun.plan(
        kind="predictions",
        store=job.output,
        work=work_id(model.fingerprint, settings + calibrated),
        shards=_shards(job),
    )
    if finished := run.finished():
        return finished
    total = Tally.empty(len(table))
    summary: dict[str, Any] = {
        "model": job.model,
        "fingerprint": model.fingerprint,
        "metric": metric,
        "classes": job.classes,
        "candidates": job.candidates,
        "calibration": candidates.calibration,
        "model_calibration": model.record.get("calibration"),
        "compressed": job.codes is not None,
    }

    def reduce(result: tuple[output.Receipt, Tally]) -> output.Receipt:
        receipt, tally = result
        total.merge(tally)
        return receipt

    with crew.hire(ClassifyWorker, model, candidates, job, metric) as gang:
        return run.execute(
            gang,
            on_bad_shard=job.on_bad_shard,
            reduce=reduce,
            summarise=lambda: {**summary, "result": total.summary(table)},
            recount=True,
        )


def _with_table(model: Model, table: ClassTable) -> Model:
    """The model with prototypes of the whole table, where they depend on one another.

    They are made once, here, and not by each worker.
    """
    if not model.joint_classes:
        return model
    ids = table.ids.to_pylist()
    if model.layer is not None and model.layer.find(ids, table.embeddings) is not None:
        return model
    return model.with_classes(ids, table.embeddings)


def _calibration(job: ClassifyJob, model: Model) -> float:
    if job.calibration != "model":
        return float(job.calibration)
    found = model.record.get("calibration")
    if found is None:
        raise ModelError(
            job.model, expected="a calibration from training with --tune", found="none"
        )
    return float(found)


def _shards(job: ClassifyJob) -> list[Shard]:
    if job.features is not None:
        return list(FeatureStore.open(job.features, job.columns).shards)
    assert job.codes is not None, "checked before"
    return stored_shards(job.codes, snapshot.read(job.codes, job.version))
