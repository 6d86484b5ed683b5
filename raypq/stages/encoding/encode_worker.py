"""The worker of ``raypq encode``: codes of one shard at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import EncodeJob
from raypq.data import codes
from raypq.data.features import (
    FeatureBatch,
    FeatureReader,
    ReadOptions,
    open_features,
    read_batches,
)
from raypq.data.ids import IdRule, receipt_kind
from raypq.data.image_changes import ImageChanges
from raypq.data.layouts import content_digest
from raypq.data.network_info import check_equal
from raypq.data.prefetch import in_flight, prefetch
from raypq.data.store import shard_writer
from raypq.data.store.shard_writer import RunCounts, Source
from raypq.errors import InputError
from raypq.methods.base import Model
from raypq.methods.support.linear_model import LinearModel
from raypq.metrics.drift import Gauge
from raypq.stages.stores import known_rows
from raypq.stages.stores.known_rows import KnownRows
from raypq.stages.stores.shard_task import ShardTask

# The bits of a product of fewer rows may depend on the number of threads.
_FEW_ROWS = 64


@dataclass(kw_only=True)
class PrecisionCheck:
    """Codes that a lower precision changes, counted on the first batch of each shard."""

    codes: int = 0
    different: int = 0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An encoded shard."""

    receipt: shard_writer.Receipt
    precision: PrecisionCheck


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
        job: EncodeJob,
        by_content: bool = False,
        rule: IdRule | None = None,
        work: str | None = None,
    ) -> None:
        self._model, self._columns, self._store, self._rule = model, job.columns, job.output, rule
        self._work = work
        self._device, self._precision = job.where.device, job.precision
        self._by_content = by_content
        # Only models with a linear embedding normalise on the device, and take float16.
        self._on_device = self._device != "cpu" and isinstance(model, LinearModel)
        self._backbone = None
        if job.backbone is not None:
            from raypq.backbones import backbone_of  # here, since it imports torch

            self._on_device = False
            self._backbone = backbone_of(job)
            check_equal(model.backbone, self._backbone.info, where=f"{job.backbone}, on this node")

    def encode(self, task: ShardTask) -> Encoded:
        """Encodes a shard, or keeps its codes if its content has not changed."""
        if not self._by_content:
            return self._named(task, Source.of(task.shard))
        source = Source.of(task.shard, sha256=content_digest(task.shard))
        if task.previous is None or task.previous.source.sha256 != source.sha256:
            return self._named(task, source)
        # Same content with another time: the receipt records the new time.
        kept = task.previous.model_copy(update={"source": source})
        return Encoded(receipt=kept, precision=PrecisionCheck())

    def _named(self, task: ShardTask, source: Source) -> Encoded:
        """As ``_encode``; an error of features on a device names their row."""
        try:
            return self._encode(task, source)
        except InputError:
            if self._on_device:
                for _ in read_batches(task.shard, self._columns, width=self._model.dx):
                    pass
            raise

    def _encode(self, task: ShardTask, source: Source) -> Encoded:
        model, shard = self._model, task.shard
        precision = PrecisionCheck()
        if self._work is not None and task.work != self._work:
            raise InputError(
                shard.uri,
                expected="its codes of an earlier model or settings, which are to be kept",
                found="none: they were removed while this run was at work; run it again",
            )
        how = ReadOptions(
            by_content=self._by_content,
            rule=self._rule,
            threads=kernels.threads(),
            image_format=self._backbone.image_format if self._backbone else None,
            backbone=model.backbone,
            for_device=self._on_device,
        )
        with open_features(shard, self._columns, width=model.dx, how=how) as reader:
            schema = codes.schema(
                fingerprint=model.fingerprint,
                M=model.M,
                K=model.K,
                id_type=reader.id_type,
                label=reader.label,
                version=reader.images,
            )
            gauge = Gauge(model, reader.rows)
            known = changes = None
            if reader.images:
                changes = known_rows.changes(self._store, task.before)
                width = codes.bytes_per_code(model.M, model.K)
                known = known_rows.read(self._store, "codes", task.earlier, width=width)
            receipt = shard_writer.write_shard(
                self._store,
                shard,
                model=model.fingerprint,
                work=task.work,
                schema=schema,
                batches=self._batches(reader, schema, precision, gauge, known, changes),
                options=codes.WRITE_OPTIONS,
            )
            kind = receipt_kind(reader.id_column, self._rule) if self._rule else None
            receipt = receipt.model_copy(
                update={
                    "stats": gauge.read(),
                    "source": source,
                    "ids": kind,
                    "counts": _counts(reader, changes) if reader.images else None,
                }
            )
            return Encoded(receipt=receipt, precision=precision)

    def _batches(
        self,
        reader: FeatureReader,
        schema: pa.Schema,
        precision: PrecisionCheck,
        gauge: Gauge,
        known: KnownRows | None,
        changes: ImageChanges | None,
    ) -> Iterator[pa.RecordBatch]:
        model = self._model
        known_images = None if known is None else known.images
        for batch, X, B in self._encoded(reader.batches(known_images), precision):
            fresh = None if batch.known is None else batch.known < 0
            gauge.add(X, B, batch.row, fresh)
            stored = codes.pack(B, model.K)
            if known is not None:
                stored = known.complete(batch, stored)
            if changes is not None:
                reused = None if batch.known is None else batch.known >= 0
                changes.add(batch.ids, batch.versions, reused)
            yield codes.record_batch(
                schema, ids=batch.ids, stored=stored, labels=batch.labels, versions=batch.versions
            )

    def _encoded(
        self, batches: Iterator[FeatureBatch], precision: PrecisionCheck
    ) -> Iterator[tuple[FeatureBatch, NDArray[np.float32], NDArray[np.uint8]]]:
        """The batches with their features and codes; several in flight on a device, and where the
        worker has several threads."""

        def encode(
            batch: FeatureBatch,
        ) -> tuple[FeatureBatch, NDArray[np.float32], NDArray[np.uint8]]:
            X = self._backbone.features_of(batch) if self._backbone else batch.X
            return batch, X, self._codes(X, precision, check=not batch.row)

        def encode_by_one_thread(
            batch: FeatureBatch,
        ) -> tuple[FeatureBatch, NDArray[np.float32], NDArray[np.uint8]]:
            if len(batch) < _FEW_ROWS:
                return encode(batch)
            with kernels.thread_limit(1):
                return encode(batch)

        if self._on_device:
            from raypq.kernels.device import BATCHES_IN_FLIGHT  # here, since it imports torch

            return in_flight(encode, batches, BATCHES_IN_FLIGHT)
        threads = kernels.threads()
        if threads > 1 and self._backbone is None and isinstance(self._model, LinearModel):
            # Threads that share a batch wait for each other, and for the one that reads.
            return in_flight(encode_by_one_thread, batches, threads, waiting=1)
        return map(encode, prefetch(batches))

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


def _counts(reader: FeatureReader, changes: ImageChanges | None) -> RunCounts:
    """The counts of a shard of images that was read to its end."""
    counts = RunCounts(left_out=reader.left_out, unchanged=reader.known)
    if changes is None:
        return counts
    for ids in reader.undecodable:
        changes.add_undecodable(ids)
    changed, known_left_out = changes.finish()
    return counts.model_copy(
        update={
            "kept": changes.kept,
            "again": changes.again,
            "changed": changed,
            "known_left_out": known_left_out,
        }
    )
