"""Retrieval from a store: ``raypq search`` on Ray, from Parquet to a committed result, and FAISS
searching the same codes in memory.

Ray's workers run already, as FAISS's index is built already; the cost of their start is a check.
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
from raypq.bench import clustered_data, faiss_peer
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
_OURS = "raypq search on Ray"
_TURNS = 3  # for processor time, whose unit is a hundredth of a second


class _KeptWorkers:
    """An executor whose workers, once started, stay for the jobs that follow; all of one kind."""

    def __init__(self, executor: Executor, stack: ExitStack) -> None:
        self.n_workers, self.processes = executor.n_workers, executor.processes
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
        model_store.save(str(root / "codes"), model)
        yield _compare(root, threads, Q, C, B)


def _compare(
    root: Path, threads: int, Q: NDArray[np.float32], C: NDArray[np.float32], B: NDArray[np.uint8]
) -> Result:
    """``raypq search`` on Ray and FAISS over the same codes [N, M], for queries Q [n, D]."""
    where = ClusterSettings(cluster="local", workers=threads, threads=1)
    jobs = _search_jobs(root, Q, where)
    absent: list[str] = []
    faiss = faiss_peer.faiss_for("FAISS IndexPQ", threads, absent)
    index = _faiss_index(faiss, C, B) if faiss else None
    with ExitStack() as stack:
        executor = _KeptWorkers(stack.enter_context(api.open_executor(where)), stack)
        start = time.perf_counter()
        stage.search(next(jobs), executor)
        first = time.perf_counter() - start
        checks: dict[str, Any] = {}
        contenders = _contenders(
            lambda: stage.search(next(jobs), executor), faiss, index, Q, checks
        )
        lines = rounds(contenders)
        spent = [_processor(contender.run) for contender in contenders]
        with Memory() as memory:  # it looks at all processes, which takes time
            stage.search(next(jobs), executor)
    checks |= {
        "seconds, workers standing": lines[0].seconds,
        "seconds, with the start of the workers": first,
        "peak memory of a worker, GB": memory.peak / 1e9,
    }
    if index is not None:
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
    return result.with_goals([Goal(ours=_OURS, peer="FAISS IndexPQ", at_least=_GOAL)])


def _search_jobs(root: Path, Q: NDArray[np.float32], where: ClusterSettings) -> Iterator[SearchJob]:
    """The same search again and again, each with a query file of its own name: of the same name,
    the results of the run before would be kept."""
    for number in count():
        queries = root / f"queries-{number}.parquet"
        rows = {"id": np.arange(len(Q)), "feature": arrays.fixed_list(Q)}
        pq.write_table(pa.table(rows), queries)
        yield SearchJob(
            codes=str(root / "codes"),
            queries=[str(queries)],
            top_k=TOP,
            output=str(root / "found"),
            where=where,
        )


def _faiss_index(faiss: Any, C: NDArray[np.float32], B: NDArray[np.uint8]) -> Any:
    """An ``IndexPQ`` with these codebooks and codes."""
    index = faiss.IndexPQ(D, M, 8)
    faiss.copy_array_to_vector(C.ravel(), index.pq.centroids)
    index.is_trained = True
    index.add_sa_codes(B)
    return index


def _contenders(
    search: Callable[[], object], faiss: Any, index: Any, Q: NDArray[np.float32],
    checks: dict[str, Any],
) -> list[Contender]:  # fmt: skip
    work = N * len(Q) / 1e9
    contenders = [Contender(name=_OURS, run=search, work=work, ours=True)]
    if index is not None:
        contenders.append(
            faiss_peer.contender(
                faiss,
                name="FAISS IndexPQ",
                run=lambda: index.search(Q, TOP),
                work=work,
                checks=checks,
            )
        )
    return contenders


def _processor(work: Callable[[], object]) -> float:
    """Mean processor seconds of a turn, Ray's processes included."""
    start = processor_seconds()
    for _ in range(_TURNS):
        work()
    return (processor_seconds() - start) / _TURNS


def _ids(store: str) -> NDArray[np.int64]:
    """The ids [Q, k] of the latest results."""
    (receipt,) = snapshot.read(store).shards
    column = pq.read_table(join(store, receipt.path)).column("id").combine_chunks()
    return column.flatten().to_numpy().reshape(QUERIES, TOP)
