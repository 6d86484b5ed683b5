"""Rows of one batch, and the sums over them that training by reduction needs.

Methods are written once, for ``Rows``. On the CPU the native kernels compute; ``device_rows`` is
for torch devices. Every sum has a fixed order, without atomic additions: a shard gives the same
bits in every pass and on every worker of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.methods.base import Array, Normalise, Rows, Sums
from raypq.methods.support.matrix_product import product
from raypq.methods.support.normalisation import check_range, normalise
from raypq.methods.support.statistics import class_sums, gram, outer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HostRows(Rows):
    """Rows on the CPU."""

    X: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.X)

    def chosen(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.X[index]

    def normalised(
        self, scheme: Normalise, mean: Array | None, inverse_std: Array | None
    ) -> HostRows:
        return HostRows(check_range(normalise(self.X, scheme, mean, inverse_std)))

    def projected(self, P: Array) -> HostRows:
        return HostRows(check_range(product(self.X, P)))

    def total(self) -> Array:
        return self.X.sum(axis=0, dtype=np.float64)

    def squares(self) -> Array:
        wide = self.X.astype(np.float64)
        squares: Array = (wide * wide).sum(axis=0)
        return squares

    def gram(self) -> Array:
        return gram(self.X)

    def class_sums(self, y: NDArray[np.int32], L: int) -> Array:
        return class_sums(self.X, y, L)

    def codes(self, C: Array) -> Array:
        return kernels.encode(self.X, C)

    def codeword_sums(self, B: Array | Tensor, C: Array) -> tuple[Sums, Sums, Sums]:
        assert isinstance(B, np.ndarray), "codes of rows on the CPU"
        return kernels.codeword_sums(self.X, B, C)

    def reconstruction_product(self, B: Array | Tensor, C: Array) -> Array:
        assert isinstance(B, np.ndarray), "codes of rows on the CPU"
        return outer(kernels.decode(B, C), self.X)
