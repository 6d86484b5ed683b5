"""Repack: rewrites a feature store in the layout that reads fastest.

Vectors become fixed_size_binary, uncompressed and without a dictionary, so pages are copied without
decoding (3.4–4.8 GB/s a thread, where fixed_size_list gives 0.5–0.8). The metadata of the column
has the width, other columns are copied, and every page has a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq.config import Columns, RepackJob
from raypq.data import arrays, ids, texts
from raypq.data.feature_columns import WIDTH_NOTE, has_labels, kind_of_ids, stored_width
from raypq.data.features import batch_rows
from raypq.data.ids import IdRule
from raypq.data.layouts import ShardFile, arrow_types, open_shard
from raypq.data.plain_folder import parquet_files, refuse_others, remove_left_out
from raypq.data.storage import atomic_write, join, write_bytes
from raypq.data.store.sources import open_sources
from raypq.errors import ConfigError, InputError, ShardFailure
from raypq.execution.executor import Executor, completed
from raypq.execution.run_record import RunRecord
from raypq.stages.stores.shard_task import ShardTask
from raypq.stages.stores.shard_types import check_label_column, rule_of

SUMMARY = "_repack.json"  # readers of Parquet folders skip names with an underscore
_ROW_GROUP_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Repacked:
    """One rewritten shard."""

    rows: int


class RepackWorker:
    """Rewrites feature shards."""

    def __init__(
        self, columns: Columns, output: str, dtype: str, rule: IdRule | None = None
    ) -> None:
        self._columns, self._output, self._dtype = columns, output, np.dtype(dtype)
        self._rule = rule

    def repack(self, task: ShardTask) -> Repacked:
        """Rewrites a shard."""
        shard, name = task.shard, self._columns.feature
        rows = 0
        with open_shard(shard, self._columns) as file:
            field = file.field(name)
            width = self._columns.width or stored_width(field)
            batches = self._convert(file, width)
            first = next(batches, None)
            if first is None:
                width = width or arrow_types.width_of(field.type)
                schema = file.schema  # unchanged if the width is unknown
                if width:
                    schema = self._schema(schema, name, width)
            else:
                size = first.schema.field(name).type.byte_width
                schema = self._schema(file.schema, name, size // self._dtype.itemsize)
            with atomic_write(join(self._output, f"{shard.stem}.parquet")) as sink:
                plain = [column for column in schema.names if column != name]
                with pq.ParquetWriter(
                    sink,
                    schema,
                    compression={
                        column: "NONE" if column == name else "ZSTD" for column in schema.names
                    },
                    use_dictionary=plain,
                    write_page_checksum=True,
                    write_statistics=plain,
                ) as writer:
                    for batch in _groups(first, batches, schema):
                        writer.write_table(batch, len(batch))
                        rows += len(batch)
        return Repacked(rows=rows)

    def _check_names(self, file: ShardFile) -> Callable[[pa.RecordBatch, int], None]:
        """What refuses the ids and labels of a batch that ``encode`` would refuse, too.

        Raises:
            InputError: ids of another type than the first shard has, or of none that ids can have.
        """
        columns = self._columns
        kind = kind_of_ids(file, columns, self._rule)
        labelled = has_labels(file, columns)

        def check(batch: pa.RecordBatch, row: int) -> None:
            where = f"{file.uri}, column '{columns.id}'"
            ids.read(batch.column(columns.id), kind, where=where, row0=row)
            if labelled:
                where = f"{file.uri}, column '{columns.label}'"
                texts.strings(batch.column(columns.label), where=where, nulls=True, row0=row)

        return check

    def _schema(self, schema: pa.Schema, name: str, width: int) -> pa.Schema:
        kind = pa.binary(width * self._dtype.itemsize)
        notes = {**(schema.field(name).metadata or {}), WIDTH_NOTE: str(width).encode()}
        field = pa.field(name, kind, nullable=False, metadata=notes)
        return schema.set(schema.get_field_index(name), field)

    def _convert(self, file: ShardFile, width: int | None) -> Iterator[pa.RecordBatch]:
        name = self._columns.feature
        where = f"{file.uri}, column '{name}'"
        check = self._check_names(file)
        row = 0
        for batch in file.stream(batch_rows(width or 1024)):
            if not len(batch):
                continue
            check(batch, row)
            raw = arrays.matrix(batch.column(name), width=width, where=where, row0=row)
            width = raw.shape[1]
            X = arrays.finite_float32(raw, where=where, row0=row)
            stored = arrays.fixed_binary(_bytes(X, self._dtype, f"{where}, row {row} and on"))
            index = batch.schema.get_field_index(name)
            yield batch.set_column(index, pa.field(name, stored.type, nullable=False), stored)
            row += len(batch)


def _bytes(X: NDArray[np.float32], dtype: np.dtype[Any], where: str) -> NDArray[np.uint8]:
    with np.errstate(over="ignore"):
        narrow = X.astype(dtype)
    if dtype != X.dtype and not np.isfinite(narrow).all():
        raise InputError(
            where, expected="values within the range of float16", found=f"{np.abs(X).max():g}"
        )
    return narrow.view(np.uint8).reshape(len(X), -1)


def _groups(
    first: pa.RecordBatch | None, rest: Iterator[pa.RecordBatch], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Batches joined to row groups of at least ``_ROW_GROUP_BYTES``."""
    group = [first] if first is not None else []
    size = sum(batch.nbytes for batch in group)
    for batch in rest:
        group.append(batch)
        size += batch.nbytes
        if size >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(group, group[0].schema).cast(schema)
            group, size = [], 0
    if group:
        yield pa.Table.from_batches(group, group[0].schema).cast(schema)


def repack(job: RepackJob, executor: Executor) -> dict[str, Any]:
    """Rewrites every shard of a store to ``<output>/<stem>.parquet``.

    ``<output>/_repack.json`` is the summary of the run.

    Raises:
        ConfigError: the output holds Parquet files, and ``overwrite`` is not set or would leave
            some of them.
        InputError: no shard has the label column that the user named.
        JobError: some shards could not be read; all others are written.
    """
    record = RunRecord(job, executor)
    if not job.overwrite and (existing := parquet_files(job.output)):
        raise ConfigError(
            f"output: {job.output} holds {len(existing)} Parquet file(s) already; name another "
            "folder, or pass --overwrite (overwrite: true) to write over them"
        )
    store = open_sources(job.features, job.columns)
    tasks = [ShardTask(shard=shard) for shard in store.shards]
    refuse_others(job.output, [f"{shard.stem}.parquet" for shard in store.shards])
    check_label_column(store.shards, job.columns)
    rule = rule_of(store.shards, job.columns)
    rows = 0
    failures: list[ShardFailure] = []
    with (
        executor.start_workers(
            RepackWorker, job.columns, job.output, job.dtype, rule, stage="repack"
        ) as pool,
        record.observe(pool),
    ):
        for shard in completed(
            pool.map(RepackWorker.repack, tasks),
            total=len(tasks),
            label="repack",
            on_bad_shard=job.on_bad_shard,
            failures=failures,
            images=lambda shard: shard.rows,
        ):
            rows += shard.rows
            record.finished(shard.rows)
    remove_left_out(job.output, store.shards, failures)
    result = {
        "output": job.output,
        "shards": len(tasks) - len(failures),
        "images": rows,
        "quarantined": [str(failure) for failure in failures],
    }
    summary = {**result, "run": record.summary()}
    write_bytes(join(job.output, SUMMARY), json.dumps(summary, indent=2).encode())
    return result
