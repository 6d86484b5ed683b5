"""Search: the nearest stored images of every query, over a whole code store.

Scan, merge, write. Each group of code shards gives the best rows of a round's queries; a tree of
merges joins these, eight at a time; each query file becomes one result file. All of it happens in
the workers, exactly and with ties by id, so the answer depends neither on the shards nor on the
workers. Result files make up a version of a store of kind ``search``, as codes and predictions do:
a reader sees all answers or none, and a rerun does only the query files that are missing.
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
from raypq.data.features import FeatureStore
from raypq.data.filters import Filter
from raypq.data.id_list import IdList, unknown_ids_message
from raypq.data.ids import IdRule
from raypq.data.search_results import SearchResults
from raypq.data.storage import Shard, delete, join
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, ModelError
from raypq.execution.executor import Executor, R, TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Model
from raypq.stages.retrieval import rerank
from raypq.stages.retrieval.code_blocks import groups, id_type_of
from raypq.stages.retrieval.query_rounds import QueryRound, QuerySlice, Reader, round_size
from raypq.stages.retrieval.search_worker import (
    MergeTask,
    Piece,
    ScanTask,
    SearchPlan,
    SearchWorker,
    WriteTask,
)
from raypq.stages.stores.code_store import metric_of, models_for, open_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.shard_types import id_rule
from raypq.stages.stores.work_id import search_work

_FAN = 8  # partial answers that one merge takes
_RESCORED = 8  # feature files of one rescoring task


def search(job: SearchJob, executor: Executor) -> Snapshot:
    """Answers queries from a code store; returns the new version of the result store.

    Raises:
        ConfigError: settings that contradict each other.
        InputError: an empty store, queries of another width, an unknown column in the filter.
        ModelError: a model is missing or does not fit.
        JobError: code shards or query files that could not be read.
    """
    record = RunRecord(job, executor)
    _check(job)
    version = open_store(job.codes, job.version)
    models = models_for(job.codes, version, job.model)
    metric = metric_of(models, job.metric)
    listed = None if job.ids is None else IdList.read(job.ids)
    asked = None if job.query_ids is None else IdList.read(job.query_ids)
    plan = _plan(job, version, models, metric, listed)
    originals = rerank.sources(version.shards, job.features, job.columns) if job.features else []
    work = search_work(
        plan.metadata["raypq.model"],
        job,
        metric=metric,
        codes=[receipt.sha256 for receipt in version.shards],
        ids=listed.work_digest(plan.id_type) if listed else None,
        query_ids=asked.work_digest(plan.id_type) if asked else None,
        originals=originals,
    )
    tasks = [
        ShardTask(shard=shard, model=plan.metadata["raypq.model"], work=work)
        for shard in _query_shards(job)
    ]
    run = StoreRun.plan(kind="search", store=job.output, tasks=tasks, on_bad_shard=job.on_bad_shard)
    if finished := run.finished():
        return finished
    if run.latest and (others := run.dropped):
        console.say(
            f"{job.output}: the next version holds the results of these queries alone; version "
            f"{run.latest.version} has those of {len(others)} other file(s), such as "
            f"{others[0].source.uri}"
        )
    summary = {
        "codes": job.codes,
        "codes_version": version.version,
        "rows": version.rows,
        "models": sorted(models),
        "metric": metric,
        "distance": job.distance,
        "top_k": job.top_k,
        "rerank": job.rerank,
        "filter": job.filter,
    }
    with (
        executor.start_workers(SearchWorker, plan, stage="search") as pool,
        record.observe(pool),
    ):
        rule = id_rule(run, job.columns) if job.queries is not None else None
        rounds = _Rounds(job, version, plan, pool, rule, asked, originals)

        def reduce(receipt: Receipt) -> Receipt:
            record.finished(receipt.rows)
            return receipt

        def summarise(_: Sequence[Receipt]) -> dict[str, Any]:
            record.end_of_work("search")
            unknown = {"ids_not_stored": rounds.unknown} if rounds.unknown else {}
            return {**summary, "refused": rounds.refused, **unknown, "run": record.summary()}

        return run.execute(
            rounds.results, on_bad_shard=job.on_bad_shard, reduce=reduce, summarise=summarise
        )


def _check(job: SearchJob) -> None:
    if (job.queries is None) == (job.query_ids is None):
        raise ConfigError("give queries or query_ids, one of the two")
    if job.query_ids is not None and job.distance != "sdc":
        raise ConfigError(
            "query_ids: stored queries are compressed, so distance must be sdc (--distance sdc); "
            "found adc"
        )
    if (job.rerank is None) != (job.features is None):
        raise ConfigError(
            "rerank and features go together: the vectors are scored again from there"
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
    listed: IdList | None,
) -> SearchPlan:
    id_type = id_type_of(job.codes, version)
    keep = Filter.of(job.filter, listed, id_type)
    if keep is not None and keep.uses_labels and not _has_labels(job.codes, version):
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
        keep=keep,
        device=job.where.device,
        columns=job.columns,
        metadata=metadata,
    )


def _has_labels(codes: str, version: Snapshot) -> bool:
    """Whether any code file has labels; mostly the first one says it."""
    return any(CodeFile.open(one.uri, size=one.size).label for one in stored_shards(codes, version))


def _query_shards(job: SearchJob) -> Sequence[Shard]:
    if job.queries is not None:
        return FeatureStore.open(job.queries, job.columns).shards
    assert job.query_ids is not None, "checked before"
    return [Shard(index=0, uri=job.query_ids, stem="queries", size=0, modified="")]


class _Rounds:
    """The passes of one search over its worker pool, round by round."""

    def __init__(
        self,
        job: SearchJob,
        version: Snapshot,
        plan: SearchPlan,
        pool: WorkerPool[SearchWorker],
        rule: IdRule | None,
        asked: IdList | None,
        originals: Sequence[Shard],
    ) -> None:
        self._job, self._plan, self._pool = job, plan, pool
        self._rule, self._asked = rule, asked
        self._shards = stored_shards(job.codes, version)
        rows = [receipt.rows for receipt in version.shards]
        self._groups = groups(self._shards, rows)
        self._sources = originals
        self._makers = [receipt.model for receipt in version.shards]
        self._size = round_size(plan.depth)
        self.refused: list[str] = []
        self.unknown = ""

    def results(self, files: Sequence[ShardTask]) -> Iterator[TaskResult[Receipt]]:
        """One result for each query file."""
        waiting: dict[int, list[Piece]] = {}
        partial: list[str] = []
        if self._job.ids is not None and self._plan.keep is not None:
            self._keep_groups_with(self._plan.keep.ids)
        for questions in self._questions(files):
            yield from (TaskResult(task, failure=failure) for task, failure in questions.failures)
            paths = self._answer(questions)
            partial += paths
            for segment in questions.segments:
                waiting.setdefault(segment.task, []).append(_piece(segment, paths))
            yield from self._write(files, questions, waiting)
            if not waiting:
                for path in partial:
                    delete(join(self._plan.store, path))
                partial = []

    def _keep_groups_with(self, ids: pa.Array) -> None:
        """Leaves only groups that hold one of the ids to be scanned; names ids that none holds."""
        stored = np.zeros(-(-len(ids) // 8), np.uint8)  # bits
        holding: list[tuple[Shard, ...]] = []
        tasks = [ScanTask(shards=group) for group in self._groups]
        bits = self._pass(self._pool.map(SearchWorker.listed, tasks, ordered=True), len(tasks))
        for group, held in zip(self._groups, bits, strict=True):
            stored |= held
            if held.any():
                holding.append(group)
        self._groups = holding
        known = np.unpackbits(stored, count=len(ids)).astype(bool)
        unknown = ids.filter(pa.array(~known))
        if len(unknown):
            self.unknown = unknown_ids_message(
                str(self._job.ids), unknown, len(ids), self._job.codes
            )
            console.warn(self.unknown)

    def _questions(self, files: Sequence[ShardTask]) -> Iterator[QueryRound]:
        if self._asked is not None:
            ids = self._asked.of_type(self._plan.id_type)
            for at in range(0, len(ids), self._size):
                yield self._stored(ids[at : at + self._size], last=at + self._size >= len(ids))
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
        """A round of stored codes, each decoded by the model that made it."""
        codes: dict[Any, tuple[str, bytes]] = {}
        tasks = [ScanTask(shards=group) for group in self._groups]
        results = self._pool.map(SearchWorker.find, tasks, ids, ordered=True)
        for found in self._pass(results, len(tasks)):
            for fingerprint, held, B in found:
                for name, code in zip(held.to_pylist(), B, strict=True):
                    one = fingerprint, code.tobytes()
                    # Of an id that is there twice always the same one, whatever the shards.
                    codes[name] = min(codes.get(name, one), one)
        asked = np.array([name in codes for name in ids.to_pylist()])
        unknown = ids.filter(pa.array(~asked))
        if len(unknown):
            message = unknown_ids_message(
                str(self._job.query_ids), unknown, len(ids), self._job.codes
            )
            console.warn(f"{message}; these queries have no answer")
            self.refused.append(message)
        wanted = [codes[name] for name in ids.to_pylist() if name in codes]
        v = [self._decoded(fingerprint, code) for fingerprint, code in wanted]
        if len({len(vector) for vector in v}) > 1:
            raise ModelError(
                self._job.codes, expected="codes of one common space", found="models of several D"
            )
        return QueryRound(
            V={name: np.array(v, np.float32) for name in self._plan.models} if v else {},
            T=len(v),
            segments=[QuerySlice(task=0, ids=ids, asked=asked, start=0)],
            ends=[(0, ids.type)] if last else [],
        )

    def _decoded(self, fingerprint: str, code: bytes) -> NDArray[np.float32]:
        B = np.frombuffer(code, np.uint8)[None]
        return self._plan.models[fingerprint].decode(B)[0]

    def _answer(self, questions: QueryRound) -> list[str]:
        """Scans and merges for one round; paths of the partial answers, at most ``_FAN``."""
        if not questions.T:
            return []
        tasks = [ScanTask(shards=group) for group in self._groups]
        results = self._pool.map(SearchWorker.scan, tasks, questions.V, ordered=True)
        paths = [path for path in self._pass(results, len(tasks)) if path]
        most = 1 if self._sources else _FAN
        while len(paths) > most:
            merges = [
                MergeTask(paths=tuple(paths[at : at + _FAN])) for at in range(0, len(paths), _FAN)
            ]
            results = self._pool.map(SearchWorker.merge, merges, ordered=True)
            merged = [path for path in self._pass(results, len(merges)) if path]
            for path in paths:
                delete(join(self._plan.store, path))
            paths = merged
        return self._rescored(paths, questions) if self._sources else paths

    def _rescored(self, paths: list[str], questions: QueryRound) -> list[str]:
        """The one partial answer that there is, with exact scores."""
        store = self._plan.store
        for path in paths:
            files = [
                (index, shard, maker)
                for index, (shard, maker) in enumerate(
                    zip(self._sources, self._makers, strict=True)
                )
            ]
            tasks = [
                rerank.RescoreTask(
                    path=path, shards=tuple(files[at : at + _RESCORED]), columns=self._job.columns
                )
                for at in range(0, len(files), _RESCORED)
            ]
            answer = search_results.read_partial(store, path)
            score = np.full(answer.score.shape, -np.inf, np.float32)
            results = self._pool.map(SearchWorker.rescore, tasks, questions.V, ordered=True)
            for flat, value in self._pass(results, len(tasks)):
                score.flat[flat] = value
            delete(join(store, path))
            return [search_results.write_partial(store, SearchResults(score=score, ids=answer.ids))]
        return []

    def _pass(self, results: Iterator[TaskResult[R]], total: int) -> list[R]:
        """All values in task order; they are small. A failed task fails the search: an answer from
        a part of the store would look like one from all of it."""
        return list(completed(results, total=total, label="search", unit="groups of code shards"))

    def _write(
        self, files: Sequence[ShardTask], questions: QueryRound, waiting: dict[int, list[Piece]]
    ) -> Iterator[TaskResult[Receipt]]:
        for task, _ in questions.failures:
            waiting.pop(task, None)
        tasks = [
            WriteTask(
                shard=files[index].shard,
                work=files[index].work,
                query_type=query_type,
                pieces=tuple(waiting.pop(index, ())),
            )
            for index, query_type in questions.ends
        ]
        results = self._pool.map(SearchWorker.write, tasks, ordered=True)
        receipts = self._pass(results, len(tasks))
        for (index, _), receipt in zip(questions.ends, receipts, strict=True):
            yield TaskResult(index, receipt)


def _piece(segment: QuerySlice, paths: Sequence[str]) -> Piece:
    return Piece(paths=tuple(paths), ids=segment.ids, asked=segment.asked, start=segment.start)
