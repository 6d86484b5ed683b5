"""A sample of the distinct codes of a store, which depends on its codes alone.

Every code has a hash, and the sample is the distinct codes with the smallest ones. So it depends
neither on the order of the rows nor on how they are divided into files, and samples of parts merge
into that of the whole. A sample that is not full holds every distinct code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64
_STEP = 0x9E3779B97F4A7C15
_PENDING_ROWS = 1 << 17  # rows that are added at once; sorting them costs less than one by one


@dataclass(kw_only=True, eq=False)
class CodeSample:
    """The ``size`` distinct codes with the smallest hashes, in the order of their hashes.

    Attributes:
        seed: of the hashes.
        B: codes [n, M]. count: rows of each [n], int64. hashes: of each [n], uint64.
    """

    size: int
    seed: int
    B: NDArray[np.uint8]
    count: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    _pending: list[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64]]] = field(
        default_factory=list
    )

    @classmethod
    def empty(cls, size: int, M: int, seed: int) -> CodeSample:
        """A sample of no rows."""
        return cls(
            size=size,
            seed=seed,
            B=np.empty((0, M), np.uint8),
            count=np.empty(0, np.int64),
            hashes=np.empty(0, np.uint64),
        )

    @property
    def full(self) -> bool:
        """Whether there may be further distinct codes."""
        return len(self.B) == self.size

    def add(self, B: NDArray[np.uint8]) -> None:
        """Adds rows with codes [n, M]."""
        self._add(B, np.ones(len(B), np.int64), hashes_of(B, self.seed))

    def merge(self, other: CodeSample) -> None:
        """Adds the rows of another sample of the same size and seed."""
        self._add(other.B, other.count, other.hashes)
        self.settle()

    def _add(
        self, B: NDArray[np.uint8], count: NDArray[np.int64], hashes: NDArray[np.uint64]
    ) -> None:
        if self.full:
            near = hashes <= self.hashes[-1]
            B, count, hashes = B[near], count[near], hashes[near]
        self._pending.append((B, count, hashes))
        if sum(len(part[0]) for part in self._pending) >= max(self.size, _PENDING_ROWS):
            self.settle()

    def settle(self) -> None:
        """Sorts rows that were added, equal codes as one; to be called before the sample is read or
        sent."""
        if not self._pending:
            return
        parts = [(self.B, self.count, self.hashes), *self._pending]
        B, count, hashes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.lexsort((*words_of(B).T, hashes))
        B, count, hashes = B[order], count[order], hashes[order]
        first = np.ones(len(B), bool)
        first[1:] = (hashes[1:] != hashes[:-1]) | (B[1:] != B[:-1]).any(axis=1)
        starts = np.flatnonzero(first)
        kept = starts[: self.size]
        self.count = np.add.reduceat(count, starts)[: self.size] if len(B) else count
        self.B, self.hashes = B[kept], hashes[kept]
        self._pending = []


def words_of(B: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Codes [n, M] as numbers [n, ⌈M/8⌉] that are equal where the codes are."""
    n, M = B.shape
    padded = np.zeros((n, -(-M // 8) * 8), np.uint8)
    padded[:, :M] = B
    return padded.view(np.dtype("<u8")).astype(np.uint64)


def hashes_of(B: NDArray[np.uint8], seed: int) -> NDArray[np.uint64]:
    """A hash of each code [n, M] by the mixing function of splitmix64 (Steele et al. 2014)."""
    state = np.full(len(B), _mixed(np.array([seed % 2**64], np.uint64))[0], np.uint64)
    for word in words_of(B).T:
        state = _mixed(state ^ word)
    return state


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(_STEP)
    state = (state ^ (state >> np.uint64(30))) * _MULTIPLIERS[0]
    state = (state ^ (state >> np.uint64(27))) * _MULTIPLIERS[1]
    return np.asarray(state ^ (state >> np.uint64(31)))
