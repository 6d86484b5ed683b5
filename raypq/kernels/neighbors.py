"""The nearest codes of each code of a store, by symmetric squared distance, without a comparison of
all pairs.

S(a, b) = Σ_m T[m, a_m, b_m] with the squared distances T of codewords. Near codes are put into
blocks of four. For a code and a block, the sum of the least T of each part is a lower bound of S;
most blocks are beyond the k-th distance by it. That distance is first bounded by the codes of the
nearest cells. Sums are of 8 bits, rounded down, and 64 of them are made at once. What remains is
ranked by S; those that rounding leaves among the k best get the score that
``kernels.topk_per_query`` gives them, bit for bit. Equal codes are searched once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.kernels import native
from raypq.kernels.join import sums_fit
from raypq.kernels.sdc import SymmetricTables

_TRIED_QUERIES = 256  # of a sample
_LARGEST_SHARE = 0.7  # of the codes compared one by one, from which a scan of all is as fast
_COMPARED_TOGETHER = 64  # codes


@dataclass(frozen=True, kw_only=True)
class NeighborWork:
    """What a search did.

    Attributes:
        bounds: pairs of a query and 64 blocks. compared: pairs of a query and 64 codes.
        scored: pairs of codes whose distance was computed.
    """

    bounds: int
    compared: int
    scored: int


class NeighborIndex:
    """The codes of a store in an order of nearness."""

    def __init__(
        self, B: NDArray[np.uint8], C: NDArray[np.float32], *, isa: str | None = None
    ) -> None:
        """Orders codes B [n, M] of codebooks C [M, K, d]; n is at least 1.

        Raises:
            ValueError: codebooks whose squared distances float32 cannot hold (``join.usable``).
        """
        if not sums_fit(C):
            raise ValueError("codewords are too far apart for float32")
        T = SymmetricTables(C, "l2").entries.astype(np.float32)
        self._rows = len(B)
        self._native = native.neighbor_index(B, C, T, threads=kernels.threads(), isa=isa)

    @property
    def searched(self) -> float:
        """The share of the blocks that ``search_all`` has compared, for other threads."""
        return self._native.searched

    def search_all(self, k: int) -> NeighborWork:
        """Searches for all rows, of which ``find`` for the same k then only looks up the results:
        at about half of the cost, since the neighbours of both codes of a pair are found at once.
        It holds about 12·k bytes of each row."""
        bounds, compared, scored = self._native.search_all(min(k, self._rows), kernels.threads())
        return NeighborWork(bounds=bounds, compared=compared, scored=scored)

    def find(
        self, rows: NDArray[np.integer], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NeighborWork]:
        """The k nearest rows of each of some rows [n], itself included: scores (negative squared
        distances) and rows, both [n, min(k, N)], best first, ties to the lower row; and the work.
        """
        shape = len(rows), min(k, self._rows)
        score, found = np.empty(shape, np.float32), np.empty(shape, np.int64)
        if not score.size:
            return score, found, NeighborWork(bounds=0, compared=0, scored=0)
        picked = np.ascontiguousarray(rows, np.uint32)
        bounds, compared, scored = self._native.find(picked, kernels.threads(), score, found)
        work = NeighborWork(bounds=bounds, compared=compared, scored=scored)
        return kernels.check_scores(score), found, work


def bytes_of_all(rows: int, k: int) -> int:
    """Bytes that a search for all of so many rows holds (``cpp/neighbor_pools.hpp``)."""
    return rows * (8 * (k + max(k // 2, 5)) + 8)


def worthwhile(sample: NDArray[np.uint8], C: NDArray[np.float32], k: int) -> bool:
    """Whether the bounds leave enough out, by a random sample [n, M] of a store; they leave more
    out of the whole store, where neighbours are nearer."""
    queries = np.arange(0, len(sample), max(1, len(sample) // _TRIED_QUERIES))
    _, _, work = NeighborIndex(sample, C).find(queries, k)
    share = work.compared * _COMPARED_TOGETHER / (len(queries) * len(sample))
    return share < _LARGEST_SHARE
