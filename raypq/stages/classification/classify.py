"""Classify: codes (or, exactly, features) against the tables of a class set; top-k per image."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import ClassifyJob
from raypq.data import predictions
from raypq.data.classes import ClassTable
from raypq.data.codes import CodeFile
from raypq.data.features import FeatureStore, open_features
from raypq.data.ids import IdKind, IdRule, receipt_kind
from raypq.data.predictions import Best, PredictionBatch
from raypq.data.prefetch import ahead
from raypq.data.storage import join
from raypq.data.store import shard_writer, sidecars, snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError
from raypq.execution.executor import Executor, TaskResult
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Model
from raypq.metrics.accuracy import ClassCounts
from raypq.stages.classification import counts
from raypq.stages.classification.scorers import Candidates, ClassScorer, build_scorers, told_of
from raypq.stages.classification.unknown_labels import check_labels
from raypq.stages.stores.code_store import check_model
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.shard_types import check_label_column, id_rule
from raypq.stages.stores.work_id import classify_work

_REMEDY = "add the class to the table, correct the label, or set unknown_labels: report"
_CODE_ROWS = 65_536  # a tile of tables is read once for all of them


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
    noted: IdKind | None = None  # what a receipt says of the ids


Classified = tuple[shard_writer.Receipt, ClassCounts]


class ClassifyWorker:
    """Scans each shard with the tables of its own model, built on first use and kept."""

    def __init__(
        self,
        judges: Mapping[str, ClassScorer],
        candidates: Candidates,
        job: ClassifyJob,
        rule: IdRule | None = None,
    ) -> None:
        self._judges, self._candidates, self._job = judges, candidates, job
        self._rule = rule
        self._built: dict[str, dict[str, kernels.Tables]] = {}
        self._lock = Lock()

    def _tables(self, model: str) -> dict[str, kernels.Tables]:
        with self._lock:  # threads share the worker; tables are large, and built once
            if model not in self._built:
                self._built[model] = self._judges[model].tables(self._candidates)
            return self._built[model]

    def classify(self, task: ShardTask) -> Classified:
        """Classifies a shard; one that is kept is only counted."""
        tally = ClassCounts.empty(len(self._candidates.table))
        if task.kept is not None:
            place = join(self._job.output, task.kept.path)
            table = self._candidates.table
            for batch in predictions.read(place, table, size=task.kept.bytes):
                tally.add(batch)
            return task.kept, tally
        with self._open(task) as rows:
            schema = self._schema(self._judges[task.model], rows.id_type, rows.label)
            receipt = shard_writer.write_shard(
                self._job.output,
                task.shard,
                model=task.model,
                work=task.work,
                schema=schema,
                batches=self._batches(rows.batches, schema, tally, task.shard.uri),
                options=predictions.WRITE_OPTIONS,
            )
        return receipt.model_copy(update={"ids": rows.noted}), tally

    @contextmanager
    def _open(self, task: ShardTask) -> Iterator[_Rows]:
        tables = self._tables(task.model)
        model = self._judges[task.model].model
        if self._job.codes is not None:
            file = CodeFile.open(task.shard.uri, size=task.shard.size)
            check_model(file, {task.model: model})
            found = (
                _Found(b.ids, b.labels, self._scan(b.B, tables)) for b in file.batches(_CODE_ROWS)
            )
            yield _Rows(id_type=file.id_type, label=file.label, batches=found)
            return
        rule = self._rule
        with open_features(task.shard, self._job.columns, width=model.dx, rule=rule) as reader:
            found = (
                _Found(b.ids, b.labels, self._score(model.embed(b.X), tables))
                for b in ahead(reader.batches())
            )
            noted = receipt_kind(reader.id_column, rule) if rule else None
            yield _Rows(id_type=reader.id_type, label=reader.label, batches=found, noted=noted)

    def _scan(self, B: NDArray[np.uint8], tables: Mapping[str, kernels.Tables]) -> dict[str, TopK]:
        """The best of each group for codes [n, M]; of the smaller one those that may be among the
        best of both, and its best in any case."""
        k, device = self._job.top_k, self._job.where.device
        names = sorted(tables, key=lambda name: -tables[name].T)
        large = kernels.topk_per_code(B, tables[names[0]], k, device=device)
        found = {names[0]: large}
        for name in names[1:]:
            bar = large[0][:, -1] if large[0].shape[1] == k else None
            found[name] = best_above(B, tables[name], k, bar, device)
        return {name: found[name] for name in tables}

    def _score(
        self, U: NDArray[np.float32], tables: Mapping[str, kernels.Tables]
    ) -> dict[str, TopK]:
        """The best of each group for embedded images [n, D], uncompressed."""
        k, device = self._job.top_k, self._job.where.device
        return {
            name: kernels.topk_per_vector(U, group, k, device=device)
            for name, group in tables.items()
        }

    def _batches(
        self, batches: Iterator[_Found], schema: pa.Schema, tally: ClassCounts, where: str
    ) -> Iterator[pa.RecordBatch]:
        groups, table = self._candidates.groups, self._candidates.table
        row = 0
        for found in batches:
            placed = {name: (score, groups[name][at]) for name, (score, at) in found.best.items()}
            score, classes = kernels.merge_topk(list(placed.values()), self._job.top_k)
            n = len(found.ids)
            y, unknown = np.full(n, -1, np.int32), None
            if found.labels is not None and self._job.unknown_labels == "refuse":
                y = table.index(found.labels, where=where, row0=row, remedy=_REMEDY)
            elif found.labels is not None:
                y, unknown = table.find(found.labels)
            best = {name: Best(score=s[:, 0], classes=c[:, 0]) for name, (s, c) in placed.items()}
            batch = PredictionBatch(
                score=score, classes=classes, y=y, best=best, unknown_labels=unknown
            )
            tally.add(batch)
            row += n
            yield predictions.record_batch(schema, table, batch, ids=found.ids, labels=found.labels)

    def _schema(self, judge: ClassScorer, id_type: pa.DataType, label: bool) -> pa.Schema:
        metadata = {
            "raypq.model": judge.model.fingerprint,
            "raypq.metric": judge.metric,
            "raypq.candidates": self._job.candidates,
            "raypq.calibration": repr(judge.calibration),
            "raypq.compressed": str(self._job.codes is not None).lower(),
        }
        both = set(self._candidates.groups) == set(predictions.GROUPS)
        return predictions.schema(id_type=id_type, label=label, groups=both, metadata=metadata)


def best_above(
    B: NDArray[np.uint8],
    tables: kernels.Tables,
    k: int,
    bar: NDArray[np.float32] | None,
    device: str = "cpu",
) -> TopK:
    """The k best classes of codes [n, M] that score at least ``bar`` [n], and the best in any case.

    Where another group has k classes above all but the best of this one, the others of this one
    need not be known: they stand at −∞. None: all k.
    """
    if bar is None:
        return kernels.topk_per_code(B, tables, k, device=device)
    most = min(k, tables.T)
    score = np.full((len(B), most), -np.inf, np.float32)
    found = np.zeros((len(B), most), np.int64)
    rows, few = np.arange(len(B)), 1
    while len(rows):
        part = kernels.topk_per_code(B[rows], tables, few, device=device)
        score[rows, :few], found[rows, :few] = part
        if few == most:
            break
        # Few have many: of four times as many the next ones are asked, where all were above.
        rows, few = rows[part[0][:, -1] >= bar[rows]], min(4 * few, most)
    return score, found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before any shard is opened."""

    judges: Mapping[str, ClassScorer]
    candidates: Candidates
    run: StoreRun

    @classmethod
    def make(cls, job: ClassifyJob, *, own: Model | None = None) -> Plan:
        """Loads models and classes, and looks at what is there already.

        Args:
            own: as of ``build_scorers``.

        Raises:
            ConfigError: neither or both of codes and features, an unknown split.
            ModelError: a model that does not fit the codes or the classes.
        """
        if (job.codes is None) == (job.features is None):
            raise ConfigError("classify reads either codes or features: pass exactly one of them")
        codes = _codes(job)
        table = ClassTable.open(job.classes)
        candidates = Candidates.of(job, table)
        candidates.named.warn()
        judges = build_scorers(job, codes, candidates, own=own)
        if codes is not None and job.codes is not None:
            shards = stored_shards(job.codes, codes)
            models = [receipt.model for receipt in codes.shards]
        else:
            shards = list(FeatureStore.open(job.features or [], job.columns).shards)
            models = [*judges] * len(shards)  # there is one: the job names it
        works = {
            name: classify_work(
                name,
                job,
                scores=judge.settings,
                classes=table.digest,
                candidates=table.digest_of(job.candidates, candidates.chosen),
            )
            for name, judge in judges.items()
        }
        tasks = [
            ShardTask(shard=shard, model=model, work=works[model])
            for shard, model in zip(shards, models, strict=True)
        ]
        run = StoreRun.plan(
            kind="predictions", store=job.output, tasks=tasks, on_bad_shard=job.on_bad_shard
        )
        return cls(judges=judges, candidates=candidates, run=run)


