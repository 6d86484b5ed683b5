"""Classification against 21,841 classes: codes, and the dense products that they replace."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import kernels
from raypq.bench import clustered_data
from raypq.bench.harness import Contender, Goal, Result, faiss_for, rounds

T, D, TOP = 21_841, 1000, 10
_CODES = {50: 131_072, 10: 262_144}
_DENSE = 1024
_BLOCK = 512  # rows of a dense product, whose scores then stay in the cache
_CHECK = 256


def run(threads: int) -> Iterator[Result]:
    """The three rows of the goals: M = 50 and M = 10 at K = 256."""
    data = clustered_data.embedded(N=max(_CODES.values()), T=T, D=D)
    for M, least in ((50, 40.0), (10, 150.0)):
        yield _case(data, M, least, threads)


def _case(data: clustered_data.Embedded, M: int, least: float, threads: int) -> Result:
    U = data.U[: _CODES[M]]
    C, B = clustered_data.quantized(U, M)
    tables = kernels.build_tables(C, data.V, None, "cosine")
    dense = torch.from_numpy(U[:_DENSE])
    W = torch.from_numpy(tables.W)
    half = W.bfloat16()
    contenders = [
        Contender(
            name="raypq codes",
            run=lambda: kernels.topk_per_code(B, tables, TOP),
            work=len(B),
            ours=True,
        ),
        Contender(name="torch fp32", run=lambda: _dense(dense, W), work=_DENSE),
        Contender(name="torch bf16", run=lambda: _dense(dense.bfloat16(), half), work=_DENSE),
    ]
    absent: list[str] = []
    if faiss := faiss_for("FAISS IndexFlatIP", threads, absent):
        index = faiss.IndexFlatIP(D)
        index.add(tables.W)
        contenders.append(
            Contender(
                name="FAISS IndexFlatIP",
                run=lambda: index.search(U[:_DENSE], TOP),
                work=_DENSE,
            )
        )
    result = Result(
        bench="classify",
        case=f"T={T:,} D={D} k={TOP} M={M} K=256",
        unit="images/s",
        sizes={"T": T, "D": D, "M": M, "K": 256},
        lines=rounds(contenders),
        checks=_checks(B, U, tables),
        absent=absent,
    )
    goals = [Goal(ours="raypq codes", peer="torch fp32", at_least=least)]
    if M == 50:
        best = max(
            (line for line in result.lines if not line.ours), key=lambda line: line.rate
        ).name
        goals.append(Goal(ours="raypq codes", peer=best, at_least=10.0))
    return result.with_goals(goals)


def _dense(x: torch.Tensor, W: torch.Tensor) -> None:
    for start in range(0, len(x), _BLOCK):
        (x[start : start + _BLOCK] @ W.T).topk(TOP)


def _checks(
    B: NDArray[np.uint8], U: NDArray[np.float32], tables: kernels.Tables
) -> dict[str, object]:
    """The scan equals float ADC exactly; and how near that is to the uncompressed answer."""
    from raypq.kernels import reference

    score, classes = kernels.topk_per_code(B[:_CHECK], tables, TOP)
    exact_score, exact = reference.topk_per_code(B[:_CHECK], tables, TOP)
    _, dense = kernels.topk_per_vector(U[:_CHECK], tables, TOP)
    return {
        "equals float ADC": bool((classes == exact).all() and (score == exact_score).all()),
        "top-1 as uncompressed": float((classes[:, 0] == dense[:, 0]).mean()),
    }
