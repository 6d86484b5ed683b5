"""Export: the rows of a store in formats that other tools read, one file for each shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy_format

from raypq.config import ExportJob
from raypq.data import arrays, codes
from raypq.data.class_labels import ClassLabels
from raypq.data.layouts.arrow_types import fixed_bytes
from raypq.data.storage import (
    atomic_write,
    is_local,
    join,
    list_folders,
    list_names,
    local_path,
    stream,
)
from raypq.data.store import snapshot
from raypq.data.stored import Kind, open_stored
from raypq.errors import ConfigError
from raypq.execution.executor import Executor, completed
from raypq.methods.base import Model
from raypq.optional_packages import require
from raypq.stages.stores import model_store
from raypq.stages.stores.shard_task import ShardTask, stored_shards

_ROWS = 8192  # of a batch
_VECTORS: dict[Kind, str] = {"codes": "code", "features": "feature"}


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The exported rows of a shard, as a stream."""

    schema: pa.Schema
    rows: int
    batches: Iterator[pa.RecordBatch]


class ExportWorker:
    """Writes shards of a store in another format.

    Args:
        models: of a code store, by fingerprint.
        labels: names of classes, to be added to predictions.
    """

    def __init__(
        self,
        job: ExportJob,
        kind: Kind,
        models: Mapping[str, Model],
        labels: ClassLabels | None,
    ) -> None:
        self._job, self._kind, self._models, self._labels = job, kind, models, labels

    def export(self, task: ShardTask) -> int:
        """Writes a shard; returns its rows."""
        with open_stored(task.shard.uri, self._kind) as file:
            convert, schema = self._conversion(file.schema_arrow)
            batches = (convert(batch) for batch in stream(file, _ROWS, file.schema_arrow.names))
            target = join(self._job.output, task.shard.stem)
            table = _Table(schema=schema, rows=int(file.metadata.num_rows), batches=batches)
            _WRITERS[self._job.format](target, table)
            return table.rows

    def _conversion(
        self, stored: pa.Schema
    ) -> tuple[Callable[[pa.RecordBatch], pa.RecordBatch], pa.Schema]:
        """What makes the exported columns of a batch, and their schema."""
        if self._kind == "codes":
            model = self._models[stored.metadata[b"raypq.model"].decode()]
            name = "vector" if self._job.decode else "code"
            width = model.D if self._job.decode else model.M
            value = pa.float32() if self._job.decode else pa.uint8()
            convert: Callable[[pa.Array], pa.Array] = partial(
                _decoded if self._job.decode else _unpacked, model
            )
            return _replacing(stored, "code", pa.field(name, pa.list_(value, width)), convert)
        if self._kind == "features":
            field = stored.field("feature")
            width = int(field.metadata[b"raypq.width"])
            value = pa.float32() if field.type.byte_width == 4 * width else pa.float16()
            exported = pa.field("feature", pa.list_(value, width))
            return _replacing(stored, "feature", exported, partial(_vectors, exported.type))
        if self._labels is None:
            return (lambda batch: batch), stored.remove_metadata()
        return self._labels.conversion(stored.remove_metadata())


