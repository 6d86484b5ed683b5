"""Evaluate retrieval: how well the ranking of a whole code store agrees with labels, and with exact
search in the uncompressed vectors.

    AP     = mean over the relevant rows of (relevant rows up to it) / (its rank)
    AP@R   = the same sum over the relevant rows among the first R, divided by min(R, relevant rows)
    P@R    = share of relevant rows among the first R
    precision over recall = precision at the rank where recall first reaches 0.05, 0.1, …, 1
    recall@R   = share of the R nearest by exact search among the first R
    1-recall@R = whether the nearest by exact search is among the first R (Jégou et al.)

A row is relevant if it has the query's label. All are means over the queries that have relevant
rows (recall: over all). Ranks are those of ``raypq search``: by the exact float32 score, ties by
id. So the order of rows in the files, which often follows the labels, has no effect.

Every worker holds the whole store, M + 16 bytes a row and its id, and ranks it for some queries
(``evaluate_worker``); the driver holds their figures only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq import console
from raypq.config import RetrievalJob
from raypq.data import search_results
from raypq.data.features import FeatureBatch, ReadOptions, open_features
from raypq.data.search_results import SearchResults
from raypq.data.store.snapshot import Snapshot
from raypq.data.store.sources import open_sources
from raypq.errors import ConfigError, InputError
from raypq.execution.executor import Executor, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Model
from raypq.metrics.ranking import LEVELS
from raypq.stages.retrieval.evaluate_worker import ExactTask, Figures, QueryTask, RetrievalWorker
from raypq.stages.retrieval.query_vectors import report_invalid, vectors
from raypq.stages.stores.code_store import (
    id_type_of,
    metric_of,
    models_for,
    open_store,
    warn_of_codes_for_classes,
)
from raypq.stages.stores.shard_task import stored_shards
from raypq.stages.stores.shard_types import check_label_column

_TASK_QUERIES = 256
_MAX_ROWS = 1 << 32  # of a store: a row is one half of a sort key


@dataclass(kw_only=True, eq=False)
class _Queries:
    """All valid queries with a label: X [n, dx], labels and ids; and counts of the others.

    Attributes:
        refused: messages about queries with NaN or Inf.
    """

    X: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[pa.Array] = field(default_factory=list)
    ids: list[pa.Array] = field(default_factory=list)
    unlabelled: int = 0
    refused: list[str] = field(default_factory=list)

    def add(self, batch: FeatureBatch, uri: str) -> None:
        labels = batch.labels
        if labels is None:
            labels = pa.nulls(len(batch), pa.string())
        labelled = labels.is_valid().to_numpy(zero_copy_only=False)
        valid = np.asarray(np.isfinite(batch.X).all(axis=1))
        self.refused += report_invalid(batch.ids, valid, uri, batch.row)
        self.unlabelled += int((~labelled).sum())
        self.X.append(batch.X[valid & labelled])
        self.labels.append(labels.filter(pa.array(valid & labelled)))
        self.ids.append(batch.ids.filter(pa.array(valid & labelled)).cast(pa.string()))


def evaluate(job: RetrievalJob, executor: Executor) -> dict[str, Any]:
    """Figures of retrieval from a code store, as plain values.

    Raises:
        ConfigError: an R beyond the store, several models where exact search needs one.
        InputError: no labels, an empty store, queries of another width.
        JobError: some files could not be read.
    """
    record = RunRecord(job, executor)
    version = open_store(job.codes, job.version)
    models = models_for(job.codes, version, job.model)
    metric = metric_of(models, job.metric)
    warn_of_codes_for_classes(job.codes, models)
    if job.features is not None and len(models) > 1:
        raise ConfigError("features: exact search needs one embedding, the store has more models")
    at = _depths(job, version)
    queries = _read(job, next(iter(models.values())))
    X = np.concatenate(queries.X)
    shards = stored_shards(job.codes, version)
    id_type = id_type_of(job.codes, version)
    args = (shards, id_type, models, metric, at, job.columns, job.where.device)
    with (
        executor.start_workers(RetrievalWorker, *args, stage="retrieval") as pool,
        record.observe(pool),
    ):
        figures = _rank(pool, list(_tasks(job, models, X, queries)))
        exact = _exact(pool, job, X, at[-1]) if job.features is not None else None
    return {
        "codes": job.codes,
        "version": version.version,
        "rows": version.rows,
        "metric": metric,
        "distance": job.distance,
        "queries": len(X),
        "queries_without_label": queries.unlabelled,
        "queries_in_store": _in_store(job, figures),
        "refused": queries.refused,
        **_means(figures, at),
        **({} if exact is None else _recalls(figures, exact, at)),
        "run": record.summary(),
    }


def _in_store(job: RetrievalJob, figures: Figures) -> int:
    """The number of queries whose ids the store has; warns of them."""
    count = int(figures.in_store.sum())
    if count:
        console.warn(
            f"{job.codes}: {count} of {len(figures.in_store)} queries have ids that the store has; "
            "each finds itself, which makes every figure better than it is. Leave them out of the "
            "queries, or encode a store without them",
            queries=count,
        )
    return count


def _depths(job: RetrievalJob, version: Snapshot) -> tuple[int, ...]:
    if version.rows >= _MAX_ROWS:
        raise ConfigError(f"{job.codes}: a full ranking is of fewer than 2³² rows")
    at = tuple(sorted(set(job.at)))
    if not at:
        raise ConfigError("at: at least one R")
    if at[-1] > version.rows:
        raise ConfigError(f"at: R = {at[-1]} is more than the store's {version.rows} rows")
    return at


def _read(job: RetrievalJob, model: Model) -> _Queries:
    queries = _Queries()
    shards = open_sources(job.queries, job.columns).shards
    check_label_column(shards, job.columns)
    for shard in shards:
        how = ReadOptions(finite=False, backbone=model.backbone)
        with open_features(shard, job.columns, width=model.dx, how=how) as reader:
            for batch in reader.batches():
                queries.add(batch, shard.uri)
    if not sum(len(part) for part in queries.X):
        raise InputError(
            ", ".join(job.queries),
            expected=f"at least one query with a label (column '{job.columns.label}')",
            found=f"{queries.unlabelled} without",
        )
    return queries


def _tasks(
    job: RetrievalJob,
    models: Mapping[str, Model],
    X: NDArray[np.float32],
    queries: _Queries,
) -> Iterator[QueryTask]:
    labels, ids = pa.concat_arrays(queries.labels), pa.concat_arrays(queries.ids)
    V = {name: vectors(model, X, job.distance) for name, model in models.items()}
    for start in range(0, len(labels), _TASK_QUERIES):
        rows = slice(start, start + _TASK_QUERIES)
        yield QueryTask(
            name=f"queries from {start}",
            V={name: v[rows] for name, v in V.items()},
            labels=labels[rows],
            ids=ids[rows],
        )


def _rank(pool: WorkerPool[RetrievalWorker], tasks: Sequence[QueryTask]) -> Figures:
    # In order, since the last bit of float sums depends on it.
    results = pool.map(RetrievalWorker.rank, tasks, ordered=True)
    ordered = list(completed(results, total=len(tasks), label="rank", unit="groups of queries"))
    return Figures(
        relevant=np.concatenate([part.relevant for part in ordered]),
        ap=np.concatenate([part.ap for part in ordered]),
        ap_at=np.concatenate([part.ap_at for part in ordered], axis=1),
        precision_at=np.concatenate([part.precision_at for part in ordered], axis=1),
        over_recall=np.concatenate([part.over_recall for part in ordered], axis=1),
        first=pa.concat_arrays([part.first for part in ordered]),
        in_store=np.concatenate([part.in_store for part in ordered]),
    )


def _exact(
    pool: WorkerPool[RetrievalWorker], job: RetrievalJob, X: NDArray[np.float32], k: int
) -> SearchResults:
    """The k nearest rows of the feature files for each query, uncompressed."""
    shards = open_sources(job.features or [], job.columns).shards
    parts: list[SearchResults] = []
    results = pool.map(RetrievalWorker.exact, [ExactTask(shard=shard) for shard in shards], X)
    for part in completed(results, total=len(shards), label="exact search"):
        parts = [search_results.merge([*parts, part], k)]
    if parts[0].k < k:
        raise InputError(
            ", ".join(job.features or []),
            expected=f"at least {k} rows, the largest R",
            found=str(parts[0].k),
        )
    return parts[0]


def _means(figures: Figures, at: Sequence[int]) -> dict[str, Any]:
    has = figures.relevant > 0
    means: dict[str, Any] = {"queries_without_relevant": int((~has).sum())}
    if not has.any():
        return means
    means["map"] = float(figures.ap[has].mean())
    for row, R in enumerate(at):
        means[f"map@{R}"] = float(figures.ap_at[row, has].mean())
        means[f"precision@{R}"] = float(figures.precision_at[row, has].mean())
    curve = figures.over_recall[:, has].mean(axis=1)
    means["precision_recall"] = [
        [level / LEVELS, float(value)] for level, value in enumerate(curve, 1)
    ]
    return means


def _recalls(figures: Figures, exact: SearchResults, at: Sequence[int]) -> dict[str, Any]:
    if exact.ids.type != figures.first.type:
        raise InputError(
            "features",
            expected=f"ids of the store's type, {figures.first.type}",
            found=str(exact.ids.type),
        )
    T = len(exact.score)
    names = pa.concat_arrays([figures.first, exact.ids])
    numbers = pc.rank(names, tiebreaker="dense").to_numpy().reshape(2 * T, -1)
    first, nearest = numbers[:T], numbers[T:]
    recalls: dict[str, Any] = {}
    for R in at:
        shares = [np.isin(a, b).mean() for a, b in zip(nearest[:, :R], first[:, :R], strict=True)]
        recalls[f"recall@{R}"] = float(np.mean(shares))
        recalls[f"1-recall@{R}"] = float((first[:, :R] == nearest[:, :1]).any(axis=1).mean())
    return recalls
