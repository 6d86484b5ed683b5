"""Encode: each feature shard to one code file, then one snapshot of them all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raypq import console
from raypq.config import Columns, EncodeJob
from raypq.data import codes, output, snapshot
from raypq.data.features import FeatureStore, read_batches
from raypq.data.snapshot import Quarantined, Snapshot
from raypq.data.storage import Shard, open_parquet
from raypq.errors import ShardFailure
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.crew import Crew, Gang, settle


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One input shard."""

    shard: Shard

    @property
    def name(self) -> str:
        return self.shard.uri


class EncodeWorker:
    """Turns feature shards into code files with one model."""

    def __init__(self, model: Model, columns: Columns, store: str, device: str) -> None:
        self._model, self._columns, self._store, self._device = model, columns, store, device

    def __call__(self, task: ShardTask, shared: None) -> output.Receipt:
        model, shard = self._model, task.shard
        with open_parquet(shard.uri) as file:
            names = file.schema_arrow
            label = self._columns.label in names.names
            id_type = pa.string()
            if self._columns.id in names.names and pa.types.is_int64(
                names.field(self._columns.id).type
            ):
                id_type = pa.int64()
        schema = codes.schema(
            fingerprint=model.fingerprint, M=model.M, K=model.K, id_type=id_type, label=label
        )
        return output.write_shard(
            self._store,
            shard,
            model=model.fingerprint,
            schema=schema,
            batches=self._batches(shard, schema),
            options=codes.WRITE_OPTIONS,
        )

    def _batches(self, shard: Shard, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for batch in read_batches(shard, self._columns, width=self._model.dx):
            B = self._model.encode(batch.X, device=self._device)
            stored = codes.pack(B, self._model.K)
            yield codes.record_batch(schema, ids=batch.ids, stored=stored, labels=batch.labels)


def encode(job: EncodeJob, crew: Crew) -> Snapshot:
    """Encodes a feature store under a model; returns the new version of the code store.

    Raises:
        ModelError: the model cannot be read.
        JobError: shards that could not be encoded; every good one is finished.
    """
    model = registry.load(job.model)
    store = FeatureStore.open(job.features, job.columns)
    tasks = [ShardTask(shard=shard) for shard in store.shards]
    with crew.hire(EncodeWorker, model, job.columns, job.output, job.where.device) as gang:
        return write_store(
            gang,
            tasks,
            kind="codes",
            store=job.output,
            run_id=run_id(store.shards, model.fingerprint, job.columns.model_dump_json()),
            on_bad_shard=job.on_bad_shard,
            summary={
                "model": job.model,
                "fingerprint": model.fingerprint,
                "M": model.M,
                "K": model.K,
            },
        )


def run_id(shards: Sequence[Shard], fingerprint: str, settings: str) -> str:
    """Names a run by what goes into it: inputs with size and time, model, settings, format."""
    digest = hashlib.sha256(f"{snapshot.FORMAT}:{fingerprint}:{settings}".encode())
    for shard in shards:
        digest.update(f"\n{shard.uri}:{shard.size}:{shard.modified}".encode())
    return digest.hexdigest()[:32]


def write_store(
    gang: Gang,
    tasks: Sequence[ShardTask],
    *,
    kind: snapshot.Kind,
    store: str,
    run_id: str,
    on_bad_shard: str,
    summary: dict[str, Any],
    reduce: Callable[[Any], output.Receipt] = lambda result: result,
) -> Snapshot:
    """Runs a gang, one output file a task, and commits one snapshot of them all.

    Args:
        reduce: takes each result as it arrives and gives its receipt; what it gathers beside
            must not depend on the order. It may still add to ``summary``.

    Raises:
        JobError: shards failed; nothing is committed.
    """
    start = time.monotonic()
    receipts: list[output.Receipt] = []
    failures: list[ShardFailure] = []
    label = {"codes": "encode", "predictions": "classify"}[kind]
    with console.progress(len(tasks), label) as progress:
        for outcome in gang.map(tasks):
            if outcome.failure:
                failures.append(outcome.failure)
            else:
                receipts.append(reduce(outcome.result))
            progress.done(0 if outcome.failure else receipts[-1].rows)
    settle(failures, len(receipts), on_bad_shard)
    by_name = {task.name: task.shard for task in tasks}
    quarantined = [
        Quarantined(shard=by_name[item.shard].stem, uri=item.shard, reason=item.reason)
        for item in sorted(failures, key=lambda item: item.shard)
    ]
    seconds = time.monotonic() - start
    version = snapshot.commit(
        store,
        kind=kind,
        run_id=run_id,
        expected=[task.shard.stem for task in tasks],
        receipts=receipts,
        quarantined=quarantined,
        summary={**summary, "seconds": seconds},
    )
    verb = {"codes": "encoded", "predictions": "classified"}[kind]
    console.say(
        f"{verb} {version.rows:,} images in {seconds:.1f} s: {store} version {version.version}"
    )
    return version