def _replacing(
    stored: pa.Schema, name: str, field: pa.Field, convert: Callable[[pa.Array], pa.Array]
) -> tuple[Callable[[pa.RecordBatch], pa.RecordBatch], pa.Schema]:
    """A conversion of one column; others stay, but for versions of images, which mean nothing
    elsewhere."""
    names = [other for other in stored.names if other != "version"]
    schema = pa.schema([field if other == name else stored.field(other) for other in names])

    def run(batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = [
            convert(batch.column(other)) if other == name else batch.column(other)
            for other in names
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    return run, schema


def _unpacked(model: Model, column: pa.Array) -> pa.Array:
    return arrays.fixed_list(codes.unpack(fixed_bytes(column), model.M, model.K), pa.uint8())


def _decoded(model: Model, column: pa.Array) -> pa.Array:
    return arrays.fixed_list(model.decode(codes.unpack(fixed_bytes(column), model.M, model.K)))


def _vectors(kind: pa.DataType, column: pa.Array) -> pa.Array:
    values = np.ascontiguousarray(fixed_bytes(column)).view(kind.value_type.to_pandas_dtype())
    return arrays.fixed_list(values, kind.value_type)


def _write_parquet(target: str, table: _Table) -> None:
    with (
        atomic_write(f"{target}.parquet") as sink,
        pq.ParquetWriter(sink, table.schema, write_page_checksum=True) as writer,
    ):
        for batch in table.batches:
            writer.write_batch(batch)


def _write_lines(target: str, table: _Table) -> None:
    with atomic_write(f"{target}.jsonl") as sink:
        for batch in table.batches:
            columns = [_plain(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                line = json.dumps(
                    dict(zip(table.schema.names, row, strict=True)), ensure_ascii=False
                )
                sink.write(f"{line}\n".encode())


def _plain(column: pa.Array) -> list[Any]:
    """Values for JSON; float32 and float16 with as few digits as tell them apart."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        values = _plain(column.flatten())
        if pa.types.is_fixed_size_list(kind):
            width = kind.list_size
            return [values[at : at + width] for at in range(0, len(values), width)]
        ends = np.cumsum([0, *np.diff(column.offsets.to_numpy())])
        return [values[a:b] for a, b in pairwise(ends)]
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        texts = column.to_numpy(zero_copy_only=False).astype(str)
        valid = column.is_valid().to_pylist()
        return [float(text) if known else None for text, known in zip(texts, valid, strict=True)]
    return column.to_pylist()


def _write_arrays(target: str, table: _Table) -> None:
    """The vectors as ``.npy``, and the other columns as the Parquet file beside it."""
    (name,) = (field.name for field in table.schema if pa.types.is_fixed_size_list(field.type))
    kind = table.schema.field(name).type
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    others = table.schema.remove(table.schema.get_field_index(name))
    header = {
        "descr": npy_format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (table.rows, kind.list_size),
    }
    with (
        atomic_write(f"{target}.npy") as vectors,
        atomic_write(f"{target}.parquet") as sink,
        pq.ParquetWriter(sink, others, write_page_checksum=True) as writer,
    ):
        npy_format.write_array_header_1_0(vectors, header)
        for batch in table.batches:
            values = batch.column(name).flatten().to_numpy(zero_copy_only=False)
            vectors.write(np.ascontiguousarray(values, dtype).tobytes())
            writer.write_batch(batch.select(others.names))


def _write_lance(target: str, table: _Table) -> None:
    lance = require("lance", extra="lance", purpose="the format lance")
    uri = f"{target}.lance"
    reader = pa.RecordBatchReader.from_batches(table.schema, table.batches)
    lance.write_dataset(reader, str(local_path(uri)) if is_local(uri) else uri, mode="overwrite")


_WRITERS: Mapping[str, Callable[[str, _Table], None]] = {
    "jsonl": _write_lines,
    "parquet": _write_parquet,
    "npy": _write_arrays,
    "lance": _write_lance,
}


def export(job: ExportJob, executor: Executor) -> dict[str, Any]:
    """Writes every shard of a version in another format, below one folder.

    Returns:
        What was done, as plain values.

    Raises:
        ConfigError: settings that do not fit the kind of store, or files in the output folder.
        InputError: no such store.
        JobError: some shards could not be read; all others are written.
    """
    version = snapshot.read(job.store, job.version)
    _check(job, version.kind)
    models: Mapping[str, Model] = {}
    if version.kind == "codes":
        models = model_store.load(job.store, version.shards.totals.models)
    labels = ClassLabels.open(job.classes) if job.classes is not None else None
    tasks = [ShardTask(shard=shard) for shard in stored_shards(job.store, version)]
    if present := [*list_names(job.output), *list_folders(job.output)]:
        raise ConfigError(
            f"output: expected an empty folder, found {len(present)} file(s) or folders in "
            f"{job.output}, such as {present[0]}; name a new one"
        )
    with executor.start_workers(
        ExportWorker, job, version.kind, models, labels, stage="export"
    ) as pool:
        rows = sum(
            completed(
                pool.map(ExportWorker.export, tasks),
                total=len(tasks),
                label="export",
                on_bad_shard="fail",
                images=lambda count: count,
            )
        )
    return {
        "output": job.output,
        "kind": version.kind,
        "version": version.version,
        "shards": len(tasks),
        "rows": rows,
    }


def _check(job: ExportJob, kind: Kind) -> None:
    if job.decode and kind != "codes":
        raise ConfigError(f"decode: for a store of codes, found one of {kind}: {job.store}")
    if job.classes is not None and kind != "predictions":
        raise ConfigError(f"classes: for a store of predictions, found one of {kind}: {job.store}")
    if job.format == "npy" and kind not in _VECTORS:
        raise ConfigError(
            f"format: .npy holds vectors, which a store of {kind} has none of ({job.store}); name "
            "jsonl, parquet or lance"
        )
