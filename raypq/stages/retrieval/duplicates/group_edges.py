"""Edges of the graph of near-duplicates: pairs of rows of a code store, numbered across its files.

Only the edges of a minimum spanning forest are kept: they connect the same rows at every threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data import intermediate
from raypq.data.storage import Shard, file_size, join
from raypq.data.stored import open_stored
from raypq.kernels.forest import Forest
from raypq.stages.retrieval.code_blocks import ROW_BITS, CodeBlock, read_block
from raypq.stages.retrieval.duplicates.pair_originals import LeftOut, NearPairs
from raypq.stages.retrieval.duplicates.pair_parts import PairPart
from raypq.stages.retrieval.duplicates.pair_plan import BlockGroups, PairTask
from raypq.stages.retrieval.duplicates.pair_search import PairSearch

Rows = NDArray[np.uint32]  # numbers across the files of a store
Starts = NDArray[np.int64]  # number of the first row of each file
Files = Sequence[tuple[Shard, int]]  # of a code store, each with the number of its first row

EDGES = pa.schema([("a", pa.uint32()), ("b", pa.uint32()), ("weight", pa.float32())])
_COLUMNS = ["shard", "row", "kept", "link", "link_score"]  # of a groups file


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """A groups file of the last version, whose groups are taken over."""

    uri: str
    size: int

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.uri


@dataclass(frozen=True, kw_only=True, eq=False)
class Recalled:
    """What a groups file of the last version holds for the next one.

    Attributes:
        path: of the edges of groups that are whole. rows: of groups that have lost an image [n];
            they are to be compared with one another again.
    """

    path: str
    rows: Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class AgainTask:
    """Rows [n], ascending, that are compared with one another.

    Attributes:
        parts: first part of each group of a join by which they may be.
    """

    rows: Rows
    parts: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return "images of groups that have lost one"


class EdgeWorker(PairSearch):
    """Finds edges between rows."""

    def connect(self, task: PairTask, groups: BlockGroups, starts: Starts) -> PairPart:
        """Writes the edges between the rows of two blocks, or within one.

        Args:
            starts: number of the first row of each file.
        """
        first, second = self.read_sides(task, groups, ids=self.plan.originals is not None)
        numbers = row_numbers(first, starts)
        offset = 0
        if task.second is not None:
            offset = len(numbers)
            numbers = np.concatenate([numbers, row_numbers(second, starts)])
        forest, left_out = Forest(len(numbers)), LeftOut()
        self._add(forest, self.near_pairs(task, first, second, left_out), offset=offset)
        a, b = numbers[forest.edges].T
        path = write_edges(self.plan.store, a, b, forest.weight)
        size = file_size(join(self.plan.store, path))
        return PairPart(key=task.key, path=path, bytes=size, pairs=len(a), left_out=left_out.pairs)

    def recall(self, task: RecallTask, starts: Mapping[str, int]) -> Recalled:
        """Writes the edges of the groups of a file whose images are all still there.

        Args:
            starts: number of the first row of each code file that has not changed, by its shard.
        """
        with open_stored(task.uri, "groups", size=task.size) as file:
            table = file.read(columns=_COLUMNS)
        kept = table["kept"].to_numpy()
        shards = table["shard"].combine_chunks().dictionary_encode()
        start = np.array([starts.get(name, -1) for name in shards.dictionary.to_pylist()], np.int64)
        of_row = start[shards.indices.to_numpy()] if len(table) else np.empty(0, np.int64)
        node = np.where(of_row < 0, -1, of_row + table["row"].to_numpy())
        first = np.flatnonzero(kept)  # the kept one is the first of its group
        group = np.cumsum(kept) - 1
        lost = np.zeros(len(first), bool)
        lost[group[node < 0]] = True
        whole = ~lost[group] & ~kept
        linked = node[first[group[whole]] + table["link"].to_numpy()[whole]]
        a, b = node[whole], linked
        weight = self.weight(table["link_score"].to_numpy(zero_copy_only=False)[whole])
        path = write_edges(self.plan.store, a, b, weight)
        return Recalled(path=path, rows=node[lost[group] & (node >= 0)].astype(np.uint32))

    def compare_again(self, task: AgainTask, files: Files) -> str:
        """Writes the edges between some rows; returns the path."""
        block = self._rows(task.rows, files)
        forest = Forest(len(block.B))
        self._add(forest, self.near_within(block, task.parts), offset=0)
        a, b = task.rows[forest.edges].T
        return write_edges(self.plan.store, a, b, forest.weight)

    def weight(self, score: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Weights of edges by scores of pairs, or the reverse: the nearer, the lighter."""
        sign = 1 if self.plan.metric == "l2" else -1
        return np.asarray(sign * score, np.float32)

    def _add(self, forest: Forest, found: Iterable[NearPairs], *, offset: int) -> None:
        for i, j, score in found:
            edges = np.stack([i.to_numpy(), j.to_numpy() + offset], 1).astype(np.uint32)
            forest.add(edges, self.weight(score))

    def _rows(self, rows: Rows, files: Files) -> CodeBlock:
        """The codes of some rows, in their order."""
        models = {self.plan.model.fingerprint: self.plan.model}
        starts = np.array([start for _, start in files])
        file = np.searchsorted(starts, rows, side="right") - 1
        blocks = []
        for index in np.unique(file):
            shard, start = files[index]
            block = read_block(shard, models, self.plan.id_type)
            block = block.take(rows[file == index].astype(np.int64) - start)
            needed = self.plan.originals is not None
            blocks.append(block if needed else replace(block, ids=pa.nulls(len(block.B))))
        return CodeBlock.join(blocks)


def row_numbers(block: CodeBlock, starts: Starts) -> Rows:
    """The number of each row of a block."""
    row = block.row_ref & ((1 << ROW_BITS) - 1)
    return (starts[block.row_ref >> ROW_BITS] + row).astype(np.uint32)


def write_edges(store: str, a: NDArray[Any], b: NDArray[Any], weight: NDArray[np.float32]) -> str:
    """Writes edges between rows a and b [e] to an intermediate file; returns its path."""
    columns = [np.minimum(a, b).astype(np.uint32), np.maximum(a, b).astype(np.uint32), weight]
    return intermediate.write(store, pa.table(columns, schema=EDGES))
