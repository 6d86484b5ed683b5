"""Further peers of the search bench, each in a process and, if need be, an environment of its own.

All scan every code, with the same bytes a vector; they take turns as in every bench. Vectors have
length 1, so that peers of any metric are asked for the same neighbours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import kernels
from raypq.bench import clustered_data, peer_process
from raypq.bench.harness import REPEATS, Contender, Line, Result, rounds
from raypq.bench.peer_process import PEERS, TOP
from raypq.bench.worlds import unit
from raypq.data.storage import json_text

N, QUERIES, D = 1_000_000, 1024, 128
BYTES = (16, 32)  # 1 and 2 bits a dimension
_TRAIN = 65_536
_NAMES = {
    "faiss": "FAISS IndexPQFastScan",
    "turbovec": "turbovec TurboQuantIndex",
    "rabitqlib": "rabitqlib IvfIndex, 1 cell",
    "scann": "ScaNN asymmetric hashing",
    "lance": "Lance IVF_PQ, 1 cell",
}
# Variables by which the peers' libraries take their number of threads.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "LANCE_CPU_THREADS")


@dataclass(frozen=True)
class Peer:
    """A peer that has built its index.

    Attributes:
        rows: its answers [n, 10]. about: its version and the bytes of a vector.
    """

    process: subprocess.Popen[str]
    rows: NDArray[np.int64]
    about: dict[str, Any]

    def search(self) -> None:
        """Searches once.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self.process.stdin, "opened as a pipe"
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        _answer(self.process)


def cases(
    threads: int, python: str | None, *, N: int = N, queries: int = QUERIES,
    sizes: tuple[int, ...] = BYTES, repeats: int = REPEATS,
) -> Iterator[Result]:  # fmt: skip
    """One result for each number of bytes a vector.

    Args:
        python: Python in which the peers are installed; None: this one.
    """
    data = clustered_data.embedded(N=N + queries, T=max(N // 50, 1), D=D, seed=7)
    X = unit(data.U)
    U, Q = X[:N], X[N:]
    truth = (torch.from_numpy(Q) @ torch.from_numpy(U).T).topk(TOP).indices.numpy()
    for size in sizes:
        yield _case(U, Q, truth, size, threads, python or sys.executable, repeats)


def _case(
    U: NDArray[np.float32], Q: NDArray[np.float32], truth: NDArray[np.int64], size: int,
    threads: int, python: str, repeats: int,
) -> Result:  # fmt: skip
    C = clustered_data.quantizer(U[:_TRAIN], size, 256, rounds=25)
    B = kernels.encode(U, C)

    def ours() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        # With the tables of the queries, as the peers make theirs.
        return kernels.topk_per_query(B, kernels.build_tables(C, Q, None, "l2"), TOP)

    contenders = [Contender(name="raypq codes", run=ours, work=len(Q), ours=True)]
    checks: dict[str, Any] = {"recall@10 of raypq": recall(ours()[1], truth)}
    absent: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raypq-peers-")))
        np.save(folder / "U.npy", U)
        np.save(folder / "Q.npy", Q)
        for name in PEERS:
            peer = stack.enter_context(started(name, folder, threads, size, python))
            label = _NAMES[name]
            if isinstance(peer, str):
                absent.append(f"{label} ({peer})")
                continue
            contenders.append(Contender(name=label, run=peer.search, work=len(Q)))
            checks[f"recall@10 of {label}"] = recall(peer.rows, truth)
            checks[f"version of {PEERS[name][1]}"] = peer.about["version"]
            if peer.about["bytes"] is not None:
                checks[f"bytes a vector, {label}"] = peer.about["bytes"]
        lines: list[Line] = rounds(contenders, repeats)
    return Result(
        bench="search",
        case=f"peers, N={len(U):,} D={U.shape[1]} {len(Q)} queries k={TOP}, codes of {size} bytes",
        unit="queries/s",
        sizes={"N": len(U), "D": U.shape[1], "M": size, "K": 256},
        lines=lines,
        checks=checks,
        absent=absent,
    )


@contextmanager
def started(name: str, folder: Path, threads: int, size: int, python: str) -> Iterator[Peer | str]:
    """A peer with its index built; or why there is none."""
    command = [python, peer_process.__file__, name, str(folder), str(threads), str(size)]
    # Without the paths of this environment.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= dict.fromkeys(_THREADS, str(threads)) | {"LANCE_LOG": "error"}
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=environment,
        )  # fmt: skip
    try:
        yield _outcome(process, name, folder)
    finally:
        process.kill()
        process.communicate()


def _outcome(process: subprocess.Popen[str], name: str, folder: Path) -> Peer | str:
    try:
        about = _answer(process)
    except RuntimeError as error:
        lines = (folder / f"{name}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else str(error)
    if "error" in about:
        return str(about["error"])
    return Peer(process, np.load(folder / f"{name}.npy", allow_pickle=False), about)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout, "opened as a pipe"
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a peer's process ended with {process.wait()}")
    answer: dict[str, Any] = json_text.parse(line)
    return answer


def recall(rows: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Mean share of the true neighbours [n, 10] among the answers [n, 10]."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(rows, truth, strict=True)]
    return float(np.mean(hits)) / truth.shape[1]