def classify(job: ClassifyJob, executor: Executor) -> Snapshot:
    """Classifies a store; returns the version of the prediction store that holds the result.

    Codes are judged by the models that made them, unless the job names one. The summary has the
    counts of all shards under ``result``, and of each model under ``models``.

    Raises:
        ConfigError: neither or both of codes and features, an unknown split.
        JobError: shards that could not be classified; every good one is finished.
    """
    record = RunRecord(job, executor)
    plan = Plan.make(job)
    if found := finished(job, plan):
        return found
    if job.features is not None and plan.run.latest and (others := plan.run.dropped):
        console.warn(
            f"{job.output}: {len(others)} shards of version {plan.run.latest.version} are not "
            f"among these features, such as {others[0].source.uri}, and the next version will "
            "lack them; use another output to keep both",
            shards=len(others),
        )
    return carry_out(job, plan, executor, record)


def finished(job: ClassifyJob, plan: Plan) -> Snapshot | None:
    """The latest version, if it is what the job would make.

    Raises:
        InputError: it has labels that the class table lacks, and the job refuses them.
    """
    found = plan.run.finished()
    if found is not None:
        check_labels(job, job.output, found.summary.get("result") or {})
    return found


def carry_out(job: ClassifyJob, plan: Plan, executor: Executor, record: RunRecord) -> Snapshot:
    """Does what a plan found missing, and makes the version.

    Raises:
        JobError: shards that could not be classified; every good one is finished.
    """
    table = plan.candidates.table
    rule = None
    if job.features is not None:
        check_label_column([task.shard for task in plan.run.tasks], job.columns)
        rule = id_rule(plan.run, job.columns)
    total = ClassCounts.empty(len(table))
    only = next(iter(plan.judges.values())) if len(plan.judges) == 1 else None
    alike = only.describe() if only else {}
    summary: dict[str, Any] = {
        "model": job.model,
        "fingerprint": only.model.fingerprint if only else None,
        **{name: alike.get(name) for name in ("metric", "calibration", "model_calibration")},
        "classes": job.classes,
        "candidates": job.candidates,
        **plan.candidates.named.told(),
        "compressed": job.codes is not None,
    }

    def reduce(result: tuple[shard_writer.Receipt, ClassCounts]) -> shard_writer.Receipt:
        receipt, tally = result
        total.merge(tally)
        record.finished(receipt.rows)
        return receipt

    def summarise(receipts: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("classify")
        models = told_of(plan.judges, receipts)
        result = total.summary(table)
        check_labels(job, job.output, result)
        noted = sidecars.told(counts.write(job.output, table, receipts, total))
        return {**summary, "models": models, "result": result, **noted, "run": record.summary()}

    def read_again(run: StoreRun) -> Collection[str]:
        nonlocal total
        total, stems = counts.begin(read_counts, run, table)
        return stems

    with (
        executor.start_workers(
            ClassifyWorker, plan.judges, plan.candidates, job, rule, stage="classify"
        ) as pool,
        record.observe(pool),
    ):

        def read_counts(tasks: Sequence[ShardTask]) -> Iterator[TaskResult[Classified]]:
            return pool.map(ClassifyWorker.classify, tasks)

        return plan.run.execute(
            read_counts,
            on_bad_shard=job.on_bad_shard,
            reduce=reduce,
            summarise=summarise,
            read_again=read_again,
        )


def _codes(job: ClassifyJob) -> Snapshot | None:
    if job.codes is None:
        return None
    version = snapshot.read(job.codes, job.version)
    if version.kind != "codes":
        raise InputError(job.codes, expected="a store of codes", found=f"one of {version.kind}")
    return version
