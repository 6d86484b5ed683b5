"""Split: a labelled store cut into the parts of a semi-supervised retrieval protocol.

Protocol 1 (single category) and protocol 2 (unseen category) are those of Jang and Cho,
"Generalized Product Quantization Network for Semi-supervised Image Retrieval", section 4. Rows
are drawn by a hash of their id and the seed, so the parts do not depend on how the rows lie in
files. Every row goes into one part and keeps all its columns.
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
from raypq.data import arrays, ids
from raypq.data.features import FeatureStore, kind_of_ids
from raypq.data.ids import IdRule
from raypq.data.plain_folder import refuse_others
from raypq.data.storage import Shard, join, open_parquet, replacing
from raypq.errors import ConfigError, InputError
from raypq.execution.executor import Executor, completed
from raypq.stages.stores.shard_types import check_label_column

_GROUP = 4096  # rows that are held at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Ids and labels of one shard, both [n] strings, and which of the two stores it is of.

    Attributes:
        kind: the type of the ids in the file; None without rows.
    """

    shard: Shard
    ids: pa.Array
    kind: ids.IdKind | None
    labels: pa.Array
    test: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitTask:
    """A shard, the name of its files, and the part of each row [n] among ``parts``."""

    shard: Shard
    stem: str
    part: NDArray[np.int8]
    parts: Sequence[str]

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.shard.uri


class SplitWorker:
    """Writes the rows of a shard to the parts that they belong to."""

    def __init__(self, output: str) -> None:
        self._output = output

    def write(self, task: SplitTask) -> None:
        """Writes the parts of a shard."""
        for number, name in enumerate(task.parts):
            chosen = task.part == number
            if not chosen.any():
                continue
            place = join(join(self._output, name), f"{task.stem}.parquet")
            with (
                open_parquet(task.shard.uri) as file,
                replacing(place) as sink,
                pq.ParquetWriter(
                    sink, arrays.without_views(file.schema_arrow), write_page_checksum=True
                ) as writer,
            ):
                row = 0
                for batch in file.iter_batches(batch_size=_GROUP):
                    keep = chosen[row : row + len(batch)]
                    row += len(batch)
                    if keep.any():
                        writer.write_batch(_taken(batch, keep, writer.schema, task.shard.uri))


def _taken(
    batch: pa.RecordBatch, keep: NDArray[np.bool_], schema: pa.Schema, uri: str
) -> pa.RecordBatch:
    """The rows to keep [n], in the types of a schema.

    Raises:
        InputError: a column of a type of which pyarrow cannot take rows.
    """
    mask, columns = pa.array(keep), []
    for column, field in zip(batch.columns, schema, strict=True):
        try:
            columns.append(column.cast(field.type).filter(mask))
        except pa.ArrowNotImplementedError:
            raise InputError(
                f"{uri}, column '{field.name}'",
                expected="a type that rows can be taken of",
                found=f"{column.type} of {getattr(column.type, 'storage_type', 'views')}; drop the "
                "column, or write it without views",
            ) from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def split(job: SplitJob, executor: Executor) -> dict[str, Any]:
    """Writes a folder for each part below ``output``; returns the rows and classes of each.

    Raises:
        ConfigError: more rows asked for than there are, protocol 2 with too few classes, an output
            with other files in it.
        InputError: a row without a label, a class with too few rows.
        JobError: shards that could not be read or written.
    """
    stores = [(FeatureStore.open(job.features, job.columns), False)]
    if job.test:
        stores.append((FeatureStore.open(job.test, job.columns), True))
    shards = [shard for store, _ in stores for shard in store.shards]
    check_label_column(shards, job.columns)
    rows = [_read(shard, job.columns, test) for store, test in stores for shard in store.shards]
    _check_ids(rows, job.columns)
    label = np.concatenate([one.labels.to_numpy(zero_copy_only=False) for one in rows])
    test = np.concatenate([np.full(len(one.ids), one.test) for one in rows])
    draw = _Draw(seed=job.seed, ids=[str(name) for one in rows for name in one.ids.to_pylist()])
    parts = (_single if job.protocol == 1 else _unseen)(job, draw, label, test)
    part = np.full(len(label), -1, np.int8)
    for number, chosen in enumerate(parts.values()):
        part[chosen] = number
    assert (part >= 0).all(), "every row goes into one part"
    ends = np.cumsum([0, *(len(one.ids) for one in rows)])
    tasks = [
        SplitTask(
            shard=one.shard,
            stem=f"{'test' if one.test else 'train'}-{one.shard.stem}",
            part=part[low:high],
            parts=tuple(parts),
        )
        for one, low, high in zip(rows, ends[:-1], ends[1:], strict=True)
    ]
    refuse_others(
        job.output,
        [
            f"{task.parts[number]}/{task.stem}.parquet"
            for task in tasks
            for number in np.unique(task.part)
        ],
    )
    with executor.start_workers(SplitWorker, job.output, stage="split") as pool:
        for _ in completed(pool.map(SplitWorker.write, tasks), total=len(tasks), label="split"):
            pass
    told = {
        name: {"rows": int(chosen.sum()), "classes": len(np.unique(label[chosen]))}
        for name, chosen in parts.items()
    }
    return {"output": job.output, "protocol": job.protocol, "parts": told}


