"""The worker of ``raypq deduplicate``: pairs of rows, and groups made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.data import duplicate_groups, intermediate
from raypq.data.codes import CodeFile
from raypq.data.duplicate_ids import hashes
from raypq.data.id_list import check_lines, write_list
from raypq.data.storage import Shard
from raypq.data.store import shard_writer
from raypq.stages.retrieval.code_blocks import CodeBlock, read_block
from raypq.stages.retrieval.components import Components
from raypq.stages.retrieval.pair_plan import BlockGroups, PairTask
from raypq.stages.retrieval.pair_search import PairSearch

Rows = NDArray[np.int64]
Files = Sequence[tuple[Shard, int]]  # of a code store, each with its number of rows
_EDGES = pa.schema([("a", pa.int64()), ("b", pa.int64())])
_EDGES_OF_FILE = 1 << 20
_ID_ROWS = 1 << 17


@dataclass(frozen=True, kw_only=True)
class GroupTask:
    """The groups, to be made of the pairs in some files.

    Attributes:
        keep_list, drop_list: text files to write.
    """

    shard: Shard
    work: str
    paths: tuple[str, ...]
    keep_list: str | None
    drop_list: str | None

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shard.uri


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """The receipt of the groups, and what the driver says of them.

    Attributes:
        lists: bytes and sha256 of each list that was written, by its field of the job.
        repeated: ids of dropped images that others of the store have, too; they are not on the
            drop list. unknown: preferred ids that the store lacks.
    """

    receipt: shard_writer.Receipt
    groups: int
    dropped: int
    largest: int
    lists: Mapping[str, Mapping[str, Any]]
    repeated: pa.Array
    unknown: pa.Array


class GroupWorker(PairSearch):
    """Finds pairs of rows, and makes groups of them."""

    def connect(self, task: PairTask, groups: BlockGroups, starts: Sequence[int]) -> list[str]:
        """Writes the pairs of two blocks, or within one, as row numbers; returns the paths."""
        first, second = self.read_sides(task, groups, ids=False)
        at_first = starts[task.first]
        at_second = at_first if task.second is None else starts[task.second]
        paths: list[str] = []
        parts: list[pa.Table] = []

        def write() -> None:
            if parts:
                paths.append(intermediate.write(self.plan.store, pa.concat_tables(parts)))
                parts.clear()

        for i, j, _ in self.near_pairs(task, first, second, once=True):
            columns = [i.cast(pa.int64()).to_numpy() + at_first]
            columns += [j.cast(pa.int64()).to_numpy() + at_second]
            parts.append(pa.table(columns, schema=_EDGES))
            if sum(len(part) for part in parts) >= _EDGES_OF_FILE:
                write()
        write()
        return paths

    def check_ids(self, task: PairTask, groups: BlockGroups) -> None:
        """Refuses ids of the first group of a task that a line of a list cannot hold.

        Raises:
            InputError: naming the code file and the id.
        """
        for shard in groups[task.first]:
            file = CodeFile.open(shard.uri, size=shard.size)
            if file.rows:
                check_lines(file.ids(_ID_ROWS), shard.uri)

    def group(self, task: GroupTask, files: Files, preferred: pa.Array) -> Grouped:
        """Connects the rows, and writes the groups and the lists.

        Args:
            files: of the code store, in the order of row numbers.
            preferred: ids that are kept where a group has one.
        """
        plan = self.plan
        components = Components(sum(rows for _, rows in files))
        for path in task.paths:
            edges = intermediate.read(plan.store, path)
            components.connect(edges["a"].to_numpy(), edges["b"].to_numpy())
        members = self._members(files, components.lowest)
        order = _Order.of(members, preferred)
        receipt = self._write(task, members, order)
        dropped = members.ids.take(pa.array(order.rows[~order.kept])).unique()
        gone = members.row[order.rows[~order.kept]]
        repeated = known = dropped[:0]
        lists: dict[str, Mapping[str, Any]] = {}
        if task.keep_list is not None:
            lists["keep_list"] = write_list(task.keep_list, self._others(files, gone))
        if task.drop_list is not None:
            repeated = self._stay_too(files, gone, dropped)
            safe = dropped.filter(pc.invert(pc.is_in(dropped, value_set=repeated)))
            lists["drop_list"] = write_list(task.drop_list, [safe.sort()])
        if len(preferred):
            known = self._known(files, preferred)
        sizes = order.size[order.kept]
        return Grouped(
            receipt=receipt,
            groups=len(sizes),
            dropped=len(gone),
            largest=int(sizes.max(initial=0)),
            lists=lists,
            repeated=repeated,
            unknown=preferred.filter(pc.invert(pc.is_in(preferred, value_set=known))),
        )

    def _blocks(self, files: Files) -> Iterator[tuple[int, CodeBlock]]:
        models = {self.plan.model.fingerprint: self.plan.model}
        start = 0
        for shard, rows in files:
            yield start, read_block(shard, models, self.plan.id_type)
            start += rows

    def _members(self, files: Files, lowest: Rows) -> _Members:
        """The rows of groups of two or more."""
        connected = lowest != np.arange(len(lowest))
        connected[lowest[connected]] = True
        parts = []
        for start, block in self._blocks(files):
            rows = np.flatnonzero(connected[start : start + len(block.B)])
            parts.append((start + rows, block.ids.take(pa.array(rows)), block.B[rows]))
        row, ids, B = zip(*parts, strict=True)
        numbers = np.concatenate(row)
        return _Members(
            row=numbers,
            root=lowest[numbers],
            ids=pa.concat_arrays(ids),
            B=np.concatenate(B),
        )

    def _write(self, task: GroupTask, members: _Members, order: _Order) -> shard_writer.Receipt:
        plan = self.plan
        schema = duplicate_groups.schema(plan.id_type, plan.metadata)

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(order.rows), shard_writer.ROW_GROUP):
                part = slice(start, start + shard_writer.ROW_GROUP)
                rows, kept_row = order.rows[part], order.kept_row[part]
                columns = [
                    members.ids.take(pa.array(order.first[part])),
                    members.ids.take(pa.array(rows)),
                    pa.array(order.size[part]),
                    pa.array(order.kept[part]),
                    pa.array(self.symmetric(members.B[rows], members.B[kept_row])),
                ]
                yield pa.record_batch(columns, schema=schema)

        return shard_writer.write_shard(
            plan.store,
            task.shard,
            model=plan.model.fingerprint,
            work=task.work,
            schema=schema,
            batches=batches(),
            options=duplicate_groups.WRITE_OPTIONS,
        )

    def _others(self, files: Files, gone: Rows) -> Iterator[pa.Array]:
        """The ids of all rows but these, in the order of the store."""
        dropped = np.zeros(sum(rows for _, rows in files), bool)
        dropped[gone] = True
        for start, ids in _ids_of(files):
            yield ids.filter(pa.array(~dropped[start : start + len(ids)]))

    def _stay_too(self, files: Files, gone: Rows, dropped: pa.Array) -> pa.Array:
        """Which ids of dropped rows other rows have, too."""
        ordered = np.sort(hashes(dropped))
        found = [dropped[:0]]
        for ids in self._others(files, gone):
            of_rows = hashes(ids)
            at = np.searchsorted(ordered, of_rows)
            at[at == len(ordered)] = 0
            if len(ordered) and (likely := ordered[at] == of_rows).any():
                found.append(ids.filter(pa.array(likely)))
        some = pa.concat_arrays(found).unique()
        return some.filter(pc.is_in(some, value_set=dropped))

    def _known(self, files: Files, wanted: pa.Array) -> pa.Array:
        """Which ids the store has."""
        has = np.zeros(len(wanted), bool)
        for _, ids in _ids_of(files):
            has |= pc.is_in(wanted, value_set=ids).to_numpy(zero_copy_only=False)
        return wanted.filter(pa.array(has))


def _ids_of(files: Files) -> Iterator[tuple[int, pa.Array]]:
    """The ids of code files, in parts, with the number of the first row of each."""
    start = 0
    for shard, rows in files:
        if not rows:
            continue
        for ids in CodeFile.open(shard.uri, size=shard.size).ids(_ID_ROWS):
            yield start, ids
            start += len(ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Members:
    """The m rows of groups: their numbers and the lowest number of their group [m], ids, and codes
    [m, M]."""

    row: Rows
    root: Rows
    ids: pa.Array
    B: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Order:
    """Members by group, the kept one first.

    Attributes:
        rows: members [m]. first: that with the smallest id in the group of each; kept_row: the kept
            one. size: of the group. kept: whether it is kept.
    """

    rows: Rows
    first: Rows
    kept_row: Rows
    size: Rows
    kept: NDArray[np.bool_]

    @classmethod
    def of(cls, members: _Members, preferred: pa.Array) -> _Order:
        m = len(members.row)
        rank = np.empty(m, np.int64)
        rank[pc.array_sort_indices(members.ids).to_numpy()] = np.arange(m)
        by_group = np.lexsort((rank, members.root))
        starts = np.flatnonzero(np.r_[True, np.diff(members.root[by_group]) > 0]) if m else by_group
        size = np.diff(np.r_[starts, m])
        first = by_group[starts]
        other = ~pc.is_in(members.ids, value_set=preferred).to_numpy(zero_copy_only=False)
        best = np.lexsort((rank, other, members.root))[starts]  # a preferred one, else the first
        of_member = np.empty(m, np.int64)
        of_member[by_group] = np.repeat(np.arange(len(starts)), size)
        kept_row = best[of_member]
        kept = kept_row == np.arange(m)
        order = np.lexsort((rank, ~kept, rank[first[of_member]]))
        return cls(
            rows=order,
            first=first[of_member][order],
            kept_row=kept_row[order],
            size=size[of_member][order],
            kept=kept[order],
        )
