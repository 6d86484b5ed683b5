"""Split: divides a labelled store into the parts of a semi-supervised retrieval protocol.

Protocol 1 (single category) and protocol 2 (unseen category) are those of Jang and Cho,
"Generalized Product Quantization Network for Semi-supervised Image Retrieval", section 4. Rows
are drawn by a hash of their id and the seed, so the parts do not depend on the order of rows in
files. Every row goes into one part, with all its columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq.config import Columns, SplitJob
from raypq.data import arrays, ids, texts
from raypq.data.feature_columns import kind_of_ids
from raypq.data.ids import IdRule
from raypq.data.layouts import arrow_types, open_shard
from raypq.data.plain_folder import refuse_others
from raypq.data.storage import Shard, atomic_write, join
from raypq.data.store.sources import open_sources
from raypq.errors import ConfigError, InputError
from raypq.execution.executor import Executor, completed
from raypq.stages.stores.shard_types import check_label_column

_BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Ids and labels of one shard, both [n] strings.

    Attributes:
        kind: the type of the ids in the file; None without rows.
        test: whether the shard is of the test store.
    """

    shard: Shard
    ids: pa.Array
    kind: ids.IdKind | None
    labels: pa.Array
    test: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitTask:
    """A shard, the stem of its output files, and the index of each row's part [n]."""

    shard: Shard
    stem: str
    part: NDArray[np.int8]
    parts: Sequence[str]

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shard.uri


class SplitWorker:
    """Writes the rows of shards to files of their parts."""

    def __init__(self, output: str, columns: Columns) -> None:
        self._output, self._columns = output, columns

    def write(self, task: SplitTask) -> None:
        """Writes the parts of a shard."""
        for number, name in enumerate(task.parts):
            chosen = task.part == number
            if not chosen.any():
                continue
            uri = join(join(self._output, name), f"{task.stem}.parquet")
            with (
                open_shard(task.shard, self._columns) as file,
                atomic_write(uri) as sink,
                pq.ParquetWriter(
                    sink, arrow_types.without_views(file.schema), write_page_checksum=True
                ) as writer,
            ):
                row = 0
                for batch in file.batches(_BATCH_ROWS):
                    keep = chosen[row : row + len(batch)]
                    row += len(batch)
                    if keep.any():
                        writer.write_batch(_filtered(batch, keep, writer.schema, task.shard.uri))


def _filtered(
    batch: pa.RecordBatch, keep: NDArray[np.bool_], schema: pa.Schema, uri: str
) -> pa.RecordBatch:
    """The rows of a batch that ``keep`` [n] selects, in the types of a schema.

    Raises:
        InputError: a column has a type that pyarrow cannot filter.
    """
    mask, columns = pa.array(keep), []
    for column, field in zip(batch.columns, schema, strict=True):
        try:
            columns.append(column.cast(field.type).filter(mask))
        except pa.ArrowNotImplementedError:
            raise InputError(
                f"{uri}, column '{field.name}'",
                expected="a type whose rows can be filtered",
                found=f"{column.type} of {getattr(column.type, 'storage_type', 'views')}; drop the "
                "column, or write it without views",
            ) from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def split(job: SplitJob, executor: Executor) -> dict[str, Any]:
    """Writes a folder for each part below ``output``; returns their numbers of rows and classes.

    Raises:
        ConfigError: more rows requested than exist, protocol 2 with too few classes, or other files
            in the output folder.
        InputError: a row without a label, a class with too few rows.
        JobError: some shards could not be read or written.
    """
    stores = [(open_sources(job.features, job.columns), False)]
    if job.test:
        stores.append((open_sources(job.test, job.columns), True))
    shards = [shard for store, _ in stores for shard in store.shards]
    check_label_column(shards, job.columns)
    files = [_read(shard, job.columns, test) for store, test in stores for shard in store.shards]
    _check_ids(files, job.columns)
    label = np.concatenate([file.labels.to_numpy(zero_copy_only=False) for file in files])
    test = np.concatenate([np.full(len(file.ids), file.test) for file in files])
    draw = _Draw(seed=job.seed, ids=[str(name) for file in files for name in file.ids.to_pylist()])
    parts = (_single if job.protocol == 1 else _unseen)(job, draw, label, test)
    part = np.full(len(label), -1, np.int8)
    for number, chosen in enumerate(parts.values()):
        part[chosen] = number
    assert (part >= 0).all(), "every row goes into one part"
    ends = np.cumsum([0, *(len(file.ids) for file in files)])
    tasks = [
        SplitTask(
            shard=file.shard,
            stem=f"{'test' if file.test else 'train'}-{file.shard.stem}",
            part=part[low:high],
            parts=tuple(parts),
        )
        for file, low, high in zip(files, ends[:-1], ends[1:], strict=True)
    ]
    refuse_others(
        job.output,
        [
            f"{task.parts[number]}/{task.stem}.parquet"
            for task in tasks
            for number in np.unique(task.part)
        ],
    )
    with executor.start_workers(SplitWorker, job.output, job.columns, stage="split") as pool:
        for _ in completed(pool.map(SplitWorker.write, tasks), total=len(tasks), label="split"):
            pass
    summary = {
        name: {"rows": int(chosen.sum()), "classes": len(np.unique(label[chosen]))}
        for name, chosen in parts.items()
    }
    return {"output": job.output, "protocol": job.protocol, "parts": summary}


