"""Classify: top-k classes of each image, from codes or from uncompressed features."""

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
from raypq.data.class_advice import advice
from raypq.data.classes import ClassTable
from raypq.data.codes import CodeFile
from raypq.data.features import ReadOptions, open_features
from raypq.data.ids import IdKind, IdRule, receipt_kind
from raypq.data.predictions import Best, PredictionBatch
from raypq.data.prefetch import prefetch
from raypq.data.storage import join
from raypq.data.store import shard_writer, sidecars, snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.data.store.sources import open_sources
from raypq.errors import ConfigError, InputError
from raypq.execution.executor import Executor, TaskResult
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Model
from raypq.metrics.accuracy import ClassCounts
from raypq.stages.classification import counts
from raypq.stages.classification.calibration import say_calibration
from raypq.stages.classification.candidates import Candidates
from raypq.stages.classification.class_groups import Rows, TopK, stored_code_rows
from raypq.stages.classification.decisions import Decision, check_decision
from raypq.stages.classification.ranking import rank
from raypq.stages.classification.scorers import (
    ClassScorer,
    Group,
    build_scorers,
    summary_of_models,
)
from raypq.stages.classification.unknown_labels import check_labels, counts_of
from raypq.stages.stores.code_store import check_model
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.shard_types import check_label_column, id_rule
from raypq.stages.stores.work_id import classify_work

_REMEDY = "add the class to the table, correct the label, or set unknown_labels: report"
_ACCEPTED = 1 << 22  # classes that a batch of predictions may list beside the top k
_CODE_ROWS = 65_536  # codes scanned at once, so that each tile of tables is read once for many


@dataclass(frozen=True)
class _Scored:
    """A batch of images with the top k of each group of candidates.

    Attributes:
        rows: codes [n, M], or embedded images [n, D] where nothing is compressed.
        log_sum: as of ``Decision.log_sums``.
    """

    ids: pa.Array
    labels: pa.StringArray | None
    rows: Rows
    best: dict[str, TopK]
    log_sum: NDArray[np.float64] | None

    def part(self, rows: slice) -> _Scored:
        """Some of its images."""
        best = {name: (score[rows], at[rows]) for name, (score, at) in self.best.items()}
        labels = None if self.labels is None else self.labels[rows]
        log_sum = None if self.log_sum is None else self.log_sum[rows]
        return _Scored(
            ids=self.ids[rows], labels=labels, rows=self.rows[rows], best=best, log_sum=log_sum
        )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """An open shard of codes or features.

    Attributes:
        ids: kind of its ids, for the receipt.
    """

    id_type: pa.DataType
    label: bool
    batches: Iterator[_Scored]
    ids: IdKind | None = None


Classified = tuple[shard_writer.Receipt, ClassCounts]


