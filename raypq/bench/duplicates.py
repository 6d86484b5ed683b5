"""Near-duplicates: the join of codes against a scan of all pairs, and against FAISS over cells; and
``raypq deduplicate`` as a whole, the first time and on the next night."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import api, kernels
from raypq.bench import clustered_data, faiss_peer
from raypq.bench.harness import Contender, Goal, Line, Result, rounds
from raypq.bench.pipeline import write_codes
from raypq.config import ClusterSettings, DeduplicateJob
from raypq.kernels.join import CodeJoin, choose
from raypq.kernels.sdc import SymmetricTables
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.stores import model_store

Codes = NDArray[np.uint8]

SIZES = (100_000, 1_000_000, 10_000_000)
_M, _D, _THRESHOLD = 16, 128, 0.1
_BLOCK = 100_000  # vectors made at a time
_COPIES, _DISTURBED = 0.3, 0.05  # share of copies, and their squared distance
_SAMPLE = 400_000
_SCANNED = 50_000  # rows whose pairs are scanned, and searched by FAISS; rates are compared
_CELLS, _PROBES = 256, 8
_QUERIES = 512
_GROWTH = 1.4
_NEW = 0.01  # of the images are new on the next night


def run(threads: int) -> Iterator[Result]:
    """Three sizes, each ten times the one before; how the time grows is a check of the last. Then
    the command on the last, and on a night with some more images."""
    C, B = _codes(int(max(SIZES) * (1 + _NEW)))
    seconds: list[float] = []
    for N in SIZES:
        result = _case(C, B[:N], threads)
        seconds.append(result.lines[0].seconds)
        if SIZES[-1] == N:
            growth = math.log10(seconds[-1] / seconds[0]) / math.log10(N / SIZES[0])
            result.checks["growth"] = f"N^{growth:.2f}"
            result.checks["growth below N^1.4"] = growth < _GROWTH
        yield result
    yield _commands(C, B[: max(SIZES)], B[max(SIZES) :], threads)


def _codes(N: int) -> tuple[NDArray[np.float32], Codes]:
    """Codebooks, and codes of unit vectors around centres, of which 30% are disturbed copies."""
    rng = np.random.default_rng(0)
    decay = np.exp(-np.linspace(0.0, 8.0, _D, dtype=np.float32))  # few directions matter
    centres = decay * rng.standard_normal((2000, _D), dtype=np.float32)
    rotation = np.linalg.qr(rng.standard_normal((_D, _D)))[0].astype(np.float32)

    def block(n: int) -> NDArray[np.float32]:
        own = np.float32(0.5) * decay * rng.standard_normal((n, _D), dtype=np.float32)
        x = _unit(centres[rng.integers(len(centres), size=n)] + own)
        copies = np.flatnonzero(rng.random(n) < _COPIES)
        noise = _unit(rng.standard_normal((len(copies), _D), dtype=np.float32))
        x[copies] = x[rng.integers(n, size=len(copies))] + np.float32(_DISTURBED**0.5) * noise
        return np.asarray(_unit(x) @ rotation)

    C = clustered_data.quantizer(block(_BLOCK)[:65_536], _M, 256, rounds=10)
    B = np.empty((N, _M), np.uint8)
    for start in range(0, N, _BLOCK):
        B[start : start + _BLOCK] = kernels.encode(block(min(_BLOCK, N - start)), C)
    return C, B


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def _case(C: NDArray[np.float32], B: Codes, threads: int) -> Result:
    N, n = len(B), min(len(B), _SCANNED)
    pairs = _joined(C, B)
    small = B[:n]
    truth = _scanned(C, small)
    checks: dict[str, Any] = {
        "pairs": len(pairs),
        "recall of the join": _recall(_joined(C, small), truth),
    }
    contenders = [
        Contender(name="raypq join", run=lambda: _joined(C, B), work=N * (N - 1) / 2e9, ours=True),
        Contender(name="raypq scan", run=lambda: _scanned(C, small), work=n * (n - 1) / 2e9),
    ]
    absent: list[str] = []
    if faiss := faiss_peer.faiss_for("FAISS range search over cells", threads, absent):
        search = _faiss_search(faiss, kernels.decode(small, C))
        checks[f"recall of FAISS, {_PROBES} of {_CELLS} cells"] = _recall(search(), truth)
        contenders.append(
            faiss_peer.contender(
                faiss,
                name="FAISS range search over cells",
                run=search,
                work=n * (n - 1) / 2e9,
                checks=checks,
            )
        )
    result = Result(
        bench="duplicates",
        case=f"N={N:,} M={_M} threshold {_THRESHOLD}",
        unit="G pairs/s",
        sizes={"N": N, "D": _D, "M": _M, "K": 256},
        lines=rounds(contenders, 3 if SIZES[1] >= N else 1),
        checks=checks,
        absent=absent,
    )
    least = 10.0 if SIZES[1] <= N else None
    return result.with_goals(
        [Goal(ours="raypq join", peer="raypq scan", at_least=least)] if least else []
    )


def _commands(C: NDArray[np.float32], B: Codes, new: Codes, threads: int) -> Result:
    """``raypq deduplicate`` with both lists, from the start of its workers to the commit."""
    model = PQModel(settings=PQSettings(M=_M, K=256), tensors={"C": C}, dx=_D)
    with tempfile.TemporaryDirectory(prefix="raypq-bench-") as folder:
        store = str(Path(folder, "codes"))
        write_codes(store, model, B)
        model_store.save(store, model)
        job = DeduplicateJob(
            codes=store,
            threshold=_THRESHOLD,
            output=str(Path(folder, "groups")),
            keep_list=str(Path(folder, "keep.txt")),
            drop_list=str(Path(folder, "drop.txt")),
            where=ClusterSettings(cluster="none", workers=threads, threads=1),
        )
        first, dropped = _deduplicated(job)
        write_codes(store, model, new, shards=1)
        night, _ = _deduplicated(job)
    return Result(
        bench="duplicates",
        case=f"N={len(B):,} M={_M} threshold {_THRESHOLD}, raypq deduplicate with lists",
        unit="images/s",
        lines=[
            Line(name="first run", rate=len(B) / first, seconds=first, ours=True),
            Line(
                name=f"night with {len(new):,} new images",
                rate=len(new) / night,
                seconds=night,
                ours=True,
            ),
        ],
        sizes={"N": len(B), "D": _D, "M": _M, "K": 256},
        checks={"images to drop": dropped},
    )


def _deduplicated(job: DeduplicateJob) -> tuple[float, int]:
    """Seconds of a run, and the images to drop."""
    start = time.perf_counter()
    version = api.deduplicate(job)
    return time.perf_counter() - start, int(version.summary["dropped"])


def _joined(C: NDArray[np.float32], B: Codes) -> NDArray[np.uint32]:
    """The pairs of rows [p, 2] as ``raypq duplicates`` finds them; the choice is part of it."""
    rng = np.random.default_rng(0)
    sample = B[rng.permutation(len(B))[:_SAMPLE]]
    join = choose(sample, len(B), C, "l2", _THRESHOLD).join
    join = join or CodeJoin.of(C, "l2", _THRESHOLD, parts=4)
    found = [_near(C, B, rows) for group in range(join.groups) for rows in join.pairs(group, B)]
    return np.concatenate([np.empty((0, 2), np.uint32), *found])


def _scanned(C: NDArray[np.float32], B: Codes) -> NDArray[np.uint32]:
    """The same by a comparison of all pairs."""
    found = [np.empty((0, 2), np.uint32)]
    for start in range(0, len(B), _QUERIES):
        A = B[start : start + _QUERIES]
        tables = kernels.build_tables(C, kernels.decode(A, C), None, "l2")
        limit = -_THRESHOLD * (1 + 1e-5)
        i, j, _ = kernels.range_search(B[start:], tables, limit, upper_triangle=True)
        found.append(_near(C, B, np.stack([i + start, j + start], 1).astype(np.uint32)))
    return np.concatenate(found)


def _near(C: NDArray[np.float32], B: Codes, rows: NDArray[np.uint32]) -> NDArray[np.uint32]:
    score = SymmetricTables(C, "l2")(B[rows[:, 0]], B[rows[:, 1]])
    return rows[score <= np.float32(_THRESHOLD)]


def _faiss_search(faiss: Any, q: NDArray[np.float32]) -> Any:
    """A search of all decoded vectors for one another, in the nearest cells of each."""
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(q.shape[1]), q.shape[1], _CELLS)
    index.train(q)
    index.add(q)
    index.nprobe = _PROBES

    def search() -> NDArray[np.uint32]:
        ends, _, rows = index.range_search(q, _THRESHOLD * (1 + 1e-5))
        query = np.repeat(np.arange(len(q)), np.diff(ends.astype(np.int64)))
        above = rows > query
        return np.stack([query[above], rows[above]], 1).astype(np.uint32)

    return search


def _recall(found: NDArray[np.uint32], truth: NDArray[np.uint32]) -> float:
    def keys(rows: NDArray[np.uint32]) -> NDArray[np.uint64]:
        low, high = np.sort(rows.astype(np.uint64), axis=1).T
        return low << np.uint64(32) | high

    return float(np.isin(keys(truth), keys(found)).mean()) if len(truth) else 1.0
