"""Encoding from memory: raypq, the projection alone, and FAISS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from raypq import kernels
from raypq.bench import clustered_data, faiss_peer
from raypq.bench.harness import Contender, Goal, Result, rounds
from raypq.data.features import batch_rows
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings
from raypq.methods.support.linear_model import LinearModel

DX, D, M, K = 2048, 1000, 50, 256
_ROWS = 16_384
_PEER_ROWS = 4096
_BATCH = batch_rows(DX)  # as the encode stage reads them


def model(seed: int = 0) -> tuple[LinearModel, np.ndarray]:
    """A PQZSL model of the paper's size with random projection, and features for it."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((_ROWS, DX), dtype=np.float32)
    P = (rng.standard_normal((D, DX)) / np.sqrt(DX)).astype(np.float32)
    settings = PQZSLSettings(M=M, K=K, normalise="none")
    C = clustered_data.quantizer(X[:8192] @ P.T, M, K)
    return PQZSLModel(settings=settings, tensors={"P": P, "C": C}, dx=DX, da=None), X


def run(threads: int) -> Iterator[Result]:
    """2048 → 1000, M = 50, K = 256."""
    coder, X = model()
    contenders = _contenders(coder, X)
    exact, low = coder.encode(X[:_BATCH]), coder.encode(X[:_BATCH], precision="bf16")
    checks: dict[str, object] = {"codes that bf16 changes": float((exact != low).mean())}
    absent: list[str] = []
    if faiss := faiss_peer.faiss_for("FAISS LinearTransform + ProductQuantizer", threads, absent):
        part = X[:_PEER_ROWS]
        encode = _faiss_encoder(faiss, coder)
        contenders.append(
            faiss_peer.contender(
                faiss,
                name="FAISS LinearTransform + PQ",
                run=lambda: encode(part),
                work=len(part),
                checks=checks,
            )
        )
        checks["codes equal to FAISS's"] = float((encode(part) == coder.encode(part)).mean())
    result = Result(
        bench="encode",
        case=f"{DX} → {D}, M={M} K={K}, from memory",
        unit="images/s",
        lines=rounds(contenders),
        checks=checks,
        absent=absent,
    )
    yield result.with_goals(
        [
            Goal(ours="raypq encode", peer="bare projection (torch fp32)", at_least=0.85),
            Goal(ours="raypq encode", peer="FAISS LinearTransform + PQ", at_least=2.3),
        ]
    )
    yield _assignment(coder, X @ coder.tensors["P"].T)


def _contenders(coder: LinearModel, X: np.ndarray) -> list[Contender]:
    """raypq in both precisions, and the projection alone; batch by batch."""
    P, x = torch.from_numpy(coder.tensors["P"]), torch.from_numpy(X)

    def batches() -> Iterator[slice]:
        return (slice(start, start + _BATCH) for start in range(0, len(X), _BATCH))

    return [
        Contender(
            name="raypq encode",
            run=lambda: [coder.encode(X[rows]) for rows in batches()],
            work=len(X),
            ours=True,
        ),
        Contender(
            name="raypq encode, bf16 projection",
            run=lambda: [coder.encode(X[rows], precision="bf16") for rows in batches()],
            work=len(X),
            ours=True,
        ),
        Contender(
            name="bare projection (torch fp32)",
            run=lambda: [x[rows] @ P.T for rows in batches()],
            work=len(X),
        ),
    ]


def _faiss_encoder(faiss: Any, coder: LinearModel) -> Callable[[np.ndarray], np.ndarray]:
    """The model's projection and codebooks in FAISS: features [n, dx] to codes [n, M]."""
    transform = faiss.LinearTransform(DX, D, False)
    faiss.copy_array_to_vector(coder.tensors["P"].ravel(), transform.A)
    transform.is_trained = True
    pq = faiss.ProductQuantizer(D, M, 8)
    faiss.copy_array_to_vector(coder.C.ravel(), pq.centroids)
    return lambda X: pq.compute_codes(transform.apply(X))


def _assignment(coder: LinearModel, U: np.ndarray) -> Result:
    lines = rounds(
        [
            Contender(
                name="raypq assignment",
                run=lambda: kernels.encode(U, coder.C),
                work=len(U),
                ours=True,
            )
        ]
    )
    return Result(bench="encode", case="assignment alone", unit="images/s", lines=lines)
