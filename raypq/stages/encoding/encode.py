"""Encode: one code file for each feature shard, then one version of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import Columns, EncodeJob, Precision
from raypq.data import codes
from raypq.data.duplicate_ids import DuplicateIds, IdFile
from raypq.data.features import FeatureReader, FeatureStore, open_features
from raypq.data.ids import IdRule, receipt_kind
from raypq.data.layouts import content_digest
from raypq.data.prefetch import prefetch
from raypq.data.storage import join
from raypq.data.store import id_index, shard_writer, sidecars
from raypq.data.store.shard_writer import Source
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.metrics.drift import Gauge
from raypq.stages.encoding import known_codes
from raypq.stages.encoding.known_codes import KnownCodes
from raypq.stages.stores import model_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask
from raypq.stages.stores.shard_types import MADE_IDS, check_label_column, id_rule
from raypq.stages.stores.work_id import encode_work

_MAX_NAMES = 5  # dropped shards that a version names


@dataclass(kw_only=True)
class PrecisionCheck:
    """Codes that a lower precision changes, counted on the first batch of each shard."""

    codes: int = 0
    different: int = 0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An encoded shard: its receipt and counts.

    Attributes:
        left_out: images that could not be decoded.
        unchanged: images of a changed shard whose codes were kept.
    """

    receipt: shard_writer.Receipt
    precision: PrecisionCheck
    left_out: int = 0
    unchanged: int = 0


class EncodeWorker:
    """Encodes feature shards with one model.

    Args:
        by_content: whether shards are compared by the hash of their content.
        rule: the type that ids must have.
        work: work id of the shards that may be encoded, if others are kept.
    """

    def __init__(
        self,
        model: Model,
        columns: Columns,
        store: str,
        device: str,
        precision: Precision,
        by_content: bool = False,
        rule: IdRule | None = None,
        work: str | None = None,
    ) -> None:
        self._model, self._columns, self._store, self._rule = model, columns, store, rule
        self._work = work
        self._device, self._precision, self._by_content = device, precision, by_content

    def encode(self, task: ShardTask) -> Encoded:
        """Encodes a shard, or keeps its codes if its content has not changed."""
        if not self._by_content:
            return self._encode(task, Source.of(task.shard))
        source = Source.of(task.shard, sha256=content_digest(task.shard))
        if task.previous is None or task.previous.source.sha256 != source.sha256:
            return self._encode(task, source)
        # Same content with another time: the receipt records the new time.
        kept = task.previous.model_copy(update={"source": source})
        return Encoded(receipt=kept, precision=PrecisionCheck())

    def _encode(self, task: ShardTask, source: Source) -> Encoded:
        model, shard = self._model, task.shard
        precision = PrecisionCheck()
        if self._work is not None and task.work != self._work:
            raise InputError(
                shard.uri,
                expected="its codes of an earlier model or settings, which are to be kept",
                found="none: they were removed while this run was at work; run it again",
            )
        with open_features(
            shard, self._columns, width=model.dx, rule=self._rule, threads=kernels.threads()
        ) as reader:
            schema = codes.schema(
                fingerprint=model.fingerprint,
                M=model.M,
                K=model.K,
                id_type=reader.id_type,
                label=reader.label,
                version=reader.images,
            )
            gauge = Gauge(model, reader.rows)
            known = None
            if reader.images:
                known = known_codes.read(self._store, task.earlier, M=model.M, K=model.K)
            receipt = shard_writer.write_shard(
                self._store,
                shard,
                model=model.fingerprint,
                work=task.work,
                schema=schema,
                batches=self._batches(reader, schema, precision, gauge, known),
                options=codes.WRITE_OPTIONS,
            )
            kind = receipt_kind(reader.id_column, self._rule) if self._rule else None
            receipt = receipt.model_copy(
                update={"stats": gauge.read(), "source": source, "ids": kind}
            )
            return Encoded(
                receipt=receipt,
                precision=precision,
                left_out=reader.left_out,
                unchanged=reader.known,
            )

    def _batches(
        self,
        reader: FeatureReader,
        schema: pa.Schema,
        precision: PrecisionCheck,
        gauge: Gauge,
        known: KnownCodes | None,
    ) -> Iterator[pa.RecordBatch]:
        model = self._model
        for batch in prefetch(reader.batches(None if known is None else known.images)):
            B = self._codes(batch.X, precision, check=not batch.row)
            fresh = None if batch.known is None else batch.known < 0
            gauge.add(batch.X, B, batch.row, fresh)
            if known is not None and fresh is not None:
                kept = known.B[batch.known]
                kept[fresh] = B
                B = kept
            stored = codes.pack(B, model.K)
            yield codes.record_batch(
                schema, ids=batch.ids, stored=stored, labels=batch.labels, versions=batch.versions
            )

    def _codes(
        self, X: NDArray[np.float32], precision: PrecisionCheck, *, check: bool
    ) -> NDArray[np.uint8]:
        """Codes of a batch; with ``check``, those that a lower precision changes are counted."""
        model = self._model
        if not len(X):  # a batch of images that have not changed
            return np.empty((0, model.M), np.uint8)
        B = model.encode(X, device=self._device, precision=self._precision)
        if self._precision != "fp32" and check:
            exact = model.encode(X, device=self._device)
            precision.codes += B.size
            precision.different += int((exact != B).sum())
        return B


