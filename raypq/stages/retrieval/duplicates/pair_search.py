"""Pairs of stored codes within a threshold, by symmetric distance: how a worker finds them.

Candidates come from the join of codes (``kernels.join``), at a cost below N², or, where the
threshold is too wide for it, from a scan of all N²/2 pairs by the range kernel. Symmetric tables
[M, K, K] then give their scores. So the result depends neither on the shards, nor on the workers,
nor on the way to the candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import kernels
from raypq.data.storage import Shard
from raypq.kernels.join import CodeJoin, usable
from raypq.kernels.sdc import SymmetricTables
from raypq.stages.retrieval.code_blocks import CodeBlock, codes_alone, read_block
from raypq.stages.retrieval.duplicates.pair_originals import LeftOut, NearPairs, Originals
from raypq.stages.retrieval.duplicates.pair_plan import BlockGroups, PairPlan, PairTask

_ROUNDING = 1e-6  # of the cosine of equal codes
# Rows of each side that are compared at once: less than 1 GB even if all pairs are within the
# threshold. There are never fewer stored rows than query rows.
_QUERY_ROWS, _STORED_ROWS = 512, 1 << 16

Codes = NDArray[np.uint8]


class PairSearch:
    """Finds the near pairs of two groups of shards, or within one."""

    def __init__(self, plan: PairPlan) -> None:
        self.plan = plan
        self.symmetric = SymmetricTables(plan.model.C, plan.metric)
        self._held: tuple[tuple[int, bool], CodeBlock] | None = None
        self._originals = None if plan.originals is None else Originals(plan)

    def read_sides(
        self, task: PairTask, groups: BlockGroups, *, ids: bool = True
    ) -> tuple[CodeBlock, CodeBlock]:
        """The codes of the groups of a task; of one group, twice the same.

        Args:
            ids: whether they are needed; if not, all are null.
        """
        first = self._read(groups[task.first], self.plan.id_type, ids)
        if task.second is None:
            return first, first
        # The next task often compares another group of parts of the same codes.
        held = self._held
        if held is None or held[0] != (task.second, ids):
            self._held = None  # its memory is free before the next is read
            held = (task.second, ids), self._read(groups[task.second], self.plan.other_type, ids)
            self._held = held
        return first, held[1]

    def near_pairs(
        self, task: PairTask, first: CodeBlock, second: CodeBlock, left_out: LeftOut
    ) -> Iterator[NearPairs]:
        """Pairs within the threshold: rows of the first and the second block, and their scores.

        Where the plan says so, the first row of a code stands for others with it. Where there are
        original vectors, these decide, and give the scores.
        """
        same = task.second is None
        if task.parts is None:
            return self._near(None, (), first, second, left_out, same=same)
        return self._near(self.plan.join, (task.parts,), first, second, left_out, same=same)

    def near_within(self, block: CodeBlock, parts: tuple[int, ...] | None) -> Iterator[NearPairs]:
        """As ``near_pairs``, within a block that is not of the plan.

        Args:
            parts: first part of each group of a join, which is used where it pays.
        """
        plan = self.plan
        if parts is not None and usable(plan.model.C):
            join = CodeJoin.by(plan.model.C, plan.metric, plan.threshold, first=parts)
            if join.pays(len(block.B), len(block.B)):
                return self._near(join, range(join.groups), block, block, LeftOut(), same=True)
        return self._near(None, (), block, block, LeftOut(), same=True)

    def _near(
        self,
        join: CodeJoin | None,
        groups: Iterable[int],
        first: CodeBlock,
        second: CodeBlock,
        left_out: LeftOut,
        *,
        same: bool,
    ) -> Iterator[NearPairs]:
        """Pairs by some groups of parts of a join, or by a scan."""
        once = self.plan.once and self.equal_are_near
        if join is not None:
            found: Iterator[NearPairs] = chain.from_iterable(
                self._joined(join, first, second, same=same, parts=group, once=once)
                for group in groups
            )
        elif not once:
            found = self._scanned(first, second, same=same)
        else:
            found = self._scanned_once(first, second, same=same)
        if self._originals is None:
            return found
        return self._originals.confirmed(found, first, second, left_out)

    @property
    def equal_are_near(self) -> bool:
        """Whether equal codes are always within the threshold, so that one stands for others."""
        metric, threshold = self.plan.metric, self.plan.threshold
        return metric == "l2" or (metric == "cosine" and threshold < 1 - _ROUNDING)

    def _read(self, shards: Sequence[Shard], id_type: pa.DataType, ids: bool) -> CodeBlock:
        models = {self.plan.model.fingerprint: self.plan.model}
        if not ids:
            return codes_alone(shards, models, id_type)
        return CodeBlock.join([read_block(shard, models, id_type) for shard in shards])

    def _joined(
        self,
        join: CodeJoin,
        first: CodeBlock,
        second: CodeBlock,
        *,
        same: bool,
        parts: int,
        once: bool,
    ) -> Iterator[NearPairs]:
        """Pairs within the threshold that the join finds by a group of parts."""
        other = None if same else second.B
        for rows in join.pairs(parts, first.B, other, once=once):
            i, j = rows.T
            near, score = self.scored(first.B[i], second.B[j])
            if near.any():
                yield pa.array(i[near]), pa.array(j[near]), score[near]

    def scored(self, A: Codes, B: Codes) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which pairs of codes [n, M] are within the threshold, and all scores [n]."""
        score, threshold = self.symmetric(A, B), np.float32(self.plan.threshold)
        return score <= threshold if self.plan.metric == "l2" else score >= threshold, score

    def _scanned(self, first: CodeBlock, second: CodeBlock, *, same: bool) -> Iterator[NearPairs]:
        """Pairs within the threshold: rows of the first and the second block, and their scores."""
        plan = self.plan
        tolerance = 2.0**-20 * abs(plan.threshold) + self.symmetric.tolerance
        min_score = (-plan.threshold if plan.metric == "l2" else plan.threshold) - tolerance
        for start in range(0, len(first.B), _QUERY_ROWS):
            A = first.B[start : start + _QUERY_ROWS]
            tables = plan.model.tables(plan.model.decode(A), None, plan.metric)
            for at in range(start if same else 0, len(second.B), _STORED_ROWS):
                B = second.B[at : at + _STORED_ROWS]
                # Within one block, the first stored rows are the query rows themselves.
                i, j, _ = kernels.range_search(
                    B, tables, min_score, upper_triangle=same and at == start, device=plan.device
                )
                near, score = self.scored(A[i], B[j])
                if near.any():
                    yield pa.array(i[near] + start), pa.array(j[near] + at), score[near]

    def _scanned_once(
        self, first: CodeBlock, second: CodeBlock, *, same: bool
    ) -> Iterator[NearPairs]:
        """As ``_scanned``, of distinct codes; and the first row of each with the others."""
        leaders, leader = _leaders(first.B)
        others = leaders
        if not same:
            others, _ = _leaders(second.B)
        else:
            follow = np.flatnonzero(leader != np.arange(len(leader)))
            near, score = self.scored(first.B[leader[follow]], first.B[follow])
            if near.any():
                yield pa.array(leader[follow][near]), pa.array(follow[near]), score[near]
        a = first.take(leaders)
        b = a if same else second.take(others)
        for i, j, score in self._scanned(a, b, same=same):
            yield pa.array(leaders[i.to_numpy()]), pa.array(others[j.to_numpy()]), score


def _leaders(B: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each distinct code, ascending, and that of the code of each row [n]."""
    if not len(B):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    _, first, code = np.unique(B, axis=0, return_index=True, return_inverse=True)
    return np.sort(first), first[code.reshape(-1)]
