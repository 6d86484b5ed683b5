"""The nearest stored images of every stored image: the exact graph of k nearest neighbours.

Queries are decoded codes (symmetric distance). Every worker holds the codes of the whole store in
the order of their ids, and does one code file at a time; so an unchanged file of a changed store is
done again, since its neighbours may have changed. Squared distances are found by an index
(``raypq.kernels.neighbors``), where it is the faster; otherwise all pairs are compared, with the
same results. Where all workers are in one process, the index is searched for all images before the
first file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raypq import console, heartbeat, kernels
from raypq.config import Metric, NeighborsJob
from raypq.data import search_results
from raypq.data.search_results import SearchResults
from raypq.data.storage import Shard
from raypq.data.store import shard_writer
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.kernels.join import usable
from raypq.kernels.neighbors import NeighborIndex, bytes_of_all, worthwhile
from raypq.methods.base import Model
from raypq.stages.retrieval.code_blocks import (
    ROW_BITS,
    CodeBlock,
    by_id,
    read_block,
    sample_codes,
    topk,
)
from raypq.stages.retrieval.one_model import images_of_one_model
from raypq.stages.stores.code_store import id_type_of, open_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.work_id import neighbors_work

_QUERIES = 4096  # codes whose tables are scanned at once
_INDEXED_QUERIES = 1 << 17  # codes that an index searches at once
_MOST = 0.6  # of the images: a search for all costs less than one for so many
_SHARE = 0.5  # of a process's memory, for the results of a search for all images
_FEW_ROWS = 20_000  # which are scanned
_SAMPLE_ROWS = 50_000  # codes on which the index is tried


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighborsPlan:
    """Settings of a run that all its tasks share.

    Attributes:
        k: neighbours of each image; fewer in a store that has fewer.
        indexed: whether they are found by an index.
        whole: whether it is searched for all images at once.
        threads_together: threads of a worker's process that wait for the same search.
    """

    store: str
    model: Model
    id_type: pa.DataType
    metric: Metric
    k: int
    device: str
    indexed: bool
    whole: bool = False
    threads_together: int = 1


class NeighborsWorker:
    """Finds the neighbours of the images of one code file at a time."""

    def __init__(self, plan: NeighborsPlan, shards: Sequence[Shard]) -> None:
        self._plan, self._shards = plan, shards
        self._lock = threading.Lock()
        self._store: CodeBlock | None = None
        self._failure: InputError | None = None
        self._index: NeighborIndex | None = None

    def find(self, task: ShardTask) -> Receipt:
        """Writes the neighbours of the images of one file."""
        plan = self._plan
        metadata = {
            "raypq.model": plan.model.fingerprint,
            "raypq.metric": plan.metric,
            "raypq.distance": "sdc",
            "raypq.top_k": str(plan.k),
            "raypq.reranked": "false",
        }
        schema = search_results.schema(
            query_type=plan.id_type, id_type=plan.id_type, metadata=metadata
        )
        return shard_writer.write_shard(
            plan.store,
            task.shard,
            model=plan.model.fingerprint,
            work=task.work,
            schema=schema,
            batches=self._batches(self._read(task.shard), schema),
            options=search_results.WRITE_OPTIONS,
        )

    def _read(self, shard: Shard) -> CodeBlock:
        models = {self._plan.model.fingerprint: self._plan.model}
        return read_block(shard, models, self._plan.id_type)

    def _whole(self) -> CodeBlock:
        """The codes of the store, by id, so that ties by row are ties by id."""
        with self._lock:
            if self._failure is not None:  # a damaged file fails all tasks; it is read once
                raise self._failure
            if self._store is None:
                try:
                    block = CodeBlock.join([self._read(shard) for shard in self._shards])
                except InputError as error:
                    self._failure = error
                    raise
                self._store = block.take(by_id(block.ids))
                if self._plan.indexed:
                    with kernels.native_threads(kernels.threads() * self._plan.threads_together):
                        self._index = self._indexed(self._store)
            return self._store

    def _indexed(self, store: CodeBlock) -> NeighborIndex:
        with heartbeat.phase(f"ordering {len(store.B):,} images by nearness"):
            index = NeighborIndex(store.B, self._plan.model.C)
        if self._plan.whole:
            name = f"comparing {len(store.B):,} images with one another"
            with heartbeat.phase(lambda: f"{name}, {index.searched:.0%}"):
                index.search_all(self._plan.k + 1)
        return index

    def _batches(self, queries: CodeBlock, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        plan, store = self._plan, self._whole()
        step = _QUERIES if self._index is None else _INDEXED_QUERIES
        for start in range(0, len(queries.B), step):
            rows = slice(start, start + step)
            if self._index is None:
                tables = plan.model.tables(plan.model.decode(queries.B[rows]), None, plan.metric)
                found = topk(store, tables, plan.k + 1, device=plan.device)
            else:
                own = rows_of(store, queries.row_ref)[rows]
                found = results(store, *self._index.find(own, plan.k + 1)[:2])
            nearest = without(found, queries.row_ref[rows])
            yield search_results.record_batch(
                schema,
                query_ids=queries.ids[rows],
                valid=np.ones(len(nearest.score), bool),
                score=search_results.in_metric(nearest.score, plan.metric),
                ids=nearest.ids,
            )


def rows_of(store: CodeBlock, row_ref: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows of a store that hold all rows of one file, whose references ascend."""
    rows = np.flatnonzero(store.row_ref >> ROW_BITS == row_ref[0] >> ROW_BITS)
    rows = rows[np.argsort(store.row_ref[rows])]
    assert np.array_equal(store.row_ref[rows], row_ref), "the file is of the store"
    return rows


