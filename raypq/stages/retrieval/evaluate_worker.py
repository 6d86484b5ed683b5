"""The worker of retrieval evaluation: full rankings of the store for some queries.

A task is some queries. Their scores for the whole store [t, N] exist in the worker only, which
holds the codes with the rank of their ids. A score and such a rank make one 64-bit key; sorting the
keys as integers merges the shards and breaks ties by id.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Columns, Metric
from raypq.data import search_results
from raypq.data.features import FeatureBatch, ReadOptions, open_features
from raypq.data.ids import IdRule
from raypq.data.search_results import SearchResults
from raypq.data.storage import Shard
from raypq.errors import InputError
from raypq.methods.base import Model
from raypq.metrics.ranking import LEVELS, precision_at_relevant, precision_over_recall
from raypq.stages.retrieval.code_blocks import CodeBlock, by_id, read_block
from raypq.stages.retrieval.query_vectors import apply_in_fixed_blocks

_MAX_KEYS = 1 << 23  # ranked at once; a score, its key and a copy of the key are 20 bytes
_ROW_MASK = np.uint64(0xFFFFFFFF)  # the half of a key that is the row
_ID_ROWS = 1 << 17  # of the store, of which ids are compared at once


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryTask:
    """Some queries: their vectors [t, D] by model, their labels, and their ids as text."""

    name: str
    V: Mapping[str, NDArray[np.float32]]
    labels: pa.StringArray
    ids: pa.StringArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactTask:
    """One feature file, for exact search."""

    shard: Shard

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shard.uri


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    """Figures of t queries.

    Attributes:
        relevant: number of rows with the label [t]. ap: [t], NaN where there are none.
        ap_at, precision_at: [len(at), t].
        over_recall: precision at each level of recall [LEVELS, t], NaN without relevant rows.
        first: ids of the first max(at) rows, query by query.
        in_store: whether the store has the id of the query [t].
    """

    relevant: NDArray[np.int64]
    ap: NDArray[np.float64]
    ap_at: NDArray[np.float64]
    precision_at: NDArray[np.float64]
    over_recall: NDArray[np.float64]
    first: pa.Array
    in_store: NDArray[np.bool_]


class RetrievalWorker:
    """Ranks the whole store for some queries; holds its codes, ids and labels."""

    def __init__(
        self,
        shards: Sequence[Shard],
        id_type: pa.DataType,
        models: Mapping[str, Model],
        metric: Metric,
        at: Sequence[int],
        columns: Columns,
        device: str = "cpu",
    ) -> None:
        self._shards, self._models, self._metric = shards, models, metric
        self._device = device
        self._id_type = id_type
        self._at, self._columns = at, columns
        self._lock = threading.Lock()
        self._store: _Store | None = None

    def rank(self, task: QueryTask) -> Figures:
        """Ranks the whole store for some queries."""
        with self._lock:
            if self._store is None:
                self._store = _Store.read(self._shards, self._models, self._id_type)
        store = self._store
        t, N = len(task.labels), len(store.ids)
        label = pc.index_in(task.labels, value_set=store.names).fill_null(-2).to_numpy()
        relevant, ap = np.zeros(t, np.int64), np.full(t, np.nan)
        ap_at, precision_at = np.full((len(self._at), t), np.nan), np.zeros((len(self._at), t))
        over_recall = np.full((LEVELS, t), np.nan)
        at, depth = np.asarray(self._at), max(self._at)
        first = np.empty((t, depth), np.int64)
        step = max(1, _MAX_KEYS // N)
        for start in range(0, t, step):
            rows = slice(start, min(t, start + step))
            ranking = self._ranking(task, store, rows)
            first[rows] = ranking[:, :depth]
            for q, order in enumerate(ranking, start):
                hits = np.flatnonzero(store.label[order] == label[q])
                relevant[q] = len(hits)
                hits_at = np.searchsorted(hits, at)
                precision_at[:, q] = hits_at / at
                if len(hits):
                    precision = precision_at_relevant(hits)
                    ap[q] = precision.mean()
                    over_recall[:, q] = precision_over_recall(precision)
                    sums = [precision[:n].sum() for n in hits_at]
                    ap_at[:, q] = sums / np.minimum(at, len(hits))
        return Figures(
            relevant=relevant,
            ap=ap,
            ap_at=ap_at,
            precision_at=precision_at,
            over_recall=over_recall,
            first=store.ids.take(pa.array(first.reshape(-1))),
            in_store=store.has(task.ids),
        )

    def _ranking(self, task: QueryTask, store: _Store, rows: slice) -> NDArray[np.int64]:
        """All rows of the store for some queries of a task, best first [t, N]."""
        keys = np.empty((rows.stop - rows.start, len(store.ids)), np.uint64)
        for block, rank in zip(store.blocks, store.ranks, strict=True):
            model = self._models[block.fingerprint]
            tables = model.tables(task.V[block.fingerprint][rows], None, self._metric)
            score = kernels.scores(block.B, tables, device=self._device)
            keys[:, rank] = sort_keys(score, rank)
        keys.sort(axis=1)
        return (keys & _ROW_MASK).astype(np.int64)

    def exact(self, task: ExactTask, X: NDArray[np.float32]) -> SearchResults:
        """The nearest rows of a feature file for queries X [t, dx], uncompressed."""
        model = next(iter(self._models.values()))
        V = apply_in_fixed_blocks(X, model.embed)
        tables = model.tables(V, None, self._metric)
        k = max(self._at)
        text = pa.types.is_string(self._id_type)
        rule = IdRule(kind="string" if text else "int64", origin="the code store", old=text)
        with open_features(
            task.shard,
            self._columns,
            width=model.dx,
            how=ReadOptions(labels=False, rule=rule, backbone=model.backbone),
        ) as reader:
            best = SearchResults.empty(len(V), reader.id_type)
            for batch in reader.batches():
                best = search_results.merge([best, _nearest(model, tables, batch, k)], k)
        return SearchResults(score=best.score, ids=best.ids)


def _nearest(model: Model, tables: kernels.Tables, batch: FeatureBatch, k: int) -> SearchResults:
    """The k nearest rows of a batch for each query, by exact scores; ties by id."""
    order = by_id(batch.ids)
    U = apply_in_fixed_blocks(batch.X[order], model.embed)
    scale, offset = tables.row_terms(kernels.tables.squared_norms(U))
    U64, row = U.astype(np.float64), np.arange(len(U))
    k = min(k, len(U))
    scores, rows = [], []
    step = max(1, _MAX_KEYS // len(U))
    for start in range(0, len(tables.W), step):
        part = slice(start, start + step)
        dot = tables.W[part].astype(np.float64) @ U64.T
        with np.errstate(over="ignore"):  # check_scores raises
            score = (dot * scale + offset + tables.bias[part, None]).astype(np.float32)
        kernels.check_scores(score)
        keys = np.sort(np.partition(sort_keys(score, row), k - 1, axis=1)[:, :k], axis=1)
        rows.append((keys & _ROW_MASK).astype(np.int64))
        scores.append(np.take_along_axis(score, rows[-1], axis=1))
    chosen = order[np.concatenate(rows)]
    ids = batch.ids.take(pa.array(chosen.reshape(-1)))
    return SearchResults(score=np.concatenate(scores), ids=ids)


def sort_keys(score: NDArray[np.float32], row: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Integer keys [t, n] that sort by score, best first, then by row; rows [n] are below 2³²."""
    bits = (score + np.float32(0)).view(np.uint32)  # −0 is 0
    negative = bits >> np.uint32(31) == 1
    falling = np.where(negative, bits, ~(bits | np.uint32(1 << 31)))
    return falling.astype(np.uint64) << np.uint64(32) | row.astype(np.uint64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Store:
    """A whole store; its rows are numbered in the order of their ids.

    Attributes:
        ids: of the rows, ascending.
        label: index of each row's label in ``names``, −1 where it has none.
        blocks, ranks: the codes of each model, and the row numbers of these.
    """

    ids: pa.Array
    label: NDArray[np.int64]
    names: pa.Array
    blocks: list[CodeBlock]
    ranks: list[NDArray[np.int64]]

    @classmethod
    def read(
        cls, shards: Sequence[Shard], models: Mapping[str, Model], id_type: pa.DataType
    ) -> _Store:
        by_model: dict[str, list[CodeBlock]] = {}
        for shard in shards:
            block = read_block(shard, models, id_type, labels=True)
            by_model.setdefault(block.fingerprint, []).append(block)
        blocks = [CodeBlock.join(parts) for parts in by_model.values()]
        ids = pa.concat_arrays([block.ids for block in blocks])
        labels = pa.concat_arrays([block.labels for block in blocks])
        if labels.null_count == len(labels):
            raise InputError("the code store", expected="rows with labels", found="none")
        order = by_id(ids)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        coded = labels.dictionary_encode()
        label = coded.indices.fill_null(-1).to_numpy().astype(np.int64)
        ends = np.cumsum([0, *(len(block.B) for block in blocks)])
        return cls(
            ids=ids.take(pa.array(order)),
            label=label[order],
            names=coded.dictionary,
            blocks=blocks,
            ranks=[rank[low:high] for low, high in pairwise(ends)],
        )

    def has(self, ids: pa.StringArray) -> NDArray[np.bool_]:
        """Which of some ids, as text, rows of the store have."""
        stored = np.zeros(len(ids), bool)
        for start in range(0, len(self.ids), _ID_ROWS):
            part = self.ids.slice(start, _ID_ROWS).cast(pa.string())
            part = part.filter(pc.is_in(part, value_set=ids))
            stored |= pc.is_in(ids, value_set=part).to_numpy(zero_copy_only=False)
        return stored