class ClassifyWorker:
    """Classifies each shard with the tables of its own model, which are built once.

    Args:
        scorers: class scorers by the fingerprint of their model.
        rule: the type that ids of features must have.
        code_rows: codes that a worker will classify, as far as it is known.
    """

    def __init__(
        self,
        scorers: Mapping[str, ClassScorer],
        candidates: Candidates,
        job: ClassifyJob,
        rule: IdRule | None = None,
        code_rows: int = 0,
    ) -> None:
        self._scorers, self._candidates, self._job = scorers, candidates, job
        self._rule, self._code_rows = rule, code_rows
        self._decision = Decision.of(job, candidates.table)
        self._built: dict[str, dict[str, Group]] = {}
        self._lock = Lock()

    def _groups(self, model: str) -> dict[str, Group]:
        with self._lock:  # threads share the worker and its tables
            if model not in self._built:
                scorer = self._scorers[model]
                self._built[model] = scorer.groups(self._candidates, self._code_rows)
            return self._built[model]

    def classify(self, task: ShardTask) -> Classified:
        """Classifies a shard; of a kept one, only counts the predictions."""
        class_counts = ClassCounts.empty(len(self._candidates.table))
        if task.previous is not None:
            uri = join(self._job.output, task.previous.path)
            table = self._candidates.table
            for batch in predictions.read(uri, table, size=task.previous.bytes):
                class_counts.add(batch)
            return task.previous, class_counts
        with self._open(task) as rows:
            schema = self._schema(self._scorers[task.model], rows.id_type, rows.label)
            receipt = shard_writer.write_shard(
                self._job.output,
                task.shard,
                model=task.model,
                work=task.work,
                schema=schema,
                batches=self._batches(rows.batches, schema, class_counts, task),
                options=predictions.WRITE_OPTIONS,
            )
        return receipt.model_copy(update={"ids": rows.ids}), class_counts

    @contextmanager
    def _open(self, task: ShardTask) -> Iterator[_Rows]:
        model = self._scorers[task.model].model
        if self._job.codes is not None:
            file = CodeFile.open(task.shard.uri, size=task.shard.size)
            check_model(file, {task.model: model})
            batches = file.batches(self._code_rows_at_once(self._scorers[task.model]))
            scored = (self._scored(task, b.ids, b.labels, b.B) for b in batches)
            yield _Rows(id_type=file.id_type, label=file.label, batches=scored)
            return
        rule = self._rule
        how = ReadOptions(rule=rule, backbone=model.backbone)
        with open_features(task.shard, self._job.columns, width=model.dx, how=how) as reader:
            scored = (
                self._scored(task, b.ids, b.labels, model.embed(b.X))
                for b in prefetch(reader.batches())
            )
            ids = receipt_kind(reader.id_column, rule) if rule else None
            yield _Rows(id_type=reader.id_type, label=reader.label, batches=scored, ids=ids)

    def _code_rows_at_once(self, scorer: ClassScorer) -> int:
        if not scorer.stored(self._candidates):
            return _CODE_ROWS
        decoded = self._decision is not None and self._decision.has_softmax
        k = min(self._job.top_k, len(self._candidates.chosen))
        return stored_code_rows(k, scorer.model.D if decoded else 0)

    def _scored(
        self,
        task: ShardTask,
        ids: pa.Array,
        labels: pa.StringArray | None,
        rows: Rows,
    ) -> _Scored:
        best, log_sum = self._rank(task, rows, self._job.top_k), None
        if self._decision is not None:  # of all rows at once, since classes may be in a file
            device = self._job.where.device
            log_sum = self._decision.log_sums(rows, self._groups(task.model), device)
        return _Scored(ids=ids, labels=labels, rows=rows, best=best, log_sum=log_sum)

    def _rank(self, task: ShardTask, rows: Rows, k: int) -> dict[str, TopK]:
        """The top k of each group, as indices into the class table."""
        best = rank(rows, self._groups(task.model), k, self._job.where.device)
        chosen = self._candidates.groups
        return {name: (score, chosen[name][at]) for name, (score, at) in best.items()}

    def _decided(self, task: ShardTask, scored: _Scored, best: TopK) -> dict[str, Any]:
        """The probabilities and accepted classes that the job asks for."""
        decision = self._decision
        if decision is None:
            return {}

        def deeper(left: NDArray[np.int64], depth: int) -> TopK:
            return kernels.merge_topk([*self._rank(task, scored.rows[left], depth).values()], depth)

        log_sum = scored.log_sum
        decided: dict[str, Any] = {}
        if decision.scale is not None:
            decided["probability"] = decision.values(best[0], log_sum)
        if decision.threshold is not None:
            T = sum(group.T for group in self._groups(task.model).values())
            decided["accepted"] = decision.accepted(best, log_sum, T, deeper)
        return decided

    def _batches(
        self,
        batches: Iterator[_Scored],
        schema: pa.Schema,
        class_counts: ClassCounts,
        task: ShardTask,
    ) -> Iterator[pa.RecordBatch]:
        table, where = self._candidates.table, task.shard.uri
        row = 0
        for scored in self._blocks(batches):
            score, classes = kernels.merge_topk([*scored.best.values()], self._job.top_k)
            n = len(scored.ids)
            y, unknown = np.full(n, -1, np.int32), None
            if scored.labels is not None and self._job.unknown_labels == "refuse":
                y = table.index(scored.labels, where=where, row0=row, remedy=_REMEDY)
            elif scored.labels is not None:
                y, unknown = table.find(scored.labels)
            best = {
                name: Best(score=s[:, 0], classes=c[:, 0]) for name, (s, c) in scored.best.items()
            }
            batch = PredictionBatch(
                score=score,
                classes=classes,
                y=y,
                best=best,
                unknown_labels=unknown,
                **self._decided(task, scored, (score, classes)),
            )
            class_counts.add(batch)
            row += n
            yield predictions.record_batch(
                schema, table, batch, ids=scored.ids, labels=scored.labels
            )

    def _blocks(self, batches: Iterator[_Scored]) -> Iterator[_Scored]:
        """The batches; in parts where a threshold may list many classes of each image."""
        for scored in batches:
            n = len(scored.ids)
            step = n
            if self._decision is not None and self._decision.threshold is not None:
                step = max(1, _ACCEPTED // max(1, len(self._candidates.chosen)))
            for start in range(0, n, max(1, step)):
                yield scored.part(slice(start, start + step))

    def _schema(self, scorer: ClassScorer, id_type: pa.DataType, label: bool) -> pa.Schema:
        metadata = {
            "raypq.model": scorer.model.fingerprint,
            "raypq.metric": scorer.metric,
            "raypq.candidates": self._job.candidates,
            "raypq.calibration": repr(scorer.calibration),
            "raypq.compressed": str(self._job.codes is not None).lower(),
        }
        both = set(self._candidates.groups) == set(predictions.GROUPS)
        return predictions.schema(
            id_type=id_type,
            label=label,
            groups=both,
            metadata=metadata,
            probability=self._decision is not None and self._decision.scale is not None,
            accepted=self._decision is not None and self._decision.threshold is not None,
        )


@dataclass(frozen=True, kw_only=True)
class ClassifyPlan:
    """Scorers, candidates and tasks of a job, before any shard is opened.

    Attributes:
        code_rows: codes of the shards that need work.
    """

    scorers: Mapping[str, ClassScorer]
    candidates: Candidates
    run: StoreRun
    code_rows: int

    @classmethod
    def make(cls, job: ClassifyJob, *, nightly_model: Model | None = None) -> ClassifyPlan:
        """Loads models and classes, and finds the shards that need work.

        Args:
            nightly_model: as of ``build_scorers``.

        Raises:
            ConfigError: neither or both of codes and features, an unknown split.
            ModelError: a model does not fit the codes or the classes.
        """
        if (job.codes is None) == (job.features is None):
            raise ConfigError("classify reads either codes or features: pass exactly one of them")
        codes = _codes(job)
        table = ClassTable.open(job.classes)
        candidates = Candidates.of(job, table)
        candidates.selection.warn()
        scorers = build_scorers(job, codes, candidates, nightly_model=nightly_model)
        if not all(scorer.model.classes_by_id for scorer in scorers.values()):
            for warning in advice(table, candidates.chosen):
                console.warn(warning)
        check_decision(job, table, scorers)
        gammas = {scorer.calibration for scorer in scorers.values()}
        say_calibration(job, gammas)
        if codes is not None and job.codes is not None:
            shards = stored_shards(job.codes, codes)
            models = [receipt.model for receipt in codes.shards]
        else:
            shards = list(open_sources(job.features or [], job.columns).shards)
            models = [*scorers] * len(shards)  # the one model of the job
        works = {
            name: classify_work(
                name,
                job,
                scores=scorer.settings,
                classes=table.digest,
                candidates=table.digest_of(job.candidates, candidates.chosen),
            )
            for name, scorer in scorers.items()
        }
        tasks = [
            ShardTask(shard=shard, model=model, work=works[model])
            for shard, model in zip(shards, models, strict=True)
        ]
        run = StoreRun.plan(
            kind="predictions", store=job.output, tasks=tasks, on_bad_shard=job.on_bad_shard
        )
        pending = {receipt.shard: receipt.rows for receipt in (codes.shards if codes else ())}
        code_rows = sum(rows for stem, rows in pending.items() if stem not in run.kept)
        return cls(scorers=scorers, candidates=candidates, run=run, code_rows=code_rows)


def classify(job: ClassifyJob, executor: Executor) -> Snapshot:
    """Classifies a store; returns the new version of the prediction store.

    Codes are classified by the models that made them, unless the job names one. The summary has
    the counts of all shards in ``result``, and of each model in ``models``.

    Raises:
        ConfigError: neither or both of codes and features, an unknown split.
        JobError: some shards could not be classified; as ``completed``.
    """
    record = RunRecord(job, executor)
    plan = ClassifyPlan.make(job)
    if latest := finished(job, plan):
        return latest
    if job.features is not None and plan.run.latest and (others := plan.run.dropped):
        console.warn(
            f"{job.output}: {len(others)} shards of version {plan.run.latest.version} are not "
            f"among these features, such as {others[0].source.uri}, and the next version will "
            "lack them; use another output to keep both",
            shards=len(others),
        )
    return execute(job, plan, executor, record)


def finished(job: ClassifyJob, plan: ClassifyPlan) -> Snapshot | None:
    """The latest version, if it equals the one that the job would make.

    Raises:
        InputError: it has labels that the class table lacks, and the job refuses them.
    """
    latest = plan.run.unchanged_version()
    if latest is not None:
        check_labels(job, job.output, counts_of(job.output, latest))
    return latest


def execute(
    job: ClassifyJob, plan: ClassifyPlan, executor: Executor, record: RunRecord
) -> Snapshot:
    """Classifies the missing shards of a plan and commits its version.

    Raises:
        JobError: some shards could not be classified; as ``completed``.
    """
    table = plan.candidates.table
    rule = None
    if job.features is not None:
        check_label_column([task.shard for task in plan.run.tasks], job.columns)
        rule = id_rule(plan.run, job.columns)
    total = ClassCounts.empty(len(table))
    settings = _settings(job, plan)
    code_rows = plan.code_rows // max(1, executor.n_workers)
    of_worker = plan.scorers, plan.candidates, job, rule, code_rows

    def on_result(result: tuple[shard_writer.Receipt, ClassCounts]) -> shard_writer.Receipt:
        receipt, class_counts = result
        total.merge(class_counts)
        record.finished(receipt.rows)
        return receipt

    def summarise(receipts: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("classify")
        result = total.summary(table)
        check_labels(job, job.output, result)
        return {
            **settings,
            "models": summary_of_models(plan.scorers, receipts),
            "result": result,
            **sidecars.as_summary(counts.write(job.output, table, receipts, total)),
            "run": record.summary(),
        }

    def reprocess(run: StoreRun) -> Collection[str]:
        nonlocal total
        total, stems = counts.begin(read_counts, run, table)
        return stems

    with (
        executor.start_workers(ClassifyWorker, *of_worker, stage="classify") as pool,
        record.observe(pool),
    ):

        def read_counts(tasks: Sequence[ShardTask]) -> Iterator[TaskResult[Classified]]:
            return pool.map(ClassifyWorker.classify, tasks)

        return plan.run.execute(
            read_counts,
            on_bad_shard=job.on_bad_shard,
            on_result=on_result,
            summarise=summarise,
            reprocess=reprocess,
        )


def _settings(job: ClassifyJob, plan: ClassifyPlan) -> dict[str, Any]:
    """The settings that a version records; those of the model only where there is one."""
    only = next(iter(plan.scorers.values())) if len(plan.scorers) == 1 else None
    described = only.describe() if only else {}
    return {
        "model": job.model,
        "fingerprint": only.model.fingerprint if only else None,
        **{name: described.get(name) for name in ("metric", "calibration", "model_calibration")},
        "classes": job.classes,
        "candidates": job.candidates,
        **plan.candidates.selection.summary(),
        "compressed": job.codes is not None,
    }


def _codes(job: ClassifyJob) -> Snapshot | None:
    if job.codes is None:
        return None
    version = snapshot.read(job.codes, job.version)
    if version.kind != "codes":
        raise InputError(job.codes, expected="a store of codes", found=f"one of {version.kind}")
    return version
