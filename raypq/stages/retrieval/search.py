"""Search: the nearest stored images of every query, over a whole code store.

Scan, merge, write: each group of code shards gives the best rows for the queries of a round; a tree
of merges joins these, eight at a time; each query file becomes one result file. Workers do all of
it, exactly and with ties by id, so results depend neither on the shards nor on the workers. Result
files make up a version of a store of kind ``search``: readers see all results or none, and a rerun
does only the query files that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.config import Metric, SearchJob
from raypq.data import search_results
from raypq.data.codes import CodeFile
from raypq.data.filters import Filter
from raypq.data.id_list import IdList, unknown_ids_message
from raypq.data.ids import IdRule
from raypq.data.search_results import SearchResults
from raypq.data.storage import Shard, delete, join
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.data.store.sources import open_sources
from raypq.errors import ConfigError, InputError, ModelError
from raypq.execution.executor import Executor, R, TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Model
from raypq.stages.retrieval import rerank
from raypq.stages.retrieval.code_blocks import groups
from raypq.stages.retrieval.query_rounds import QueryRound, QuerySlice, Reader, round_size
from raypq.stages.retrieval.search_worker import (
    MergeTask,
    Piece,
    ScanTask,
    SearchPlan,
    SearchWorker,
    WriteTask,
)
from raypq.stages.stores.code_store import (
    id_type_of,
    metric_of,
    models_for,
    open_store,
    warn_of_codes_for_classes,
)
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.shard_types import id_rule
from raypq.stages.stores.work_id import search_work

_FAN_IN = 8  # partial results of one merge
_RESCORE_FILES = 8  # feature files of one rescoring task


def search(job: SearchJob, executor: Executor) -> Snapshot:
    """Searches a code store; returns the new version of the result store.

    Raises:
        ConfigError: settings that contradict each other.
        InputError: an empty store, queries of another width, an unknown column in the filter.
        ModelError: a model is missing or does not fit.
        JobError: some code shards or query files could not be read.
    """
    record = RunRecord(job, executor)
    _check(job)
    version = open_store(job.codes, job.version)
    models = models_for(job.codes, version, job.model)
    metric = metric_of(models, job.metric)
    warn_of_codes_for_classes(job.codes, models, reranked=job.rerank is not None)
    filter_ids = None if job.ids is None else IdList.read(job.ids)
    query_ids = None if job.query_ids is None else IdList.read(job.query_ids)
    plan = _plan(job, version, models, metric, filter_ids)
    originals = rerank.sources(version.shards, job.features, job.columns) if job.features else []
    work = search_work(
        plan.metadata["raypq.model"],
        job,
        metric=metric,
        codes=[receipt.sha256 for receipt in version.shards],
        ids=filter_ids.work_digest(plan.id_type) if filter_ids else None,
        query_ids=query_ids.work_digest(plan.id_type) if query_ids else None,
        originals=originals,
    )
    tasks = [
        ShardTask(shard=shard, model=plan.metadata["raypq.model"], work=work)
        for shard in _query_shards(job)
    ]
    run = StoreRun.plan(kind="search", store=job.output, tasks=tasks, on_bad_shard=job.on_bad_shard)
    if finished := run.unchanged_version():
        return finished
    _say_dropped(job, run)
    with (
        executor.start_workers(SearchWorker, plan, stage="search") as pool,
        record.observe(pool),
    ):
        rule = id_rule(run, job.columns) if job.queries is not None else None
        passes = _Passes(job, version, plan, pool, rule, query_ids, originals)

        def on_result(receipt: Receipt) -> Receipt:
            record.finished(receipt.rows)
            return receipt

        def summarise(_: Sequence[Receipt]) -> dict[str, Any]:
            record.end_of_work("search")
            return {
                **_settings(job, version, plan),
                "refused": passes.refused,
                **({"ids_not_stored": passes.unknown} if passes.unknown else {}),
                **({"empty_filter": passes.empty_filter} if passes.empty_filter else {}),
                "run": record.summary(),
            }

        return run.execute(
            passes.results, on_bad_shard=job.on_bad_shard, on_result=on_result, summarise=summarise
        )


def _say_dropped(job: SearchJob, run: StoreRun) -> None:
    if run.latest and (others := run.dropped):
        console.say(
            f"{job.output}: the next version holds the results of these queries only; version "
            f"{run.latest.version} has those of {len(others)} other file(s), such as "
            f"{others[0].source.uri}"
        )


def _settings(job: SearchJob, version: Snapshot, plan: SearchPlan) -> dict[str, Any]:
    """The settings that the version of the results records."""
    return {
        "codes": job.codes,
        "codes_version": version.version,
        "rows": version.rows,
        "models": sorted(plan.models),
        "metric": plan.metric,
        "distance": job.distance,
        "top_k": job.top_k,
        "rerank": job.rerank,
        "filter": job.filter,
    }


def _check(job: SearchJob) -> None:
    if (job.queries is None) == (job.query_ids is None):
        raise ConfigError("give either queries (--queries) or query_ids (--query-ids)")
    if job.query_ids is not None and job.distance != "sdc":
        raise ConfigError(
            "query_ids: stored queries are compressed, so distance must be sdc (--distance sdc); "
            "found adc"
        )
    if (job.rerank is None) != (job.features is None):
        raise ConfigError(
            "rerank and features go together: a rerank reads the original vectors from features"
        )
    if job.rerank is not None and job.rerank < job.top_k:
        raise ConfigError(f"rerank: must be at least top_k = {job.top_k}, found {job.rerank}")
    if job.rerank is not None and job.distance == "sdc":
        raise ConfigError("rerank: needs the queries uncompressed, so distance must be adc")


def _plan(
    job: SearchJob,
    version: Snapshot,
    models: dict[str, Model],
    metric: Metric,
    filter_ids: IdList | None,
) -> SearchPlan:
    id_type = id_type_of(job.codes, version)
    row_filter = Filter.of(job.filter, filter_ids, id_type)
    if row_filter is not None and row_filter.uses_labels and not _has_labels(job.codes, version):
        raise InputError(
            job.codes, expected="a column 'label' to filter by", found="codes without labels"
        )
    metadata = {
        "raypq.model": ",".join(sorted(models)),
        "raypq.metric": metric,
        "raypq.distance": job.distance,
        "raypq.top_k": str(job.top_k),
        "raypq.reranked": str(job.rerank is not None).lower(),
    }
    return SearchPlan(
        store=job.output,
        models=models,
        metric=metric,
        id_type=id_type,
        k=job.top_k,
        depth=job.rerank or job.top_k,
        reranked=job.rerank is not None,
        row_filter=row_filter,
        device=job.where.device,
        columns=job.columns,
        metadata=metadata,
    )


def _has_labels(codes: str, version: Snapshot) -> bool:
    """Whether any code file has labels; usually the first one does."""
    shards = stored_shards(codes, version)
    return any(CodeFile.open(shard.uri, size=shard.size).label for shard in shards)


def _query_shards(job: SearchJob) -> Sequence[Shard]:
    if job.queries is not None:
        return open_sources(job.queries, job.columns).shards
    assert job.query_ids is not None, "checked before"
    return [Shard(index=0, uri=job.query_ids, stem="queries", size=0, modified="")]


class _Passes:
    """The passes of one search over its worker pool, round by round.

    Attributes:
        refused: messages about queries without a result.
        unknown: message about ids of the filter that the store lacks.
        empty_filter: message that no row passes the filter, if so.
    """

    def __init__(
        self,
        job: SearchJob,
        version: Snapshot,
        plan: SearchPlan,
        pool: WorkerPool[SearchWorker],
        rule: IdRule | None,
        query_ids: IdList | None,
        originals: Sequence[Shard],
    ) -> None:
        self._job, self._plan, self._pool = job, plan, pool
        self._rule, self._query_ids = rule, query_ids
        self._shards = stored_shards(job.codes, version)
        rows = [receipt.rows for receipt in version.shards]
        self._groups = groups(self._shards, rows)
        self._scanned_groups = self._groups  # those in which the filter by ids has rows
        self._originals = originals
        self._models = [receipt.model for receipt in version.shards]  # of each shard
        self._size = round_size(plan.depth)
        self.refused: list[str] = []
        self.unknown = self.empty_filter = ""

    def results(self, files: Sequence[ShardTask]) -> Iterator[TaskResult[Receipt]]:
        """One receipt for each query file, when its last query has been searched."""
        pieces: dict[int, list[Piece]] = {}  # of files that are not written yet
        partial: list[str] = []
        if self._job.ids is not None and self._plan.row_filter is not None:
            self._skip_groups_without(self._plan.row_filter.ids)
        for queries in self._rounds(files):
            yield from (TaskResult(task, failure=failure) for task, failure in queries.failures)
            paths = self._search(queries)
            partial += paths
            for part in queries.slices:
                piece = Piece(paths=tuple(paths), ids=part.ids, valid=part.valid, start=part.start)
                pieces.setdefault(part.task, []).append(piece)
            yield from self._write(files, queries, pieces)
            if not pieces:
                for path in partial:
                    delete(join(self._plan.store, path))
                partial = []

    def _skip_groups_without(self, ids: pa.Array) -> None:
        """Scans no groups of shards without any of the ids; warns of ids that no group has."""
        stored = np.zeros(-(-len(ids) // 8), np.uint8)  # bits
        groups_with_ids: list[tuple[Shard, ...]] = []
        tasks = [ScanTask(shards=group) for group in self._groups]
        results = self._pool.map(SearchWorker.find_filter_ids, tasks, ordered=True)
        for group, bits in zip(self._groups, self._pass(results, len(tasks)), strict=True):
            stored |= bits
            if bits.any():
                groups_with_ids.append(group)
        self._scanned_groups = groups_with_ids
        known = np.unpackbits(stored, count=len(ids)).astype(bool)
        unknown = ids.filter(pa.array(~known))
        if len(unknown):
            self.unknown = unknown_ids_message(
                str(self._job.ids), unknown, len(ids), self._job.codes
            )
            console.warn(self.unknown)

    def _rounds(self, files: Sequence[ShardTask]) -> Iterator[QueryRound]:
        if self._query_ids is not None:
            ids = self._query_ids.of_type(self._plan.id_type)
            for start in range(0, len(ids), self._size):
                stop = start + self._size
                yield self._stored(ids[start:stop], last=stop >= len(ids))
            return
        reader = Reader(
            self._plan.models,
            self._job.columns,
            distance=self._job.distance,
            size=self._size,
            rule=self._rule,
        )
        yield from reader.rounds([task.shard for task in files])
        self.refused = reader.refused

    def _stored(self, ids: pa.Array, *, last: bool) -> QueryRound:
        """A round of queries that are stored codes, decoded by the models that made them."""
        codes: dict[Any, tuple[str, bytes]] = {}
        tasks = [ScanTask(shards=group) for group in self._groups]
        results = self._pool.map(SearchWorker.find, tasks, ids, ordered=True)
        for parts in self._pass(results, len(tasks)):
            for fingerprint, part_ids, B in parts:
                for name, row in zip(part_ids.to_pylist(), B, strict=True):
                    code = fingerprint, row.tobytes()
                    # Of a repeated id always the same code, whatever the shards.
                    codes[name] = min(codes.get(name, code), code)
        valid = np.array([name in codes for name in ids.to_pylist()])
        unknown = ids.filter(pa.array(~valid))
        if len(unknown):
            message = unknown_ids_message(
                str(self._job.query_ids), unknown, len(ids), self._job.codes
            )
            console.warn(f"{message}; these queries have no result")
            self.refused.append(message)
        v = [self._decoded(*codes[name]) for name in ids.to_pylist() if name in codes]
        if len({len(vector) for vector in v}) > 1:
            raise ModelError(
                self._job.codes, expected="codes of one common space", found="models of several D"
            )
        return QueryRound(
            V={name: np.array(v, np.float32) for name in self._plan.models} if v else {},
            T=len(v),
            slices=[QuerySlice(task=0, ids=ids, valid=valid, start=0)],
            ends=[(0, ids.type)] if last else [],
        )

    def _decoded(self, fingerprint: str, code: bytes) -> NDArray[np.float32]:
        B = np.frombuffer(code, np.uint8)[None]
        return self._plan.models[fingerprint].code_queries(B)[0]

    def _search(self, queries: QueryRound) -> list[str]:
        """Scans and merges for one round; paths of at most ``_FAN_IN`` partial results."""
        if not queries.T:
            return []
        tasks = [ScanTask(shards=group) for group in self._scanned_groups]
        results = self._pool.map(SearchWorker.scan, tasks, queries.V, ordered=True)
        paths = [path for path in self._pass(results, len(tasks)) if path]
        if not paths and not self.empty_filter and self._plan.row_filter is not None:
            given = [f"filter {self._job.filter!r}"] if self._job.filter else []
            given += [f"ids of {self._job.ids}"] if self._job.ids else []
            self.empty_filter = f"{' and '.join(given)}: no row of {self._job.codes} passes"
            console.warn(f"{self.empty_filter}; no query has a result")
        limit = 1 if self._originals else _FAN_IN
        while len(paths) > limit:
            merges = [
                MergeTask(paths=tuple(paths[start : start + _FAN_IN]))
                for start in range(0, len(paths), _FAN_IN)
            ]
            results = self._pool.map(SearchWorker.merge, merges, ordered=True)
            merged = [path for path in self._pass(results, len(merges)) if path]
            for path in paths:
                delete(join(self._plan.store, path))
            paths = merged
        return [self._rescored(path, queries) for path in paths] if self._originals else paths

    def _rescored(self, path: str, queries: QueryRound) -> str:
        """A partial result with exact scores in place of those of the codes."""
        store = self._plan.store
        files = [
            (index, shard, model)
            for index, (shard, model) in enumerate(zip(self._originals, self._models, strict=True))
        ]
        tasks = [
            rerank.RescoreTask(
                path=path,
                shards=tuple(files[start : start + _RESCORE_FILES]),
                columns=self._job.columns,
            )
            for start in range(0, len(files), _RESCORE_FILES)
        ]
        candidates = search_results.read_partial(store, path)
        score = np.full(candidates.score.shape, -np.inf, np.float32)
        results = self._pool.map(SearchWorker.rescore, tasks, queries.V, ordered=True)
        for flat, value in self._pass(results, len(tasks)):
            score.flat[flat] = value
        delete(join(store, path))
        return search_results.write_partial(store, SearchResults(score=score, ids=candidates.ids))

    def _pass(self, results: Iterator[TaskResult[R]], total: int) -> list[R]:
        """All values in task order; they are small. A failed task fails the search, since results
        from a part of the store would look complete."""
        return list(completed(results, total=total, label="search", unit="groups of code shards"))

    def _write(
        self, files: Sequence[ShardTask], queries: QueryRound, pieces: dict[int, list[Piece]]
    ) -> Iterator[TaskResult[Receipt]]:
        """Writes the result files of the query files that end in a round."""
        for task, _ in queries.failures:
            pieces.pop(task, None)
        tasks = [
            WriteTask(
                shard=files[index].shard,
                work=files[index].work,
                query_type=query_type,
                pieces=tuple(pieces.pop(index, ())),
            )
            for index, query_type in queries.ends
        ]
        results = self._pool.map(SearchWorker.write, tasks, ordered=True)
        receipts = self._pass(results, len(tasks))
        for (index, _), receipt in zip(queries.ends, receipts, strict=True):
            yield TaskResult(index, receipt)