def _check_ids(rows: Sequence[Rows], columns: Columns) -> None:
    """Refuses ids of two types: the parts would mix them.

    Raises:
        InputError: naming a shard of each.
    """
    rule: IdRule | None = None
    for one in rows:
        if one.kind is None:
            continue
        rule = rule or IdRule(kind=one.kind, origin=one.shard.uri)
        where = f"{one.shard.uri}, column '{columns.id}'"
        ids.check(one.kind, rule, where=where, found=one.kind)


Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Draw:
    """Draws rows by the order of a hash of their ids."""

    seed: int
    ids: Sequence[str]

    def first(self, among: Mask, n: int, what: str) -> Mask:
        """n of the rows ``among``."""
        rows = np.flatnonzero(among)
        if len(rows) < n:
            raise ConfigError(f"{what}: asked for {n} rows, found {len(rows)}")
        ranks = [self.rank(what, self.ids[int(row)]) for row in rows]
        chosen = np.zeros(len(among), np.bool_)
        chosen[rows[np.argsort(ranks, kind="stable")[:n]]] = True
        return chosen

    def rank(self, what: str, name: str) -> bytes:
        """Where a name stands in the order of one draw."""
        return hashlib.blake2b(f"{self.seed}:{what}:{name}".encode(), digest_size=8).digest()


def _single(job: SplitJob, draw: _Draw, label: NDArray[Any], test: Mask) -> dict[str, Mask]:
    """Protocol 1: a few labelled rows of each class, the rest for training and the database."""
    queries = draw.first(test if test.any() else ~test, job.queries, "queries")
    rest = ~test & ~queries
    labelled = np.zeros(len(label), np.bool_)
    for name in np.unique(label[rest]):
        of_class = rest & (label == name)
        if job.labelled is None:
            labelled |= of_class
        elif of_class.sum() < job.labelled:
            raise InputError(
                f"class {name!r}",
                expected=f"at least {job.labelled} rows to label",
                found=str(int(of_class.sum())),
            )
        else:
            labelled |= draw.first(of_class, job.labelled, "labelled")
    parts = {"labelled": labelled, "unlabelled": rest & ~labelled, "queries": queries}
    other = test & ~queries
    return {**parts, "other": other} if other.any() else parts


def _unseen(job: SplitJob, draw: _Draw, label: NDArray[Any], test: Mask) -> dict[str, Mask]:
    """Protocol 2: labels of a share of the classes; queries are of the others.

    train75 is labelled, train25 and test75 are the unlabelled rows and the database, test25 asks.
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
    with open_parquet(shard.uri) as file:
        file.field(columns.feature)
        kind = kind_of_ids(file, columns, None)
        if not file.metadata.num_rows:
            nothing = pa.array([], pa.string())
            return Rows(shard=shard, ids=nothing, kind=None, labels=nothing, test=test)
        table = file.read(columns=[columns.id, columns.label])
    labels = arrays.strings(
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
    named = ids.read(arrays.whole(table.column(columns.id)), kind, where=where)
    return Rows(shard=shard, ids=named.cast(pa.string()), kind=kind, labels=labels, test=test)