def _check_ids(files: Sequence[Rows], columns: Columns) -> None:
    """Refuses ids of two types, since the parts would mix them.

    Raises:
        InputError: naming a shard of each.
    """
    rule: IdRule | None = None
    for file in files:
        if file.kind is None:
            continue
        rule = rule or IdRule(kind=file.kind, origin=file.shard.uri)
        where = f"{file.shard.uri}, column '{columns.id}'"
        ids.check(file.kind, rule, where=where, found=file.kind)


Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Draw:
    """Draws rows by the order of a hash of their ids."""

    seed: int
    ids: Sequence[str]

    def first(self, among: Mask, n: int, purpose: str) -> Mask:
        """Selects n of the rows ``among``."""
        rows = np.flatnonzero(among)
        if len(rows) < n:
            raise ConfigError(f"{purpose}: asked for {n} rows, found {len(rows)}")
        ranks = [self.rank(purpose, self.ids[int(row)]) for row in rows]
        chosen = np.zeros(len(among), np.bool_)
        chosen[rows[np.argsort(ranks, kind="stable")[:n]]] = True
        return chosen

    def rank(self, purpose: str, name: str) -> bytes:
        """The sort key of a name in the draw for one purpose."""
        return hashlib.blake2b(f"{self.seed}:{purpose}:{name}".encode(), digest_size=8).digest()


def _single(job: SplitJob, draw: _Draw, label: NDArray[Any], test: Mask) -> dict[str, Mask]:
    """Protocol 1: a few labelled rows of each class, the rest for training and the database."""
    queries = draw.first(test if test.any() else ~test, job.queries, "queries")
    rest = ~test & ~queries
    labelled = np.zeros(len(label), np.bool_)
    for name in np.unique(label[rest]):
        in_class = rest & (label == name)
        if job.labelled is None:
            labelled |= in_class
        elif in_class.sum() < job.labelled:
            raise InputError(
                f"class {name!r}",
                expected=f"at least {job.labelled} rows to label",
                found=str(int(in_class.sum())),
            )
        else:
            labelled |= draw.first(in_class, job.labelled, "labelled")
    parts = {"labelled": labelled, "unlabelled": rest & ~labelled, "queries": queries}
    other = test & ~queries
    return {**parts, "other": other} if other.any() else parts


def _unseen(job: SplitJob, draw: _Draw, label: NDArray[Any], test: Mask) -> dict[str, Mask]:
    """Protocol 2: a share of the classes is labelled, and queries are of the others.

    In the paper's terms, train75 is labelled, train25 and test75 are the unlabelled rows and the
    database, and test25 are the queries.
    """
    names = sorted(np.unique(label), key=lambda name: draw.rank("categories", str(name)))
    known = int(job.share * len(names))
    if not 0 < known < len(names):
        raise ConfigError(
            f"share: {job.share} of {len(names)} classes leaves none known or none unknown"
        )
    if not test.any():
        test = draw.first(~test, len(label) // 2, "test")
    seen = np.isin(label, names[:known])
    queries = test & ~seen
    return {
        "labelled": ~test & seen,
        "unlabelled": (~test & ~seen) | (test & seen),
        "queries": queries,
    }


def _read(shard: Shard, columns: Columns, test: bool) -> Rows:
    with open_shard(shard, columns) as file:
        file.field(columns.feature)
        kind = kind_of_ids(file, columns, None)
        if not file.rows:
            empty = pa.array([], pa.string())
            return Rows(shard=shard, ids=empty, kind=None, labels=empty, test=test)
        names = [columns.id, columns.label]
        table = pa.Table.from_batches(file.batches(_BATCH_ROWS, names))
    labels = texts.strings(
        arrays.whole(table.column(columns.label)),
        where=f"{shard.uri}, column '{columns.label}'",
        nulls=True,
    )
    if labels.null_count:
        row = int(np.flatnonzero(labels.is_null())[0])
        raise InputError(
            f"{shard.uri}, row {row}",
            expected="a label",
            found=f"none ({labels.null_count} such row(s))",
        )
    where = f"{shard.uri}, column '{columns.id}'"
    row_ids = ids.read(arrays.whole(table.column(columns.id)), kind, where=where)
    return Rows(shard=shard, ids=row_ids.cast(pa.string()), kind=kind, labels=labels, test=test)
