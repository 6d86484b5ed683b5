"""The k best of many classes, without those leaves (``raypq.kernels.leaves``) that cannot have any.

1. The leaves whose centres score best give each code a floor: the k-th best score of their classes,
   which the k-th best of all classes is not below.
2. Leaves whose bound is below the floor are left out, for each code; the classes of all others are
   scored, filtered by tables where many codes want the leaf.

Results equal those of a scan of all classes, bit for bit. Weights are read from the file twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raypq.kernels import native
from raypq.kernels.tables import Tables, merge_topk

if TYPE_CHECKING:
    from raypq.kernels.leaves import Leaves

TopK = tuple[NDArray[np.float32], NDArray[np.int64]]
_CENTRES = 8192  # leaves whose centres are scanned at once
_ENOUGH = 2  # times k classes that the first leaves of a code should have
_MORE = 4  # times as many leaves where they have fewer than k


@dataclass(kw_only=True)
class PruningWork:
    """What was not left out.

    Attributes:
        pairs: of codes and leaves. scored: classes scored exactly, for all codes.
    """

    pairs: int = 0
    scored: int = 0


def topk_per_code(
    B: NDArray[np.uint8],
    leaves: Leaves,
    k: int,
    *,
    threads: int = 1,
    isa: str | None = None,
    work: PruningWork | None = None,
) -> TopK:
    """As ``native.topk_per_code`` for the classes of leaves; adds to ``work``."""
    search = _Search(np.ascontiguousarray(B), leaves, min(k, leaves.tables.T), threads, isa)
    floor = search.floors()
    best = search.empty()
    for block, pairs in search.pairs(floor):
        scored = search.scan(block, pairs, floor, best)
        np.maximum(floor, best[0][:, -1], out=floor)
        if work is not None:
            work.pairs += len(pairs[1])
            work.scored += scored
    return best


def pairs_left(
    B: NDArray[np.uint8], leaves: Leaves, k: int, *, threads: int = 1, isa: str | None = None
) -> NDArray[np.int64]:
    """The number of codes that want each leaf [L], from bounds alone."""
    search = _Search(np.ascontiguousarray(B), leaves, min(k, leaves.tables.T), threads, isa)
    return np.concatenate([np.diff(begin) for _, (begin, _) in search.pairs(search.floors())])


class _Search:
    """The steps for some codes."""

    def __init__(
        self, B: NDArray[np.uint8], leaves: Leaves, k: int, threads: int, isa: str | None
    ) -> None:
        self._B, self._leaves, self._k = B, leaves, k
        self._threads, self._isa = threads, isa
        self._like = leaves.tables.like
        self._squared = self._like.squared_norms(B)
        self._magnitudes = leaves.weight, float(np.abs(leaves.tables.bias).max(initial=0.0))

    def empty(self) -> TopK:
        """No classes yet."""
        shape = len(self._B), self._k
        return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)

    def floors(self) -> NDArray[np.float32]:
        """The k-th best score of each code among the classes of its first leaves."""
        leaves = self._leaves
        count = int(np.ceil(_ENOUGH * self._k * len(leaves) / leaves.tables.T))
        floor, rows = np.full(len(self._B), -np.inf, np.float32), np.arange(len(self._B))
        while len(rows):
            count = min(len(leaves), count)
            floor[rows] = self._among(rows, count)
            # Leaves that are smaller than others may hold fewer than k classes.
            rows = rows[np.isneginf(floor[rows])] if count < len(leaves) else rows[:0]
            count *= _MORE
        return floor

    def _among(self, rows: NDArray[np.int64], count: int) -> NDArray[np.float32]:
        """The k-th best score of some codes among the classes of so many leaves."""
        leaf = self._first_leaves(rows, count).reshape(-1)
        order = np.argsort(leaf, kind="stable")
        begin = np.searchsorted(leaf[order], np.arange(len(self._leaves) + 1))
        wanted = np.repeat(rows.astype(np.uint32), count)[order]
        best, none = self.empty(), np.full(len(self._B), -np.inf, np.float32)
        for block in self._leaves.blocks():
            at = begin[block.start : block.stop + 1]
            pairs = (at - at[0]).astype(np.uint32), wanted[at[0] : at[-1]]
            self.scan(block, pairs, none, best)
        return best[0][rows, -1]

    def _first_leaves(self, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The leaves of some codes with the best centres [n, count]."""
        best: TopK | None = None
        for start in range(0, len(self._leaves), _CENTRES):
            centres = self._centres(slice(start, start + _CENTRES))
            score, leaf = native.topk_per_code(
                self._B[rows], centres, count, threads=self._threads, isa=self._isa
            )
            part = score, leaf + start
            best = part if best is None else merge_topk([best, part], count)
        assert best is not None, "there is a leaf"
        return best[1]

    def _centres(self, leaves: slice) -> Tables:
        like = self._like
        return Tables(C=like.C, W=self._leaves.centre[leaves], bias=self._leaves.bias[leaves],
                      norms=like.norms, metric=like.metric)  # fmt: skip

    def pairs(
        self, floor: NDArray[np.float32]
    ) -> Iterator[tuple[slice, tuple[NDArray[np.uint32], NDArray[np.uint32]]]]:
        """The codes that want each leaf of a block, which may depend on how ``floor`` rises."""
        for block in self._leaves.blocks():
            yield block, native.leaf_pairs(
                self._B, self._squared, floor, self._centres(block), self._leaves.radius[block],
                self._magnitudes, threads=self._threads, isa=self._isa,
            )  # fmt: skip

    def scan(
        self,
        block: slice,
        pairs: tuple[NDArray[np.uint32], NDArray[np.uint32]],
        floor: NDArray[np.float32],
        best: TopK,
    ) -> int:
        """Adds the classes of a block of leaves to the best ones of their codes."""
        if not len(pairs[1]):
            return 0
        leaves = self._leaves
        first = leaves.first[block.start : block.stop + 1]
        tables = leaves.tables.part(int(first[0]), int(first[-1]))
        classes = (first - first[0]).astype(np.uint32), leaves.number[first[0] : first[-1]]
        return native.scan_leaves(
            self._B, self._squared, floor, tables, classes, pairs, best,
            threads=self._threads, isa=self._isa,
        )  # fmt: skip
