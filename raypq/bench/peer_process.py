"""One peer of the search bench in a process of its own: ``python peer_process.py NAME FOLDER
THREADS BYTES``.

Needs numpy and the peer's package, and nothing of raypq, so that it runs in any environment.
FOLDER has ``U.npy`` [N, D] and ``Q.npy`` [n, D], float32 of length 1, for which inner product,
cosine and L2 give the same order. The process builds its index of U with BYTES a vector, writes the
10 nearest rows of each query to ``NAME.npy``, and says so in a line of JSON; then it searches once
for each line of input, and answers each with a line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOP = 10
_SAMPLE = 1024  # rows that turbovec is calibrated with, as its documentation recommends


@dataclass(frozen=True)
class Task:
    """Vectors U [N, D] and queries Q [n, D], threads, bytes of a code, and a folder for files."""

    U: Any
    Q: Any
    threads: int
    size: int
    folder: Path

    def bits(self, least: int, most: int) -> int:
        """Bits of a dimension.

        Raises:
            ValueError: not a whole number from ``least`` to ``most``.
        """
        D = self.U.shape[1]
        bits, rest = divmod(8 * self.size, D)
        if rest or not least <= bits <= most:
            raise ValueError(f"{self.size} bytes of {D} dimensions are not {least} to {most} bits")
        return bits


# Gives the rows [n, 10] of the answers; and bytes of a stored vector, where the peer states them.
Built = tuple[Callable[[], Any], float | None]


def faiss(task: Task) -> Built:
    """Product quantizer of 4-bit codes."""
    package: Any = importlib.import_module("faiss")
    package.omp_set_num_threads(task.threads)
    index = package.IndexPQFastScan(task.U.shape[1], 2 * task.size, 4)
    index.train(task.U[:65_536])
    index.add(task.U)
    return lambda: index.search(task.Q, TOP)[1], float(index.code_size)


def turbovec(task: Task) -> Built:
    """Rotated scalar quantizer of 2 to 4 bits a dimension."""
    package: Any = importlib.import_module("turbovec")
    bits = task.bits(2, 4)
    index = package.TurboQuantIndex(task.U.shape[1], bits)
    sample = np.random.default_rng(0).choice(len(task.U), min(_SAMPLE, len(task.U)), replace=False)
    index.calibrate(np.ascontiguousarray(task.U[sample]))
    index.add(task.U)
    index.prepare()
    return lambda: index.search(task.Q, TOP)[1], len(index.to_bytes()) / len(task.U)


def rabitqlib(task: Task) -> Built:
    """Rotated quantizer of 1 to 9 bits a dimension, in one cell, so that every code is scanned."""
    package: Any = importlib.import_module("rabitqlib")
    N, D = task.U.shape
    bits = task.bits(1, 9)
    centre = task.U.mean(axis=0, keepdims=True)
    index = package.IvfIndex(dim=D, max_elements=N, num_clusters=1, nbits=bits, metric="l2")
    index.build(task.U, centre, np.zeros(N, np.uint32), num_threads=task.threads)
    index.save(str(task.folder / "rabitqlib.index"))
    stored = (task.folder / "rabitqlib.index").stat().st_size / N
    return lambda: index.search(task.Q, TOP, 1, num_threads=task.threads)[0], stored


def scann(task: Task) -> Built:
    """Product quantizer of 4-bit codes, without a tree, so that every code is scanned."""
    package: Any = importlib.import_module("scann")
    blocks = 2 * task.size
    if task.U.shape[1] % blocks:
        raise ValueError(f"{blocks} codes of 4 bits do not divide {task.U.shape[1]} dimensions")
    builder = package.scann_ops_pybind.builder(task.U, TOP, "squared_l2")
    index = builder.set_n_training_threads(task.threads).score_ah(task.U.shape[1] // blocks).build()
    index.set_num_threads(task.threads)
    share = -(-len(task.Q) // task.threads)
    return lambda: index.search_batched_parallel(task.Q, batch_size=share)[0], None


def lance(task: Task) -> Built:
    """IVF_PQ in one cell, so that every code is scanned; a query at a time, as its interface is."""
    package: Any = importlib.import_module("lance")
    arrow: Any = importlib.import_module("pyarrow")
    N, D = task.U.shape
    place = task.folder / "lance"
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(task.U.ravel()), D)
    table = arrow.table({"vector": vectors})
    data = package.write_dataset(table, str(place), max_rows_per_file=N)
    data.create_index("vector", "IVF_PQ", metric="l2", num_partitions=1, num_sub_vectors=task.size)
    stored = sum(file.stat().st_size for file in (place / "_indices").rglob("*") if file.is_file())
    pool = ThreadPoolExecutor(task.threads)

    def nearest(query: Any) -> Any:
        wanted = {"column": "vector", "q": query, "k": TOP, "nprobes": 1}
        rows = data.to_table(columns=["_distance"], with_row_id=True, nearest=wanted)
        return rows.column("_rowid").to_numpy()

    return lambda: np.stack(list(pool.map(nearest, task.Q))), stored / N


# By name: how it is built, and the distribution that has it.
PEERS = {
    "faiss": (faiss, "faiss-cpu"),
    "turbovec": (turbovec, "turbovec"),
    "rabitqlib": (rabitqlib, "rabitqlib"),
    "scann": (scann, "scann"),
    "lance": (lance, "pylance"),
}


def serve(name: str, folder: Path, threads: int, size: int) -> None:
    """Builds the peer's index, and searches for each line of input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some libraries print

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    build, distribution = PEERS[name]
    U, Q = (np.load(folder / file, allow_pickle=False) for file in ("U.npy", "Q.npy"))
    try:
        search, stored = build(Task(U, Q, threads, size, folder))
        np.save(folder / f"{name}.npy", np.asarray(search()).astype(np.int64))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(version=version(distribution), bytes=stored)
    for _ in sys.stdin:
        search()
        answer()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