def encode(job: EncodeJob, executor: Executor) -> Snapshot:
    """Encodes a feature store with a model; returns the new version of the code store.

    The version holds these features only, and a warning names shards of the last version that it
    lacks. With ``append`` it also holds the other shards of the last version, unchanged.

    Raises:
        ConflictError: with ``append``, another run committed meanwhile.
        InputError: with ``append``, the store lacks a file of its last version.
        ModelError: the model cannot be read.
        JobError: some shards could not be encoded; all others are finished.
    """
    record = RunRecord(job, executor)
    model = registry.load(job.model)
    work = encode_work(model.fingerprint, job)
    shards = FeatureStore.open(job.features, job.columns).shards
    tasks = [ShardTask(shard=shard, model=model.fingerprint, work=work) for shard in shards]
    run = StoreRun.plan(
        kind="codes",
        store=job.output,
        tasks=tasks,
        on_bad_shard=job.on_bad_shard,
        append=job.append,
    )
    model_store.save(job.output, model)  # before any version can name it
    if finished := run.unchanged_version():
        return finished
    dropped = _dropped(job, run)
    return execute(job, model, run, executor, record, describe=lambda *_: dropped)


def _dropped(job: EncodeJob, run: StoreRun) -> dict[str, Any]:
    """The summary's entry of shards that the next version drops; warns of them."""
    gone = sorted(receipt.source.uri for receipt in run.dropped)
    if not gone or run.latest is None:
        return {}
    before = run.latest.version
    console.warn(
        f"{job.output}: {len(gone)} of the {len(run.latest.shards)} shards of version {before} are "
        f"not among these features, such as {gone[0]}, and the next version will lack them. "
        "--append (append: true) keeps them; "
        f"'raypq snapshots restore {job.output} {before}' brings version {before} back",
        shards=len(gone),
    )
    return {"dropped": {"shards": len(gone), "of_version": before, "examples": gone[:_MAX_NAMES]}}


Receipts = Sequence[shard_writer.Receipt]
Describe = Callable[[Receipts, Receipts], dict[str, Any]]


