"""Images of groups: read from the code files, and written by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data import duplicate_groups, intermediate
from raypq.data.ids import IdKind
from raypq.data.storage import Shard
from raypq.data.store import shard_writer
from raypq.stages.retrieval.code_blocks import read_block
from raypq.stages.retrieval.duplicates.group_edges import EDGES, Files
from raypq.stages.retrieval.duplicates.group_forest import MEMBERS, Grown
from raypq.stages.retrieval.duplicates.group_order import Members, Order
from raypq.stages.retrieval.duplicates.source_column import read_numbers

if TYPE_CHECKING:
    from raypq.kernels.sdc import SymmetricTables
    from raypq.stages.retrieval.duplicates.pair_plan import PairPlan

DROPPED = pa.schema([("row", pa.uint32())])


@dataclass(frozen=True, kw_only=True)
class GatherTask:
    """A block of files, whose images of groups are read.

    Attributes:
        name: for errors and logs. block: its number. first, end: numbers of its files.
    """

    name: str
    block: int
    first: int
    end: int


def schema_of(plan: PairPlan) -> pa.Schema:
    """The schema of gathered images."""
    return pa.schema(
        [
            ("row", pa.uint32()),
            ("root", pa.uint32()),
            ("file", pa.int32()),
            ("at", pa.int64()),
            ("id", plan.id_type),
            ("code", pa.binary(plan.model.M)),
            ("value", pa.float64()),
        ]
    )


def gather(
    plan: PairPlan,
    task: GatherTask,
    grown: Grown,
    blocks: int,
    files: Files,
    sources: Sequence[Shard] | None,
    column: str | None,
) -> str:
    """Writes the images of groups of a block of files, partitioned by part; returns the path.

    Args:
        blocks: number of all blocks. files, sources: all of the store.
        column: of the source, by which one of a group is kept.
    """
    this = range(task.block, task.block + 1)
    members = intermediate.read_partitions(plan.store, [grown.members], MEMBERS, blocks, this)
    row = members["row"].to_numpy().astype(np.int64)
    models = {plan.model.fingerprint: plan.model}
    kind: IdKind = "string" if pa.types.is_string(plan.id_type) else "int64"
    schema = schema_of(plan)
    with intermediate.partitioned(plan.store, schema, grown.parts) as out:
        for number in range(task.first, task.end):
            shard, start = files[number]
            end = files[number + 1][1] if number + 1 < len(files) else np.inf
            low, high = np.searchsorted(row, [start, end])
            if low == high:
                continue
            at = row[low:high] - start
            block = read_block(shard, models, plan.id_type)
            ids = block.ids.take(pa.array(at))
            value = pa.nulls(len(at), pa.float64())
            if column is not None and sources is not None:
                source = sources[number]
                value = pa.array(read_numbers(source, plan.columns, column, at, ids, kind))
            codes = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(plan.model.M), len(at), [None, pa.py_buffer(block.B[at].tobytes())]
            )
            part = members.slice(low, high - low)
            columns = [part["row"], part["root"], np.full(len(at), number, np.int32)]
            table = pa.table([*columns, at, ids, codes, value], schema=schema)
            out.write(table, part["part"].to_numpy().astype(np.int64))
    return out.path


def members_of(
    plan: PairPlan, part: int, paths: Sequence[str], grown: Grown, *, valued: bool
) -> Members:
    """The images of a part.

    Args:
        paths: of the gathered images, in the order of their blocks.
        valued: whether they have values by which one is kept.
    """
    this = range(part, part + 1)
    found = intermediate.read_partitions(plan.store, paths, schema_of(plan), grown.parts, this)
    edges = intermediate.read_partitions(plan.store, [grown.edges], EDGES, grown.parts, this)
    row = found["row"].to_numpy().astype(np.int64)
    ends = np.stack([edges["a"].to_numpy(), edges["b"].to_numpy()], 1)
    codes = found["code"].combine_chunks()
    ids = found["id"].combine_chunks()
    return Members(
        row=row,
        root=found["root"].to_numpy().astype(np.int64),
        file=found["file"].to_numpy().astype(np.int64),
        at=found["at"].to_numpy(),
        ids=ids,
        B=_codes(codes, plan.model.M),
        value=found["value"].to_numpy() if valued else None,
        edges=np.searchsorted(row, ends).astype(np.uint32),
        weight=edges["weight"].to_numpy(),
    )


def _codes(codes: pa.FixedSizeBinaryArray, M: int) -> NDArray[np.uint8]:
    data = np.frombuffer(codes.buffers()[1], np.uint8) if len(codes) else np.empty(0, np.uint8)
    start = codes.offset * M
    return data[start : start + len(codes) * M].reshape(-1, M)


def write(
    plan: PairPlan,
    symmetric: SymmetricTables,
    shard: Shard,
    work: str,
    members: Members,
    order: Order,
    shards: Sequence[str],
) -> shard_writer.Receipt:
    """Writes a groups file.

    Args:
        shards: name of each code file.
    """
    schema = duplicate_groups.schema(plan.id_type, plan.metadata)
    names = pa.array(shards, pa.string())
    sign = 1 if plan.metric == "l2" else -1

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(order.rows), shard_writer.ROW_GROUP):
            some = slice(start, start + shard_writer.ROW_GROUP)
            rows, kept_row, kept = order.rows[some], order.kept_row[some], order.kept[some]
            score = symmetric(members.B[rows], members.B[kept_row])
            weight = order.link_weight[some]
            linked = np.where(np.isnan(weight), score, sign * weight).astype(np.float32)
            columns = [
                members.ids.take(pa.array(order.first[some])),
                members.ids.take(pa.array(rows)),
                pa.array(order.size[some]),
                pa.array(kept),
                pa.array(score),
                names.take(pa.array(members.file[rows])),
                pa.array(members.at[rows]),
                pa.array(order.link[some]),
                pa.array(linked, mask=kept),
            ]
            yield pa.record_batch(columns, schema=schema)

    return shard_writer.write_shard(
        plan.store,
        shard,
        model=plan.model.fingerprint,
        work=work,
        schema=schema,
        batches=batches(),
        options=duplicate_groups.WRITE_OPTIONS,
    )
