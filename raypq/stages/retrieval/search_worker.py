"""The worker of a search: scans code shards, merges partial results, writes result files.

Every result but a receipt goes through the output store as a partial answer (``data.answers``), so
the driver holds none of them and a worker that dies costs its own task only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Columns, Metric
from raypq.data import search_results
from raypq.data.codes import CodeFile
from raypq.data.filters import Filter
from raypq.data.search_results import SearchResults
from raypq.data.storage import Shard
from raypq.data.store import shard_writer
from raypq.errors import ModelError
from raypq.methods.base import Model
from raypq.stages.retrieval import rerank
from raypq.stages.retrieval.code_blocks import CodeBlock, blocks_of, topk

_IDS = 1 << 17  # that are looked through at once


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchPlan:
    """What holds for a whole search.

    Attributes:
        models: by fingerprint. id_type: of the stored ids. k: results wanted. depth: rows that the
            codes are asked for, k or the candidates of a rerank. reranked: whether one follows.
    """

    store: str
    models: Mapping[str, Model]
    metric: Metric
    id_type: pa.DataType
    k: int
    depth: int
    reranked: bool
    keep: Filter | None
    device: str
    columns: Columns
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """A group of code shards."""

    shards: tuple[Shard, ...]

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.shards[0].uri


@dataclass(frozen=True, kw_only=True)
class MergeTask:
    """Partial answers to make one of."""

    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.paths[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Some queries of a file, and the partial answers in which theirs stand.

    Attributes:
        ids, asked: of all the queries. start: of the first asked one in the partial answers.
    """

    paths: tuple[str, ...]
    ids: pa.Array
    asked: NDArray[np.bool_]
    start: int


@dataclass(frozen=True, kw_only=True, eq=False)
class WriteTask:
    """The result file of one query file."""

    shard: Shard
    work: str
    query_type: pa.DataType
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.shard.uri


Vectors = Mapping[str, NDArray[np.float32]]  # of the queries of a round [T, D], by fingerprint


class SearchWorker:
    """Does the tasks of a search; keeps the tables of the round it is at."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._of: Vectors | None = None
        self._tables: dict[str, kernels.Tables] = {}

    def scan(self, task: ScanTask, V: Vectors) -> str | None:
        """The best rows of a group for a round of queries; None where it has none."""
        plan = self._plan
        best: SearchResults | None = None
        for block in blocks_of(task.shards, plan.models, plan.id_type, plan.keep):
            if not len(block.B):
                continue
            found = topk(block, self._table(block, V), plan.depth, device=plan.device)
            best = search_results.merge([best, found] if best else [found], plan.depth)
        return None if best is None else self._put(best)

    def _table(self, block: CodeBlock, V: Vectors) -> kernels.Tables:
        if block.fingerprint not in V:
            raise ModelError(
                f"codes of model {block.fingerprint[:12]}",
                expected=f"models {', '.join(sorted(name[:12] for name in V))}",
                found="a file of another one",
            )
        return self._round_tables(V)[block.fingerprint]

    def _round_tables(self, V: Vectors) -> dict[str, kernels.Tables]:
        with self._lock:
            if self._of is not V:
                self._of, self._tables = V, {}
                for name, model in self._plan.models.items():
                    self._tables[name] = model.tables(V[name], None, self._plan.metric)
            return self._tables

    def _put(self, answer: SearchResults) -> str:
        if not self._plan.reranked:  # nobody will ask where the rows stand
            answer = SearchResults(score=answer.score, ids=answer.ids)
        return search_results.write_partial(self._plan.store, answer)

    def find(self, task: ScanTask, ids: pa.Array) -> list[tuple[str, pa.Array, NDArray[np.uint8]]]:
        """Fingerprint, ids and codes of the rows with the ids looked for."""
        found = []
        for block in blocks_of(task.shards, self._plan.models, self._plan.id_type):
            rows = np.flatnonzero(pc.is_in(block.ids, ids).to_numpy(zero_copy_only=False))
            if len(rows):
                some = block.take(rows)
                found.append((some.fingerprint, some.ids, some.B))
        return found

    def listed(self, task: ScanTask) -> NDArray[np.uint8]:
        """Which of the filter's ids the shards have, as bits."""
        keep = self._plan.keep
        assert keep is not None, "only a filter lists ids"
        assert keep.ids is not None, "only a filter that lists ids is looked through"
        has = np.zeros(len(keep.ids), bool)
        for shard in task.shards:
            file = CodeFile.open(shard.uri, size=shard.size)
            for ids in file.ids(_IDS) if file.rows else ():
                place = pc.index_in(keep.ids, value_set=ids.unique())
                has |= place.is_valid().to_numpy(zero_copy_only=False)
        return np.packbits(has)

    def merge(self, task: MergeTask) -> str:
        """Makes one partial answer of several."""
        parts = [search_results.read_partial(self._plan.store, path) for path in task.paths]
        return self._put(search_results.merge(parts, self._plan.depth))

    def rescore(
        self, task: rerank.RescoreTask, V: Vectors
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Exact scores of candidates (``rerank.rescore``)."""
        return rerank.rescore(task, self._plan.store, self._plan.models, self._round_tables(V))

    def write(self, task: WriteTask) -> shard_writer.Receipt:
        """Writes the result file of a query file."""
        plan = self._plan
        schema = search_results.schema(
            query_type=task.query_type, id_type=plan.id_type, metadata=dict(plan.metadata)
        )
        return shard_writer.write_shard(
            plan.store,
            task.shard,
            model=plan.metadata["raypq.model"],
            work=task.work,
            schema=schema,
            batches=self._batches(task.pieces, schema),
            options=search_results.WRITE_OPTIONS,
        )

    def _batches(self, pieces: Sequence[Piece], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        plan = self._plan
        for piece in pieces:
            T = int(piece.asked.sum())
            parts = [SearchResults.empty(T, plan.id_type)]
            for path in piece.paths:
                part = search_results.read_partial(plan.store, path)
                parts.append(part.queries(piece.start, piece.start + T))
            best = search_results.merge(parts, plan.k)
            yield search_results.record_batch(
                schema,
                query_ids=piece.ids,
                asked=piece.asked,
                score=search_results.own_terms(best.score, plan.metric),
                ids=best.ids,
            )
