"""The worker of ``raypq deduplicate``: edges between rows, then groups of rows, then lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raypq.data import duplicate_groups, intermediate
from raypq.data.storage import Shard
from raypq.data.store import shard_writer
from raypq.errors import InputError
from raypq.stages.retrieval.code_blocks import CodeBlock
from raypq.stages.retrieval.duplicates import group_forest, group_lists, group_members
from raypq.stages.retrieval.duplicates.group_edges import EdgeWorker, Files
from raypq.stages.retrieval.duplicates.group_forest import ForestTask, Grown
from raypq.stages.retrieval.duplicates.group_lists import CheckTask, Listed, ListTask
from raypq.stages.retrieval.duplicates.group_members import DROPPED, GatherTask
from raypq.stages.retrieval.duplicates.group_order import Codes, NearRows, order_of
from raypq.stages.retrieval.duplicates.pair_plan import PairPlan

_HELD_PAIRS = 50_000_000  # of the images of a part, at 40 bytes each


@dataclass(frozen=True, kw_only=True, eq=False)
class Keeping:
    """Which images are a group, and which of them is kept.

    Attributes:
        cliques: whether every two images of a group are within the threshold.
        column: of the source, of which the largest or smallest is kept. largest: which of them.
        preferred: ids that are kept where a group has one.
    """

    cliques: bool
    column: str | None
    largest: bool
    preferred: pa.Array


@dataclass(frozen=True, kw_only=True)
class GroupTask:
    """A part of the groups, to be written."""

    shard: Shard
    work: str
    part: int

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shard.uri


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """A groups file.

    Attributes:
        groups, dropped, largest: number of groups, of images that are not kept, and images of the
            largest group. sizes: groups of each size (``duplicate_groups.count_sizes``).
        path: of the numbers of dropped rows.
    """

    receipt: shard_writer.Receipt
    groups: int
    dropped: int
    largest: int
    sizes: dict[int, int]
    path: str


class GroupWorker(EdgeWorker):
    """Makes groups of rows that edges connect."""

    def __init__(self, plan: PairPlan, keeping: Keeping) -> None:
        super().__init__(plan)
        self._keeping = keeping

    def check_ids(self, task: CheckTask) -> None:
        """See ``group_lists.check``."""
        group_lists.check(task)

    def grow(self, task: ForestTask) -> Grown:
        """See ``group_forest.grow``."""
        plan = self.plan
        return group_forest.grow(plan.store, task, plan.metric, plan.threshold)

    def gather(
        self,
        task: GatherTask,
        grown: Grown,
        blocks: int,
        files: Files,
        sources: Sequence[Shard] | None,
    ) -> str:
        """See ``group_members.gather``."""
        column = self._keeping.column
        return group_members.gather(self.plan, task, grown, blocks, files, sources, column)

    def group(
        self, task: GroupTask, grown: Grown, paths: Sequence[str], shards: Sequence[str]
    ) -> Grouped:
        """Writes the groups of a part.

        Args:
            paths: of the gathered images. shards: name of each code file.
        """
        plan, keeping = self.plan, self._keeping
        valued = keeping.column is not None
        members = group_members.members_of(plan, task.part, paths, grown, valued=valued)
        order = order_of(
            members,
            keeping.preferred,
            largest=keeping.largest,
            find=self._near_rows if keeping.cliques else None,
            equal_are_near=self.equal_are_near,
        )
        receipt = group_members.write(
            plan, self.symmetric, task.shard, task.work, members, order, shards
        )
        sizes = order.size[order.kept]
        dropped = members.row[order.rows[~order.kept]].astype(np.uint32)
        return Grouped(
            receipt=receipt,
            groups=len(sizes),
            dropped=len(dropped),
            largest=int(sizes.max(initial=0)),
            sizes=duplicate_groups.count_sizes(sizes),
            path=intermediate.write(plan.store, pa.table([dropped], schema=DROPPED)),
        )

    def write_list(self, task: ListTask, files: Files) -> Listed:
        """See ``group_lists.write``."""
        plan = self.plan
        return group_lists.write(plan.store, task, files, plan.id_type, self._keeping.preferred)

    def _near_rows(self, B: Codes) -> Iterator[NearRows]:
        """The pairs of codes [n, M] within the threshold, and their weights.

        Raises:
            InputError: more than can be held.
        """
        block = CodeBlock(
            fingerprint=self.plan.model.fingerprint,
            B=B,
            ids=pa.nulls(len(B)),
            row_ref=np.arange(len(B)),
        )
        total = 0
        join_of = self.plan.join
        for i, j, score in self.near_within(block, None if join_of is None else join_of.first):
            total += len(score)
            if total > _HELD_PAIRS:
                raise InputError(
                    f"threshold {self.plan.threshold:g} ({self.plan.metric})",
                    expected=f"at most {_HELD_PAIRS:,} pairs of different codes in groups of "
                    "--linkage complete (linkage)",
                    found="more; use a narrower threshold, or --linkage single (linkage: single)",
                )
            rows = (i.to_numpy().astype(np.int64), j.to_numpy().astype(np.int64))
            yield *rows, self.weight(score)
