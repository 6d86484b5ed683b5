"""Near pairs confirmed by their original vectors: candidates come from the codes.

A pair is kept if its vectors, as the model sees them, are within the threshold, too. Only row
groups with candidates are read, each once for a task; vectors beyond a bound are kept on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.ids import IdKind
from raypq.kernels.tables import squared_norms
from raypq.stages.retrieval.code_blocks import ROW_BITS, CodeBlock
from raypq.stages.retrieval.query_vectors import apply_in_fixed_blocks
from raypq.stages.retrieval.rerank import check_ids, read_rows

if TYPE_CHECKING:
    from raypq.stages.retrieval.duplicates.pair_plan import PairPlan

_IN_MEMORY = 1 << 29  # bytes of vectors
_PAIRS = 1 << 15  # that are scored at a time

NearPairs = tuple[pa.Array, pa.Array, NDArray[np.float32]]  # rows of both sides, and scores
Rows = NDArray[np.int64]


@dataclass(kw_only=True)
class LeftOut:
    """The number of pairs of a task that are near by their codes, and not by their original
    vectors."""

    pairs: int = 0


class Originals:
    """The original vectors of a code store."""

    def __init__(self, plan: PairPlan) -> None:
        self._plan = plan

    def confirmed(
        self,
        found: Iterator[NearPairs],
        first: CodeBlock,
        second: CodeBlock,
        left_out: LeftOut,
    ) -> Iterator[NearPairs]:
        """The pairs whose vectors are within the threshold, too, with the scores of these; counts
        the others.

        Raises:
            InputError: more candidates than pairs are allowed.
        """
        pairs: list[NDArray[np.uint32]] = []
        for rows, others, _ in found:
            pairs.append(np.stack([rows.to_numpy(), others.to_numpy()], 1).astype(np.uint32))
            if sum(map(len, pairs)) > self._plan.max_pairs:
                raise self._plan.too_many()
        if not pairs:
            return
        i, j = np.concatenate(pairs).T
        pairs.clear()
        needed_i, needed_j = np.unique(i), np.unique(j)
        l2 = self._plan.metric == "l2"
        threshold = np.float32(self._plan.threshold)
        with self._vectors(first, needed_i) as U, self._vectors(second, needed_j) as V:
            for start in range(0, len(i), _PAIRS):
                a, b = i[start : start + _PAIRS], j[start : start + _PAIRS]
                u, v = U[np.searchsorted(needed_i, a)], V[np.searchsorted(needed_j, b)]
                score = self._score(np.asarray(u), np.asarray(v))
                near = score <= threshold if l2 else score >= threshold
                left_out.pairs += len(a) - int(near.sum())
                if near.any():
                    yield pa.array(a[near]), pa.array(b[near]), score[near]

    @contextmanager
    def _vectors(self, block: CodeBlock, rows: Rows) -> Iterator[NDArray[np.float32]]:
        """The vectors [n, D] of some rows of a block, ascending."""
        shape = (len(rows), self._plan.model.D)
        if 4 * shape[0] * shape[1] <= _IN_MEMORY:
            vectors = np.empty(shape, np.float32)
            self._read(block, rows, vectors)
            yield vectors
            return
        with tempfile.TemporaryDirectory(prefix="raypq-originals-") as folder:
            path = Path(folder, "vectors")
            vectors = np.memmap(path, np.float32, "w+", shape=shape)
            self._read(block, rows, vectors)
            yield vectors

    def _read(self, block: CodeBlock, rows: Rows, out: NDArray[np.float32]) -> None:
        plan = self._plan
        assert plan.originals is not None, "a plan with original vectors"
        kind: IdKind = "string" if pa.types.is_string(plan.id_type) else "int64"
        ref = block.row_ref[rows]
        file, row = ref >> ROW_BITS, ref & ((1 << ROW_BITS) - 1)
        for index in np.unique(file):
            shard = plan.originals[index]
            at = np.flatnonzero(file == index)
            at = at[np.argsort(row[at], kind="stable")]
            done = 0
            for numbers, X, ids in read_rows(shard, plan.columns, plan.model, row[at], kind):
                some = at[done : done + len(numbers)]
                own = block.ids.take(pa.array(rows[some])).cast(plan.id_type)
                check_ids(shard, ids, own, numbers)
                out[some] = apply_in_fixed_blocks(X, plan.model.embed)
                done += len(numbers)

    def _score(self, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of pairs of vectors u, v [n, D]: float64 sums, rounded once."""
        a, b = u.astype(np.float64), v.astype(np.float64)
        if self._plan.metric == "l2":
            difference = a - b
            return np.einsum("nd,nd->n", difference, difference).astype(np.float32)
        dot = np.einsum("nd,nd->n", a, b)
        if self._plan.metric == "cosine":
            lengths = np.sqrt(squared_norms(u)) * np.sqrt(squared_norms(v))
            dot = np.divide(dot, lengths, out=np.zeros_like(dot), where=lengths > 0)
        return dot.astype(np.float32)
