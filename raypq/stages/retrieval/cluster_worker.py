"""Passes of k-means over code files, and the clusters of the images of a file."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import kernels
from raypq.data import clusters
from raypq.data.codes import CodeFile
from raypq.data.search_results import in_metric
from raypq.data.storage import Shard, stream
from raypq.data.store import shard_writer
from raypq.data.store.shard_writer import Receipt
from raypq.data.stored import open_stored
from raypq.methods.base import Stats
from raypq.methods.support.code_sample import CodeSample
from raypq.methods.support.kmeans import CodeRows, Floats, assign
from raypq.stages.retrieval.code_blocks import open_codes
from raypq.stages.stores.batch_cache import BatchCache
from raypq.stages.stores.shard_task import ShardTask

_ROWS = 1 << 17  # codes that are assigned at once: tables stream through the cache for each lot


@dataclass(frozen=True, kw_only=True, eq=False)
class ClusterPlan:
    """Settings of a run that all its tasks share.

    Attributes:
        shards: code files. cache_bytes: for codes that a worker keeps in memory.
    """

    store: str
    shards: Sequence[Shard]
    rows: CodeRows
    id_type: pa.DataType
    k: int
    device: str
    cache_bytes: int

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of result files."""
        return {"raypq.model": self.rows.model.fingerprint, "raypq.metric": self.rows.metric}


@dataclass(frozen=True, kw_only=True)
class CodeFiles:
    """Consecutive code files of a plan, as a task: numbers first to last - 1."""

    name: str
    first: int
    last: int


class ClusterWorker:
    """Samples, sums and clusters of code files; keeps codes in memory as far as they fit."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._latest: tuple[Floats, kernels.Tables] | None = None
        self._cache: BatchCache[NDArray[np.uint8]] = BatchCache(
            plan.cache_bytes, lambda batch: batch.nbytes
        )

    def sample(self, task: CodeFiles, size: int, seed: int) -> CodeSample:
        """The sample of the distinct codes of some files."""
        sample = CodeSample.empty(size, self._plan.rows.model.M, seed)
        for B in self._codes(task):
            sample.add(B)
        sample.settle()
        return sample

    def sums(self, task: CodeFiles, centres: Floats) -> Stats:
        """The sums of one pass, of rows assigned to centres [k, D]."""
        plan, tables = self._plan, self._tables(centres)
        sums = plan.rows.no_sums(len(centres))
        for B in _joined(self._codes(task)):
            _, cluster = assign(B, tables, device=plan.device)
            plan.rows.add_to(sums, B, cluster)
        return sums

    def write(self, task: ShardTask, centres: Floats) -> Receipt:
        """Writes the clusters of the images of one file."""
        plan = self._plan
        schema = clusters.schema(plan.id_type, plan.metadata)
        return shard_writer.write_shard(
            plan.store,
            task.shard,
            model=task.model,
            work=task.work,
            schema=schema,
            batches=self._clusters(task.shard, centres, schema),
            options=clusters.WRITE_OPTIONS,
        )

    def count(self, task: ShardTask) -> Stats:
        """``size`` [k] of the clusters in a file that ``write`` wrote, and ``score`` [k], the sums
        of scores; float64."""
        k = self._plan.k
        sums = Stats(sums={"size": np.zeros(k), "score": np.zeros(k)})
        with open_stored(task.shard.uri, "clusters", size=task.shard.size) as file:
            for batch in stream(file, _ROWS, columns=["cluster", "score"]):
                cluster, score = (batch.column(name).to_numpy() for name in ("cluster", "score"))
                sums.sums["size"] += np.bincount(cluster, minlength=k)
                sums.sums["score"] += np.bincount(cluster, score, minlength=k)
        return sums

    def _clusters(
        self, shard: Shard, centres: Floats, schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        plan, tables = self._plan, self._tables(centres)
        for batch in self._open(shard).batches(_ROWS, labels=False):
            score, cluster = assign(batch.B, tables, device=plan.device)
            columns = [
                batch.ids.cast(plan.id_type),
                pa.array(cluster.astype(np.int32)),
                pa.array(in_metric(score, plan.rows.metric)),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _tables(self, centres: Floats) -> kernels.Tables:
        """Tables of the centres of this pass, made once for all threads."""
        with self._lock:
            if self._latest is None or self._latest[0] is not centres:
                self._latest = centres, self._plan.rows.tables(centres)
            return self._latest[1]

    def _codes(self, task: CodeFiles) -> Iterator[NDArray[np.uint8]]:
        for shard in self._plan.shards[task.first : task.last]:
            yield from self._cache.batches(shard.uri, partial(self._read, shard))

    def _read(self, shard: Shard) -> Iterator[NDArray[np.uint8]]:
        yield from self._open(shard).codes(_ROWS)

    def _open(self, shard: Shard) -> CodeFile:
        model = self._plan.rows.model
        return open_codes(shard, {model.fingerprint: model}, self._plan.id_type)


def _joined(batches: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Codes [n, M] in lots of ``_ROWS`` or more, so that small files do not cost a scan each."""
    waiting: list[NDArray[np.uint8]] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _ROWS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)
