"""Retrieval from a store: the whole verb on Ray, from Parquet to a committed result, beside FAISS
searching the same codes in memory.

Ray's workers stand ready, as FAISS's index does; what their start costs is told beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq import api, kernels
from raypq.bench import clustered_data
from raypq.bench.harness import Contender, Goal, Result, processor_seconds, rounds
from raypq.bench.pipeline import Memory, write_codes
from raypq.config import ClusterSettings, SearchJob
from raypq.data import arrays
from raypq.data.storage import join
from raypq.data.store import snapshot
from raypq.execution.executor import Executor, SpmdJob, WorkerPool
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.retrieval import search as stage
from raypq.stages.stores import model_store

W = TypeVar("W")
N, QUERIES, TOP, M, D = 1_000_000, 1024, 100, 16, 128
_TRAIN = 65_536
_GOAL = 10.0
_TURNS = 3  # for processor time, which is told in hundredths of a second


class _KeptWorkers:
    """An executor whose workers, once started, stay for the jobs that follow; all of one kind."""

    def __init__(self, executor: Executor, stack: ExitStack) -> None:
        self.n_workers = executor.n_workers
        self._executor, self._stack = executor, stack
        self._pool: WorkerPool[Any] | None = None

    @property
    def worker_memory(self) -> int:
        return self._executor.worker_memory

    @contextmanager
    def start_workers(
        self, make: Callable[..., W], *args: Any, stage: str, cache: int = 0
    ) -> Iterator[WorkerPool[W]]:
        if self._pool is None:
            started = self._executor.start_workers(make, *args, stage=stage, cache=cache)
            self._pool = self._stack.enter_context(started)
        yield self._pool

    def run_spmd(self, job: SpmdJob) -> None:
        self._executor.run_spmd(job)


def run(threads: int) -> Iterator[Result]:
    """1,024 queries, k = 100, over a million stored codes of M = 16."""
    data = clustered_data.embedded(N=N + QUERIES, T=20_000, D=D, seed=M)
    U, Q = data.U[:N], data.U[N:]
    C = clustered_data.quantizer(U[:_TRAIN], M, 256, rounds=25)
    B = kernels.encode(U, C)
    model = PQModel(settings=PQSettings(M=M, K=256), tensors={"C": C}, dx=D)
    with tempfile.TemporaryDirectory(prefix="raypq-bench-") as folder:
        root = Path(folder)
        write_codes(str(root / "codes"), model, B)
        model_store.keep(str(root / "codes"), model)
        yield _beside_faiss(root, threads, Q, C, B)


def _beside_faiss(
    root: Path, threads: int, Q: NDArray[np.float32], C: NDArray[np.float32], B: NDArray[np.uint8]
) -> Result:
    where = ClusterSettings(cluster="local", workers=threads, threads=1)
    turns = count()

    def job() -> SearchJob:
        """The same work, under a new name: of the same name there would be nothing to do."""
        queries = root / f"queries-{next(turns)}.parquet"
        rows = {"id": np.arange(len(Q)), "feature": arrays.fixed_list(Q)}
        pq.write_table(pa.table(rows), queries)
        return SearchJob(
            codes=str(root / "codes"),
            queries=[str(queries)],
            top_k=TOP,
            output=str(root / "found"),
            where=where,
        )

    work = N * len(Q) / 1e9
    with ExitStack() as stack:
        executor = _KeptWorkers(stack.enter_context(api.open_executor(where)), stack)
        start = time.perf_counter()
        stage.search(job(), executor)
        first = time.perf_counter() - start
        ours = Contender(
            name="raypq search on Ray",
            run=lambda: stage.search(job(), executor),
            work=work,
            ours=True,
        )
        contenders, absent = [ours], []
        try:
            import faiss
        except ImportError:
            absent.append("FAISS IndexPQ (faiss-cpu is not installed)")
        else:
            faiss.omp_set_num_threads(threads)
            index = faiss.IndexPQ(D, M, 8)
            faiss.copy_array_to_vector(C.ravel(), index.pq.centroids)
            index.is_trained = True
            index.add_sa_codes(B)
            contenders.append(
                Contender(name="FAISS IndexPQ", run=lambda: index.search(Q, TOP), work=work)
            )
        lines = rounds(contenders)
        spent = [_processor(contender.run) for contender in contenders]
        with Memory() as memory:  # it looks at all processes, which takes time
            stage.search(job(), executor)
    checks: dict[str, Any] = {
        "seconds, workers standing": lines[0].seconds,
        "seconds, with the start of the workers": first,
        "peak memory of a worker, GB": memory.peak / 1e9,
    }
    if not absent:
        checks["processor time, FAISS over raypq"] = spent[1] / spent[0]
        _, ids = index.search(Q, TOP)
        checks["ids equal to FAISS's"] = float((_ids(str(root / "found")) == ids).mean())
    result = Result(
        bench="retrieval",
        case=f"search N={N:,} stored codes M={M}, {QUERIES} queries, k={TOP}, {threads} workers",
        unit="G distances/s",
        lines=lines,
        checks=checks,
        absent=absent,
    )
    return result.judge([Goal(ours=ours.name, peer="FAISS IndexPQ", at_least=_GOAL)])


def _processor(work: Callable[[], object]) -> float:
    """Processor seconds of one turn, Ray's processes included; the mean of some."""
    start = processor_seconds()
    for _ in range(_TURNS):
        work()
    return (processor_seconds() - start) / _TURNS


def _ids(store: str) -> NDArray[np.int64]:
    """The ids [Q, k] of the latest results."""
    (receipt,) = snapshot.read(store).shards
    column = pq.read_table(join(store, receipt.path)).column("id").combine_chunks()
    return column.flatten().to_numpy().reshape(QUERIES, TOP)
