"""Retrieval: 1,024 queries over a million codes, against FAISS and further peers at equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.bench import clustered_data, faiss_peer, peers
from raypq.bench.harness import Contender, Goal, Result, rounds

N, QUERIES, TOP = 1_000_000, 1024, 10
_EXACT = 128  # queries for recall and for the check against float ADC
_TRAIN = 65_536  # rows that each quantizer learns from; recall is compared
_SLOW = 128  # queries that the slow peer gets; rates are compared
_GOALS = {16: (30.0, 3.0), 8: (None, 3.0), 50: (None, 1.6)}
_DIMS = {8: 64, 16: 128, 50: 200}


def run(threads: int, peer_python: str | None = None) -> Iterator[Result]:
    """M = 16, 8 and 50 bytes an image; then the peers that have processes of their own.

    Args:
        peer_python: the Python in which those are installed; None: this one.
    """
    for M in (16, 8, 50):
        yield _case(M, threads)
    yield from peers.cases(threads, peer_python)


def _case(M: int, threads: int) -> Result:
    D = _DIMS[M]
    data = clustered_data.embedded(N=N + QUERIES, T=20_000, D=D, seed=M)
    U, Q = data.U[:N], data.U[N:]
    C = clustered_data.quantizer(U[:_TRAIN], M, 256, rounds=25)
    B = kernels.encode(U, C)
    tables = kernels.build_tables(C, Q, None, "l2")
    contenders = [
        Contender(
            name="raypq codes",
            # With the tables of the queries, as FAISS makes its own.
            run=lambda: kernels.topk_per_query(B, kernels.build_tables(C, Q, None, "l2"), TOP),
            work=N * QUERIES / 1e9,
            ours=True,
        )
    ]
    score, rows = kernels.topk_per_query(B, tables, TOP)
    truth = _truth(U, Q[:_EXACT])
    checks: dict[str, Any] = {
        "recall@10 of raypq": peers.recall(rows[:_EXACT], truth),
        "equals float ADC": _equals_adc(B, Q[:8], C, rows, score),
    }
    absent: list[str] = []
    if faiss := faiss_peer.faiss_for("FAISS IndexPQ and IndexPQFastScan", threads, absent):
        contenders += _faiss(faiss, M, D, U, Q, C, B, truth, checks)
    slow, fast = _GOALS[M]
    result = Result(
        bench="search",
        case=f"N={N:,} {QUERIES} queries k={TOP} M={M}",
        unit="G distances/s",
        sizes={"N": N, "D": D, "M": M, "K": 256},
        lines=rounds(contenders),
        checks=checks,
        absent=absent,
    )
    goals = [Goal(ours="raypq codes", peer="FAISS IndexPQFastScan", at_least=fast)]
    if slow:
        goals.append(Goal(ours="raypq codes", peer="FAISS IndexPQ", at_least=slow))
    return result.with_goals(goals)


def _faiss(
    faiss: Any,
    M: int,
    D: int,
    U: NDArray[np.float32],
    Q: NDArray[np.float32],
    C: NDArray[np.float32],
    B: NDArray[np.uint8],
    truth: NDArray[np.int64],
    checks: dict[str, Any],
) -> list[Contender]:
    plain = faiss.IndexPQ(D, M, 8)
    faiss.copy_array_to_vector(C.ravel(), plain.pq.centroids)
    plain.is_trained = True
    faiss.copy_array_to_vector(B.ravel(), plain.codes)
    plain.ntotal = len(B)
    fast = faiss.IndexPQFastScan(D, 2 * M, 4)
    fast.train(U[:_TRAIN])
    fast.add(U)
    _, rows = plain.search(Q[:_EXACT], TOP)
    checks["recall@10 of FAISS IndexPQ"] = peers.recall(rows, truth)
    _, rows = fast.search(Q[:_EXACT], TOP)
    checks["recall@10 of FAISS IndexPQFastScan"] = peers.recall(rows, truth)
    return [
        faiss_peer.contender(
            faiss,
            name="FAISS IndexPQ",
            run=lambda: plain.search(Q[:_SLOW], TOP),
            work=len(B) * _SLOW / 1e9,
            checks=checks,
        ),
        faiss_peer.contender(
            faiss,
            name="FAISS IndexPQFastScan",
            run=lambda: fast.search(Q, TOP),
            work=len(B) * len(Q) / 1e9,
            checks=checks,
        ),
    ]


def _truth(U: NDArray[np.float32], Q: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest 10 of the uncompressed vectors."""
    import torch

    x = torch.from_numpy(U)
    score = torch.from_numpy(Q) @ x.T
    score.mul_(2).sub_((x * x).sum(1))
    return score.topk(TOP).indices.numpy()


def _equals_adc(
    B: NDArray[np.uint8],
    Q: NDArray[np.float32],
    C: NDArray[np.float32],
    rows: NDArray[np.int64],
    score: NDArray[np.float32],
) -> bool:
    from raypq.kernels import reference

    part = 65_536
    tables = kernels.build_tables(C, Q, None, "l2")
    blocks = [
        (found, at + start)
        for start in range(0, len(B), part)
        for found, at in [reference.topk_per_query(B[start : start + part], tables, TOP)]
    ]
    scores = np.concatenate([block[0] for block in blocks], axis=1)
    where = np.concatenate([block[1] for block in blocks], axis=1)
    order = np.lexsort((where, -scores), axis=1)[:, :TOP]
    same_rows = np.take_along_axis(where, order, 1) == rows[: len(Q)]
    return bool(same_rows.all() and (np.take_along_axis(scores, order, 1) == score[: len(Q)]).all())