def execute(
    job: EncodeJob,
    model: Model,
    run: StoreRun,
    executor: Executor,
    record: RunRecord,
    *,
    by_content: bool = False,
    describe: Describe = lambda *_: {},
) -> Snapshot:
    """Encodes the missing shards of a run and commits its version.

    Args:
        by_content: whether shards are compared by the hash of their content; a task whose kept
            receipt has the same hash keeps it.
        describe: further entries of the version's summary, given the receipts of this run and all
            receipts of the version.

    Raises:
        InputError: no shard has the label column that the user named.
        JobError: some shards could not be encoded; all others are finished.
    """
    work = encode_work(model.fingerprint, job)
    check_label_column([task.shard for task in run.tasks if task.work == work], job.columns)
    rule = id_rule(run, job.columns)
    fresh: list[Encoded] = []

    def on_result(result: Encoded) -> shard_writer.Receipt:
        fresh.append(result)
        record.finished(result.receipt.rows)
        return result.receipt

    def summarise(receipts: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("encode")
        ids = index_ids(job, receipts, run.latest)
        record.lap("check ids")
        described = describe([result.receipt for result in fresh], receipts)
        summary = {**_settings(job, model), **described, **ids, **_counts(fresh)}
        if rule is not None and rule.made:
            summary[MADE_IDS] = True
        return {**summary, "run": record.summary()}

    args = (job.columns, job.output, job.where.device, job.precision, by_content, rule, work)
    with (
        executor.start_workers(EncodeWorker, model, *args, stage="encode") as pool,
        record.observe(pool),
    ):
        return run.execute(
            lambda tasks: pool.map(EncodeWorker.encode, tasks),
            on_bad_shard=job.on_bad_shard,
            on_result=on_result,
            summarise=summarise,
            on_start=lambda: model_store.save(job.output, model),
        )


def _settings(job: EncodeJob, model: Model) -> dict[str, Any]:
    """The settings that a version records."""
    return {
        "model": job.model,
        "fingerprint": model.fingerprint,
        "M": model.M,
        "K": model.K,
        "precision": job.precision,
    }


def _counts(results: Sequence[Encoded]) -> dict[str, Any]:
    """Images left out and codes changed by the precision, where there are any."""
    counts: dict[str, Any] = {}
    if left_out := sum(result.left_out for result in results):
        counts["images_left_out"] = left_out
    if unchanged := sum(result.unchanged for result in results):
        counts["images_unchanged"] = unchanged  # of the shards encoded: not decoded again
    if codes_checked := sum(result.precision.codes for result in results):
        different = sum(result.precision.different for result in results)
        counts["codes_changed_by_precision"] = different / codes_checked
    return counts


def index_ids(
    job: EncodeJob, receipts: Sequence[shard_writer.Receipt], latest: Snapshot | None
) -> dict[str, Any]:
    """Updates the index of ids, and finds ids that the version holds more than once.

    New ids are looked up in the index of the last version.

    Returns:
        Entries of the summary: repeated ids, and the index of the new version.

    Raises:
        InputError: ids are repeated and ``duplicate_ids`` is ``refuse``; the finished shards are
            kept for a rerun.
    """
    before = latest.sidecars(job.output) if latest else {}
    if job.duplicate_ids == "ignore":  # the index of older files stays valid
        return sidecars.as_summary(sidecars.still_there(job.output, before))
    files = [
        IdFile(
            uri=join(job.output, item.path),
            name=item.source.uri,
            rows=item.rows,
            path=item.path,
        )
        for item in sorted(receipts, key=lambda item: item.shard)
    ]
    if latest and latest.shards and not id_index.is_indexed(before):
        console.say(f"{job.output}: reading all ids once, for an index of them")

    def check_duplicates(repeated: DuplicateIds | None) -> None:
        if repeated and job.duplicate_ids == "refuse":
            raise InputError(job.output, expected="every id once", found=str(repeated))

    repeated, index = id_index.update(job.output, files, before, check_duplicates=check_duplicates)
    if repeated is None:
        return sidecars.as_summary(index)
    console.warn(f"duplicate ids: {repeated}", rows=repeated.rows)
    entry = {"rows": repeated.rows, "examples": str(repeated)}
    return {"duplicate_ids": entry, **sidecars.as_summary(index)}
