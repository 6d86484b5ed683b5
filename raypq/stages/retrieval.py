"""Evaluate retrieval: how well the ranking of a whole code store agrees with labels, and with exact
search in the original vectors.

    AP     = mean over the relevant rows of (relevant rows up to it) / (its rank)
    AP@R   = the same sum over the relevant rows among the first R, divided by min(R, relevant rows)
    P@R    = share of relevant rows among the first R
    recall@R   = share of the R nearest by exact search among the first R
    1-recall@R = whether the nearest by exact search is among the first R (Jégou et al.)

A row is relevant if it has the query's label. All are means over the queries that have relevant
rows (recall: over all). Ranks are those of ``raypq search``: by the exact float32 score, ties by
id, so the order of rows in the files, which often follows the labels, says nothing.

A task is some queries; their scores for the whole store [t, N] exist in the worker alone, where the
codes are held in the order of their ids. A score and a row make one 64-bit key, which is sorted as
a number: that is the whole merge.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import Columns, Metric, RetrievalJob
from raypq.data import answers
from raypq.data.answers import Ranked
from raypq.data.features import FeatureStore, open_features
from raypq.data.storage import Shard
from raypq.errors import ConfigError, InputError, ShardFailure
from raypq.methods.base import Model
from raypq.stages.crew import Crew, Gang, settle
from raypq.stages.questions import steady
from raypq.stages.scan import Block, by_id, read_block
from raypq.stages.search import metric_of, models_for, open_store
from raypq.stages.store import stored_shards

_KEYS = 1 << 24  # scores that a task holds at once, 12 bytes each
_MOST = 256  # queries of a task


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryTask:
    """Some queries: their vectors [t, D] by model, and their labels."""

    name: str
    V: Mapping[str, NDArray[np.float32]]
    labels: pa.StringArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactTask:
    """One feature file, for exact search."""

    shard: Shard

    @property
    def name(self) -> str:
        return self.shard.uri


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    """What is known of t queries.

    Attributes:
        relevant: rows with the label [t]. ap: [t]. ap_at, precision_at: [len(at), t].
        first: ids of the first max(at) rows, query by query.
    """

    relevant: NDArray[np.int64]
    ap: NDArray[np.float64]
    ap_at: NDArray[np.float64]
    precision_at: NDArray[np.float64]
    first: pa.Array


class RetrievalWorker:
    """Ranks the whole store for some queries; holds its codes, ids and labels."""

    def __init__(
        self,
        shards: Sequence[Shard],
        models: Mapping[str, Model],
        metric: Metric,
        at: Sequence[int],
        columns: Columns,
    ) -> None:
        self._shards, self._models, self._metric = shards, models, metric
        self._at, self._columns = at, columns
        self._lock = threading.Lock()
        self._store: _Held | None = None

    def __call__(self, task: Any, shared: NDArray[np.float32] | None) -> Any:
        if isinstance(task, ExactTask):
            assert shared is not None, "exact search needs the queries"
            return self._exact(task, shared)
        with self._lock:
            if self._store is None:
                self._store = _Held.read(self._shards)
        return self._rank(task, self._store)

    def _rank(self, task: QueryTask, held: _Held) -> Figures:
        t, N = len(task.labels), len(held.ids)
        label = pc.index_in(task.labels, value_set=held.names).fill_null(-2).to_numpy()
        relevant, ap = np.zeros(t, np.int64), np.full(t, np.nan)
        ap_at, precision_at = np.full((len(self._at), t), np.nan), np.zeros((len(self._at), t))
        most = min(max(self._at), N)
        first = np.empty((t, most), np.int64)
        step = max(1, _KEYS // N)
        for start in range(0, t, step):
            rows = slice(start, min(t, start + step))
            ranked = self._order(task, held, rows)
            first[rows] = ranked[:, :most]
            for q, order in enumerate(ranked, start):
                found = np.flatnonzero(held.label[order] == label[q])
                relevant[q] = len(found)
                precision_at[:, q] = np.searchsorted(found, self._at) / np.asarray(self._at)
                if len(found):
                    ap[q], ap_at[:, q] = average_precision(found, self._at)
        return Figures(
            relevant=relevant,
            ap=ap,
            ap_at=ap_at,
            precision_at=precision_at,
            first=held.ids.take(pa.array(first.reshape(-1))),
        )

    def _order(self, task: QueryTask, held: _Held, rows: slice) -> NDArray[np.int64]:
        """All rows of the store, best first [t, N]."""
        keys = np.empty((rows.stop - rows.start, len(held.ids)), np.uint64)
        for block, place in zip(held.blocks, held.places, strict=True):
            model = self._models[block.fingerprint]
            tables = model.tables(task.V[block.fingerprint][rows], None, self._metric)
            keys[:, place] = sort_keys(kernels.scores(block.B, tables), place)
        keys.sort(axis=1)
        return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def _exact(self, task: ExactTask, X: NDArray[np.float32]) -> Ranked:
        """The nearest rows of a feature file, uncompressed."""
        model = next(iter(self._models.values()))
        V = steady(X, model.queries)
        tables = model.tables(V, None, self._metric)
        best: Ranked | None = None
        with open_features(task.shard, self._columns, width=model.dx, labels=False) as reader:
            for batch in reader.batches():
                U = steady(batch.X, model.embed)
                score = _scores(U, tables)
                found = Ranked(score=score, ids=pa.concat_arrays([batch.ids] * len(V)))
                best = answers.merge([best, found] if best else [found], max(self._at))
            return best or Ranked.empty(len(V), reader.id_type)


def _scores(U: NDArray[np.float32], tables: kernels.Tables) -> NDArray[np.float32]:
    """Scores [T, n] of vectors that were not compressed."""
    scale, offset = tables.row_terms(kernels.tables.squared_norms(U))
    dot = tables.W.astype(np.float64) @ U.astype(np.float64).T
    return ((dot * scale + offset) + tables.bias[:, None]).astype(np.float32)


def sort_keys(score: NDArray[np.float32], row: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys [t, n] that sort as (score, best first; row) does; rows [n] are below 2³²."""
    bits = (score + np.float32(0)).view(np.uint32)  # −0 is 0
    negative = bits >> np.uint32(31) == 1
    falling = np.where(negative, bits, ~(bits | np.uint32(1 << 31)))
    return falling.astype(np.uint64) << np.uint64(32) | row.astype(np.uint64)


