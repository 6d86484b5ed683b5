"""The worker of a search: scans code shards, merges partial results, writes result files.

Partial results go through files in the output store (``data.search_results``), so the driver holds
none of them and a dead worker costs only its own task.
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

_ID_ROWS = 1 << 17  # of a batch of ids


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchPlan:
    """Settings of a search that all its tasks share.

    Attributes:
        models: by fingerprint. id_type: of the stored ids.
        k: results of each query. depth: rows of each query from the scan: k, or the candidates of
            a rerank.
        reranked: whether a rerank follows.
        row_filter: the stored rows to search; None for all.
    """

    store: str
    models: Mapping[str, Model]
    metric: Metric
    id_type: pa.DataType
    k: int
    depth: int
    reranked: bool
    row_filter: Filter | None
    device: str
    columns: Columns
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """A group of code shards."""

    shards: tuple[Shard, ...]

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shards[0].uri


@dataclass(frozen=True, kw_only=True)
class MergeTask:
    """Partial results to merge."""

    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.paths[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Consecutive queries of a file, and the partial results that have theirs.

    Attributes:
        paths: of the partial results.
        ids: of the queries. valid: which of them were searched for.
        start: position of the first valid one in the partial results.
    """

    paths: tuple[str, ...]
    ids: pa.Array
    valid: NDArray[np.bool_]
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
        """Name for errors and logs."""
        return self.shard.uri


Vectors = Mapping[str, NDArray[np.float32]]  # query vectors [T, D] by model fingerprint


class SearchWorker:
    """Does the tasks of a search; keeps the lookup tables of the current round."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._vectors: Vectors | None = None  # that the tables are of
        self._tables: dict[str, kernels.Tables] = {}

    def scan(self, task: ScanTask, V: Vectors) -> str | None:
        """Writes the best rows of a group of shards as a partial result; returns its path, or None
        where the filter keeps no row."""
        plan = self._plan
        best: SearchResults | None = None
        for block in blocks_of(task.shards, plan.models, plan.id_type, plan.row_filter):
            if not len(block.B):
                continue
            part = topk(block, self._table(block, V), plan.depth, device=plan.device)
            best = search_results.merge([best, part] if best else [part], plan.depth)
        return None if best is None else self._write_partial(best)

    def _table(self, block: CodeBlock, V: Vectors) -> kernels.Tables:
        if block.fingerprint not in V:
            raise ModelError(
                f"codes of model {block.fingerprint[:12]}",
                expected=f"models {', '.join(sorted(name[:12] for name in V))}",
                found="a file of another model",
            )
        return self._round_tables(V)[block.fingerprint]

    def _round_tables(self, V: Vectors) -> dict[str, kernels.Tables]:
        with self._lock:
            if self._vectors is not V:
                self._vectors, self._tables = V, {}
                for name, model in self._plan.models.items():
                    self._tables[name] = model.tables(V[name], None, self._plan.metric)
            return self._tables

    def _write_partial(self, results: SearchResults) -> str:
        if not self._plan.reranked:  # only a rerank needs the positions of rows
            results = SearchResults(score=results.score, ids=results.ids)
        return search_results.write_partial(self._plan.store, results)

    def find(self, task: ScanTask, ids: pa.Array) -> list[tuple[str, pa.Array, NDArray[np.uint8]]]:
        """Fingerprint, ids and codes of the stored rows with these ids."""
        parts = []
        for block in blocks_of(task.shards, self._plan.models, self._plan.id_type):
            rows = np.flatnonzero(pc.is_in(block.ids, ids).to_numpy(zero_copy_only=False))
            if len(rows):
                part = block.take(rows)
                parts.append((part.fingerprint, part.ids, part.B))
        return parts

    def find_filter_ids(self, task: ScanTask) -> NDArray[np.uint8]:
        """Which of the filter's ids the shards have, as bits."""
        row_filter = self._plan.row_filter
        assert row_filter is not None, "called for a filter only"
        assert row_filter.ids is not None, "called for a filter that lists ids only"
        has = np.zeros(len(row_filter.ids), bool)
        for shard in task.shards:
            file = CodeFile.open(shard.uri, size=shard.size)
            for ids in file.ids(_ID_ROWS) if file.rows else ():
                stored = pc.is_in(row_filter.ids, value_set=ids.unique())
                has |= stored.to_numpy(zero_copy_only=False)
        return np.packbits(has)

    def merge(self, task: MergeTask) -> str:
        """Merges partial results; returns the path of the new one."""
        parts = [search_results.read_partial(self._plan.store, path) for path in task.paths]
        return self._write_partial(search_results.merge(parts, self._plan.depth))

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
            T = int(piece.valid.sum())
            parts = [SearchResults.empty(T, plan.id_type)]
            for path in piece.paths:
                part = search_results.read_partial(plan.store, path)
                parts.append(part.queries(piece.start, piece.start + T))
            best = search_results.merge(parts, plan.k)
            yield search_results.record_batch(
                schema,
                query_ids=piece.ids,
                valid=piece.valid,
                score=search_results.in_metric(best.score, plan.metric),
                ids=best.ids,
            )
