"""Extract: features of images, one file for each shard, then one version of the feature store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import kernels
from raypq.backbones import backbone_of
from raypq.config import ExtractJob
from raypq.data import arrays
from raypq.data.features import FeatureReader, ReadOptions, feature_schema, open_features
from raypq.data.ids import IdRule, receipt_kind
from raypq.data.network_info import BackboneInfo
from raypq.data.plain_folder import parquet_files
from raypq.data.prefetch import prefetch
from raypq.data.store import shard_writer, snapshot
from raypq.data.store.shard_writer import RunCounts
from raypq.data.store.snapshot import Snapshot
from raypq.data.store.sources import open_sources
from raypq.errors import ConfigError, InputError, ModelError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.stages.stores import known_rows
from raypq.stages.stores.known_rows import KnownRows
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask
from raypq.stages.stores.shard_types import MADE_IDS, check_label_column, id_rule
from raypq.stages.stores.work_id import extract_work

_WRITE_OPTIONS: dict[str, Any] = {
    "compression": {"id": "zstd", "label": "zstd", "feature": "none", "version": "none"},
    "use_dictionary": ["label"],
    "write_statistics": ["id"],
}


class ExtractWorker:
    """Computes shards of features from shards of images.

    Args:
        info: the backbone of the driver, which this worker's must equal.
        rule: the type that ids must have.
    """

    def __init__(self, job: ExtractJob, info: BackboneInfo, rule: IdRule | None) -> None:
        self._columns, self._output, self._rule = job.columns, job.output, rule
        self._dtype = np.dtype(job.dtype)
        self._backbone = backbone_of(job)
        found = self._backbone.info
        if found.fingerprint != info.fingerprint:
            raise ModelError(
                f"{job.backbone}, on this node",
                expected=f"the backbone of the driver, {info}",
                found=f"{found}: {info.difference(found)}",
            )
        self._width = self._backbone.width

    def extract(self, task: ShardTask) -> shard_writer.Receipt:
        """Writes the features of a shard."""
        how = ReadOptions(
            rule=self._rule,
            threads=kernels.threads(),
            image_format=self._backbone.image_format,
        )
        with open_features(task.shard, self._columns, width=None, how=how) as reader:
            schema = feature_schema(
                id_type=reader.id_type,
                label=reader.label,
                width=self._width,
                itemsize=self._dtype.itemsize,
                backbone=self._backbone.info,
                version=True,
            )
            width = self._width * self._dtype.itemsize
            known = known_rows.read(self._output, "features", task.earlier, width=width)
            receipt = shard_writer.write_shard(
                self._output,
                task.shard,
                model=task.model,
                work=task.work,
                schema=schema,
                batches=self._batches(reader, schema, known),
                options=_WRITE_OPTIONS,
            )
            kind = receipt_kind(reader.id_column, self._rule) if self._rule else None
            counts = RunCounts(left_out=reader.left_out, unchanged=reader.known)
            return receipt.model_copy(update={"ids": kind, "counts": counts})

    def _batches(
        self, reader: FeatureReader, schema: pa.Schema, known: KnownRows | None
    ) -> Iterator[pa.RecordBatch]:
        for batch in prefetch(reader.batches(known.images if known else None)):
            F = self._backbone.features_of(batch)
            new = batch.ids if batch.known is None else batch.ids.filter(pa.array(batch.known < 0))
            values = self._stored(F, f"{batch.where}, features", new)
            if known is not None:
                values = known.complete(batch, values)
            columns = [batch.ids, arrays.fixed_binary(values)]
            if "label" in schema.names:
                columns.append(batch.labels)
            yield pa.RecordBatch.from_arrays([*columns, batch.versions], schema=schema)

    def _stored(self, F: NDArray[np.float32], where: str, ids: pa.Array) -> NDArray[np.uint8]:
        """Features as stored bytes.

        Raises:
            InputError: a value that float16 cannot hold.
        """
        with np.errstate(over="ignore"):
            stored = F.astype(self._dtype)
        if len(bad := np.flatnonzero(~np.isfinite(stored).all(axis=1))):
            raise InputError(
                f"{where} of {ids[int(bad[0])].as_py()!r}",
                expected="values within the range of float16",
                found=f"{np.abs(F[bad[0]]).max():g}; store float32 (--dtype, dtype)",
            )
        width = self._width * self._dtype.itemsize
        return np.ascontiguousarray(stored).view(np.uint8).reshape(len(F), width)


def extract(job: ExtractJob, executor: Executor) -> Snapshot:
    """Writes the features of every shard of images; returns the new version of the feature store.

    Raises:
        ConfigError: an unknown backbone, or other files in the output folder.
        InputError: no shard has the label column that the user named.
        JobError: some shards could not be read; as ``completed``.
    """
    record = RunRecord(job, executor)
    _refuse_plain_files(job.output)
    shards = open_sources(job.images, job.columns, "images").shards  # before a network is loaded
    backbone = backbone_of(job)
    info, width = backbone.info, backbone.width
    work = extract_work(info.fingerprint, job)
    tasks = [ShardTask(shard=shard, model=info.fingerprint, work=work) for shard in shards]
    run = StoreRun.plan(
        kind="features", store=job.output, tasks=tasks, on_bad_shard=job.on_bad_shard
    )
    if finished := run.unchanged_version():
        return finished
    dropped = run.warn_of_dropped("images")
    check_label_column([task.shard for task in run.tasks], job.columns)
    rule = id_rule(run, job.columns)

    def on_result(receipt: shard_writer.Receipt) -> shard_writer.Receipt:
        record.finished(receipt.rows)
        return receipt

    def summarise(receipts: Sequence[shard_writer.Receipt]) -> dict[str, Any]:
        record.end_of_work("extract")
        summary: dict[str, Any] = {
            "backbone": info.model_dump(mode="json"),
            "dx": width,
            "dtype": job.dtype,
            **dropped,
        }
        read = [receipt.counts for receipt in receipts if receipt.counts]
        for key in ("left_out", "unchanged"):
            if images := sum(getattr(counts, key) for counts in read):
                summary[f"images_{key}"] = images
        if rule is not None and rule.made:
            summary[MADE_IDS] = True
        return {**summary, "run": record.summary()}

    with (
        executor.start_workers(ExtractWorker, job, info, rule, stage="extract") as pool,
        record.observe(pool),
    ):
        return run.execute(
            lambda tasks: pool.map(ExtractWorker.extract, tasks),
            on_bad_shard=job.on_bad_shard,
            on_result=on_result,
            summarise=summarise,
        )


def _refuse_plain_files(output: str) -> None:
    """Refuses a folder of plain files, such as those of ``raypq extract`` before it wrote stores.

    Raises:
        ConfigError: naming one.
    """
    if snapshot.versions(output):
        return
    data = f"/{shard_writer.FOLDER}/"
    if others := [uri for uri in parquet_files(output) if data not in uri]:
        raise ConfigError(
            f"output: {output} holds {len(others)} Parquet file(s) that are in no store, such as "
            f"{others[0]}; name a new folder (an earlier raypq extract wrote plain files: whoever "
            "read that folder reads the new one the same way)"
        )