def average_precision(
    found: NDArray[np.int64], at: Sequence[int]
) -> tuple[float, NDArray[np.float64]]:
    """AP and AP@R from the ranks (from 0, ascending) of the relevant rows."""
    precision = np.arange(1, len(found) + 1) / (found + 1)
    inside = [precision[: np.searchsorted(found, R)].sum() / min(R, len(found)) for R in at]
    return float(precision.mean()), np.array(inside)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Held:
    """A whole store in the order of its ids.

    Attributes:
        label: number of each row's label among ``names``, −1 where it has none.
        blocks, places: the rows of each model, and where they stand in that order.
    """

    ids: pa.Array
    label: NDArray[np.int64]
    names: pa.Array
    blocks: list[Block]
    places: list[NDArray[np.int64]]

    @classmethod
    def read(cls, shards: Sequence[Shard]) -> _Held:
        held: dict[str, list[Block]] = {}
        for shard in shards:
            block = read_block(shard, labels=True)
            if block.labels is None:
                raise InputError(shard.uri, expected="a column 'label'", found="codes without one")
            held.setdefault(block.fingerprint, []).append(block)
        blocks = [Block.join(parts) for parts in held.values()]
        ids = pa.concat_arrays([block.ids for block in blocks])
        labels = pa.concat_arrays([block.labels for block in blocks])
        order = by_id(ids)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        coded = labels.dictionary_encode()
        label = coded.indices.fill_null(-1).to_numpy().astype(np.int64)
        ends = np.cumsum([0, *(len(block.B) for block in blocks)])
        return cls(
            ids=ids.take(pa.array(order)),
            label=label[order],
            names=coded.dictionary,
            blocks=blocks,
            places=[place[low:high] for low, high in pairwise(ends)],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Queries:
    X: NDArray[np.float32]
    labels: pa.StringArray


def evaluate(job: RetrievalJob, crew: Crew) -> dict[str, Any]:
    """Figures of a code store as plain values.

    Raises:
        InputError: no labels, an empty store, queries of another width.
        JobError: files that could not be read.
    """
    version = open_store(job.codes, job.version)
    models = models_for(job.codes, version, job.model)
    metric = metric_of(models, job.metric)
    if job.features is not None and len(models) > 1:
        raise ConfigError(
            "features: exact search needs one embedding, the store has several models"
        )
    asked = _read(job, next(iter(models.values())).dx)
    tasks = list(_tasks(job, models, asked))
    at = tuple(sorted({R for R in job.at if version.rows >= R}))
    if not at:
        raise ConfigError(f"at: every R is larger than the store, which has {version.rows} rows")
    shards = stored_shards(job.codes, version)
    with crew.hire(RetrievalWorker, shards, models, metric, at, job.columns) as gang:
        figures = _run(gang, tasks)
        exact = _run_exact(gang, job, asked, max(at)) if job.features is not None else None
    return {
        "codes": job.codes,
        "version": version.version,
        "rows": version.rows,
        "metric": metric,
        "distance": job.distance,
        "queries": len(asked.labels),
        **_means(figures, at),
        **({} if exact is None else _recalls(figures, exact, at)),
    }


def _read(job: RetrievalJob, width: int) -> _Queries:
    X: list[NDArray[np.float32]] = []
    labels: list[pa.Array] = []
    for shard in FeatureStore.open(job.queries, job.columns).shards:
        with open_features(shard, job.columns, width=width, finite=False) as reader:
            if not reader.label:
                raise InputError(
                    shard.uri, expected=f"a column '{job.columns.label}'", found="no labels"
                )
            for batch in reader.batches():
                assert batch.labels is not None, "the reader has the column"
                labelled = batch.labels.is_valid().to_numpy(zero_copy_only=False)
                fit = np.asarray(np.isfinite(batch.X).all(axis=1))
                for bad in np.flatnonzero(~fit):
                    name = batch.ids[int(bad)].as_py()
                    console.warn(
                        f"{shard.uri}, row {batch.row + bad} (id {name!r}): NaN or Inf; this "
                        "query is left out"
                    )
                X.append(batch.X[fit & labelled])
                labels.append(batch.labels.filter(pa.array(fit & labelled)))
    if not sum(len(part) for part in X):
        raise InputError(job.queries[0], expected="at least one query with a label", found="none")
    return _Queries(X=np.concatenate(X), labels=pa.concat_arrays(labels))


def _tasks(job: RetrievalJob, models: Mapping[str, Model], asked: _Queries) -> Iterator[QueryTask]:
    V = {}
    for name, model in models.items():
        compressed = job.distance == "sdc"
        V[name] = (
            model.decode(steady(asked.X, model.encode))
            if compressed
            else steady(asked.X, model.queries)
        )
    for start in range(0, len(asked.labels), _MOST):
        rows = slice(start, start + _MOST)
        yield QueryTask(
            name=f"queries {start}…{min(rows.stop, len(asked.labels)) - 1}",
            V={name: v[rows] for name, v in V.items()},
            labels=asked.labels[rows],
        )


def _run(gang: Gang, tasks: Sequence[QueryTask]) -> Figures:
    parts: dict[int, Figures] = {}
    failures: list[ShardFailure] = []
    with console.progress(len(tasks), "rank", unit="tasks") as progress:
        for outcome in gang.map(tasks):
            if outcome.failure:
                failures.append(outcome.failure)
                continue
            parts[outcome.index] = outcome.result
            progress.done(len(outcome.result.ap))
    settle(failures, len(parts), "fail")
    ordered = [parts[index] for index in sorted(parts)]  # float sums: the order fixes the last bit
    return Figures(
        relevant=np.concatenate([part.relevant for part in ordered]),
        ap=np.concatenate([part.ap for part in ordered]),
        ap_at=np.concatenate([part.ap_at for part in ordered], axis=1),
        precision_at=np.concatenate([part.precision_at for part in ordered], axis=1),
        first=pa.concat_arrays([part.first for part in ordered]),
    )


def _run_exact(gang: Gang, job: RetrievalJob, asked: _Queries, k: int) -> Ranked:
    assert job.features is not None, "checked by the caller"
    tasks = [
        ExactTask(shard=shard) for shard in FeatureStore.open(job.features, job.columns).shards
    ]
    best: Ranked | None = None
    failures: list[ShardFailure] = []
    for outcome in gang.map(tasks, asked.X):
        if outcome.failure:
            failures.append(outcome.failure)
        else:
            best = answers.merge([best, outcome.result] if best else [outcome.result], k)
    settle(failures, len(tasks) - len(failures), "fail")
    assert best is not None, "a store has at least one file"
    return best


def _means(figures: Figures, at: Sequence[int]) -> dict[str, Any]:
    has = figures.relevant > 0
    found: dict[str, Any] = {"queries_without_relevant": int((~has).sum())}
    if not has.any():
        return found
    found["map"] = float(figures.ap[has].mean())
    for row, R in enumerate(at):
        found[f"map@{R}"] = float(figures.ap_at[row, has].mean())
        found[f"precision@{R}"] = float(figures.precision_at[row, has].mean())
    return found


def _recalls(figures: Figures, exact: Ranked, at: Sequence[int]) -> dict[str, Any]:
    T = len(exact.score)
    if exact.k < max(at):
        raise InputError("features", expected=f"at least {max(at)} rows", found=f"{exact.k}")
    names = pa.concat_arrays([figures.first, exact.ids.cast(figures.first.type)])
    number = pc.rank(names, tiebreaker="dense").to_numpy().reshape(2 * T, -1)
    first, nearest = number[:T], number[T:]
    found: dict[str, Any] = {}
    for R in at:
        both = [np.isin(a, b).mean() for a, b in zip(nearest[:, :R], first[:, :R], strict=True)]
        found[f"recall@{R}"] = float(np.mean(both))
        found[f"1-recall@{R}"] = float((first[:, :R] == nearest[:, :1]).any(axis=1).mean())
    return found