def results(
    store: CodeBlock, score: np.ndarray[Any, Any], row: np.ndarray[Any, Any]
) -> SearchResults:
    """Scores and rows [T, k] of a store as search results."""
    ids = store.ids.take(pa.array(row.reshape(-1)))
    return SearchResults(score=score, ids=ids, row_ref=store.row_ref[row])


def without(found: SearchResults, own: np.ndarray[Any, Any]) -> SearchResults:
    """Results [T, k + 1] without the row own [T] of each query, or without the last one where that
    is not among them."""
    assert found.row_ref is not None, "results of a block"
    T, width = found.score.shape
    left_out = found.row_ref == own[:, None]
    left_out[~left_out.any(axis=1), -1] = True
    kept = np.flatnonzero(~left_out.reshape(-1))
    return SearchResults(
        score=found.score.reshape(-1)[kept].reshape(T, width - 1),
        ids=found.ids.take(pa.array(kept)),
        row_ref=found.row_ref.reshape(-1)[kept].reshape(T, width - 1),
    )


def neighbors(job: NeighborsJob, executor: Executor) -> Snapshot:
    """Finds the neighbours; returns the new version of the result store, with a file for each code
    file.

    Raises:
        InputError: a store of fewer than two images.
        ModelError: several models, or one whose codes are of classes.
        JobError: some code shards could not be read.
    """
    record = RunRecord(job, executor)
    version = open_store(job.codes, job.version)
    if version.rows < 2:
        raise InputError(
            job.codes, expected="two images or more", found=f"{version.rows}, without a neighbour"
        )
    plan = _plan(job, version)
    model, metric = plan.model, plan.metric
    shards = stored_shards(job.codes, version)
    codes = [receipt.sha256 for receipt in version.shards]
    work = neighbors_work(model.fingerprint, job, metric=metric, codes=codes)
    tasks = [ShardTask(shard=shard, model=model.fingerprint, work=work) for shard in shards]
    run = StoreRun.plan(kind="search", store=job.output, tasks=tasks, on_bad_shard="fail")
    if finished := run.unchanged_version():
        return finished
    plan = replace(
        plan,
        whole=_are_most(run.missing, version) and fits(version.rows, plan.k, executor),
        threads_together=executor.n_workers // executor.processes,
    )

    def summarise(_: Sequence[Receipt]) -> dict[str, Any]:
        record.end_of_work("neighbors")
        return {
            "codes": job.codes,
            "codes_version": version.version,
            "rows": version.rows,
            "models": [model.fingerprint],
            "metric": metric,
            "distance": "sdc",
            "top_k": plan.k,
            "rerank": None,
            "filter": None,
            "refused": [],
            "run": record.summary(),
        }

    def on_result(receipt: Receipt) -> Receipt:
        record.finished(receipt.rows)
        return receipt

    with (
        executor.start_workers(NeighborsWorker, plan, shards, stage="search") as pool,
        record.observe(pool),
    ):
        return run.execute(
            lambda missing: pool.map(NeighborsWorker.find, missing),
            on_bad_shard="fail",
            on_result=on_result,
            summarise=summarise,
        )


def _plan(job: NeighborsJob, version: Snapshot) -> NeighborsPlan:
    model, metric = images_of_one_model(job, version)
    id_type = id_type_of(job.codes, version)
    return NeighborsPlan(
        store=job.output,
        model=model,
        id_type=id_type,
        metric=metric,
        k=min(job.top_k, version.rows - 1),
        device=job.where.device,
        indexed=metric == "l2" and _indexed(job, version, model, id_type),
    )


def fits(rows: int, k: int, executor: Executor) -> bool:
    """Whether the results of a search for all images fit the memory of a process, if all workers
    are in one."""
    memory = executor.worker_memory
    if executor.processes != 1:
        return False
    return not memory or bytes_of_all(rows, k + 1) <= _SHARE * memory


def _are_most(tasks: Sequence[ShardTask], version: Snapshot) -> bool:
    """Whether a search for all images costs less than one for those of these files."""
    wanted = {task.shard.stem for task in tasks}
    rows = sum(receipt.rows for receipt in version.shards if receipt.shard in wanted)
    return rows > _MOST * version.rows


def _indexed(job: NeighborsJob, version: Snapshot, model: Model, id_type: pa.DataType) -> bool:
    """Whether an index of squared distances is faster than a scan. Says if it is not."""
    if version.rows <= _FEW_ROWS or job.where.device != "cpu" or not usable(model.C):
        return False
    shards = stored_shards(job.codes, version)
    rows = [receipt.rows for receipt in version.shards]
    models = {model.fingerprint: model}
    sample = sample_codes(shards, rows, models, id_type, size=_SAMPLE_ROWS)
    if worthwhile(sample, model.C, job.top_k + 1):
        return True
    console.say("neighbours are hardly nearer than other images: all pairs are compared")
    return False
