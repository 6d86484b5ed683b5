"""Classification against a million classes: those leaves that may hold a best class, and all.

Classes are children of those of a class table, as finer kinds are: embeddings with some noise,
projected to D = 1000 at random. Weights are in a file, so that a worker holds a part of them.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.bench import clustered_data
from raypq.bench.harness import Contender, Goal, Result, rounds
from raypq.data.classes import ClassTable
from raypq.errors import ConfigError
from raypq.kernels import leaves, native, pruned
from raypq.kernels.stored_tables import StoredTables
from raypq.stages.classification.class_groups import StoredGroup

D, M, TOP = 1000, 50, 10
NOISE = 0.2  # length of a child's noise, of embeddings of length 1
_IMAGE_NOISE = 0.7  # length of an image's noise, around its class
_CODES = 131_072
_ROWS = 8192


class Children:
    """T classes around the embeddings of a table, in turn, made in blocks of a fixed size."""

    def __init__(self, E: NDArray[np.float32], T: int) -> None:
        self.T = T
        rng = np.random.default_rng(0)
        self._parents = E / np.maximum(np.linalg.norm(E, axis=1, keepdims=True), 1e-30)
        da = E.shape[1]
        self._Q = rng.standard_normal((da, D), dtype=np.float32) / np.float32(np.sqrt(D))

    def block(self, number: int) -> NDArray[np.float32]:
        """Prototypes of the classes of a block."""
        first = number * _ROWS
        n = min(_ROWS, self.T - first)
        rng = np.random.default_rng([1, number])
        E = self._parents[np.arange(first, first + n) % len(self._parents)]
        noise = rng.standard_normal(E.shape, dtype=np.float32)
        return (E + np.float32(NOISE / np.sqrt(E.shape[1])) * noise) @ self._Q

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All prototypes."""
        return (self.block(number) for number in range(-(-self.T // _ROWS)))

    def codes(self, n: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Codebooks [M, K, d], and codes [n, M] of images around the classes of some blocks."""
        rng = np.random.default_rng(2)
        count = -(-self.T // _ROWS)
        blocks = np.unique(np.linspace(0, count - 1, 8).astype(np.int64))
        V = np.concatenate([self.block(int(number)) for number in blocks])

        def images() -> NDArray[np.float32]:
            U = V[rng.integers(len(V), size=_ROWS)]
            noise = rng.standard_normal(U.shape, dtype=np.float32)
            return U + np.float32(_IMAGE_NOISE / np.sqrt(D)) * noise

        C = clustered_data.quantizer(images(), M, 256)
        # In parts, so that the peak of memory is not that of the images.
        parts = [kernels.encode(images(), C) for _ in range(0, n, _ROWS)]
        return C, np.concatenate(parts)[:n]


def run(threads: int, classes: str | None, T: int) -> Iterator[Result]:
    """The case of T classes.

    Raises:
        ConfigError: there is no class table, or there are no native kernels.
    """
    if classes is None:
        raise ConfigError("children: expected a class table too (--classes, classes), found none")
    if not native.available():
        raise ConfigError(f"children: {native.missing_reason()}")
    children = Children(ClassTable.open(classes).embeddings, T)
    C, B = children.codes(_CODES)
    tables = (kernels.build_tables(C, V, None, "cosine") for V in children.blocks())
    stored = StoredTables.write(tables)
    start = time.perf_counter()
    found = leaves.build(stored, threads=threads)
    seconds = time.perf_counter() - start
    group, work = StoredGroup(stored, rows=len(B)), pruned.PruningWork()
    answers: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}

    def some() -> None:
        work.pairs = work.scored = 0
        answers["some"] = pruned.topk_per_code(B, found, TOP, threads=threads, work=work)

    def every() -> None:
        answers["all"] = group.scan(B, TOP, "cpu")

    contenders = [
        Contender(name="raypq, leaves that may hold one", run=some, work=len(B), ours=True),
        Contender(name="raypq, all classes in parts", run=every, work=len(B)),
    ]
    result = Result(
        bench="classify",
        case=f"T={T:,} D={D} k={TOP} M={M} K=256",
        unit="images/s",
        sizes={"N": len(B), "T": T, "D": D, "M": M, "K": 256},
        lines=rounds(contenders, repeats=1),
        checks={
            "equal answers": bool(
                (answers["some"][0] == answers["all"][0]).all()
                and (answers["some"][1] == answers["all"][1]).all()
            ),
            "leaves": len(found),
            "seconds to find them": seconds,
            "pairs of codes and leaves scanned": work.pairs / (len(B) * len(found)),
            "classes scored exactly a code": work.scored / len(B),
            "peak memory, GB": _peak() / 1e9,
        },
    )
    goal = Goal(ours=contenders[0].name, peer=contenders[1].name, at_least=3.0)
    yield result.with_goals([goal])


def _peak() -> int:
    """Bytes of memory that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
