"""Tables of more classes than memory should hold: their weights are in a temporary file.

The file has 4·T·D bytes, in ``tempfile.gettempdir()`` (``TMPDIR``), and no name, so that nothing is
left when the process ends. It is read, not mapped: mapped pages count as memory of the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raypq.errors import WriteError
from raypq.kernels.tables import Tables


class RowFile:
    """Rows [n, D], float32, in a temporary file; several threads may read at once.

    Args:
        D: width of a row.
    """

    def __init__(self, D: int) -> None:
        self._D = D
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    def write(self, first: int, X: NDArray[np.float32]) -> None:
        """Writes rows from number ``first`` on.

        Raises:
            WriteError: naming the folder of the file.
        """
        data, at = np.ascontiguousarray(X).reshape(-1).view(np.uint8).data, first * 4 * self._D
        while data:
            try:
                done = os.pwrite(self._file.fileno(), data, at)
            except OSError as error:
                folder = f"a temporary file in {tempfile.gettempdir()} (TMPDIR sets the folder)"
                raise WriteError.of(error, folder) from error
            data, at = data[done:], at + done

    def read(self, first: int, end: int) -> NDArray[np.float32]:
        """Rows [first, end).

        Raises:
            EOFError: they were not written.
        """
        X = np.empty((end - first, self._D), np.float32)
        data, at = X.reshape(-1).view(np.uint8).data, first * 4 * self._D
        while data:
            done = os.preadv(self._file.fileno(), [data], at)
            if not done:
                raise EOFError(f"rows {first} to {end} of a temporary file were not written")
            data, at = data[done:], at + done
        return X


class StoredTables:
    """T classes, as ``Tables``, with weights in a file.

    Attributes:
        like: the codebooks and the metric, as tables without classes. bias: [T], float64.
    """

    def __init__(self, like: Tables, weights: RowFile, bias: NDArray[np.float64]) -> None:
        self.like, self.bias = like, bias
        self._weights = weights

    @classmethod
    def write(cls, parts: Iterable[Tables]) -> Self:
        """Stores tables of the same codebooks and metric one after another; there is at least
        one."""
        bias: list[NDArray[np.float64]] = []
        T = 0
        for tables in parts:
            if not bias:
                file = RowFile(tables.W.shape[1])
                like = _part(tables, tables.W[:0], tables.bias[:0])
            file.write(T, tables.W)
            bias.append(tables.bias)
            T += tables.T
        return cls(like, file, np.concatenate(bias))

    @property
    def T(self) -> int:
        """Number of classes."""
        return len(self.bias)

    @property
    def D(self) -> int:
        """Width of the weights."""
        return int(self.like.W.shape[1])

    def part(self, first: int, end: int) -> Tables:
        """Tables of the classes [first, end)."""
        return _part(self.like, self._weights.read(first, end), self.bias[first:end])

    def parts(self, size: int) -> Iterator[tuple[int, Tables]]:
        """All classes, ``size`` at a time, each with the number of its first class."""
        for first in range(0, self.T, size):
            yield first, self.part(first, min(self.T, first + size))

    def reordered(self, order: NDArray[np.int64], size: int) -> StoredTables:
        """The same classes in another order, from a second file: class i is ``order[i]``."""
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        file = RowFile(self.D)
        for first, part in self.parts(size):
            to = place[first : first + part.T]
            by_place = np.argsort(to)
            runs = np.flatnonzero(np.diff(to[by_place]) != 1) + 1
            for rows in np.split(by_place, runs):
                file.write(int(to[rows[0]]), part.W[rows])
        return StoredTables(self.like, file, self.bias[order])


def _part(like: Tables, W: NDArray[np.float32], bias: NDArray[np.float64]) -> Tables:
    return Tables(C=like.C, W=W, bias=bias, norms=like.norms, metric=like.metric)
