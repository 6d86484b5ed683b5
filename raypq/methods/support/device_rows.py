"""Rows of one batch on a torch device: float32 products of blocks of rows, summed in float64.

Sums have a fixed order, as those of ``rows``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq.kernels.device import exact_float32, on_device
from raypq.kernels.torch import Codebooks
from raypq.methods.base import Array, Normalise, Rows, Sums
from raypq.methods.support.device_normalisation import in_range, normalise_on
from raypq.methods.support.normalisation import check_range
from raypq.methods.support.statistics import PRODUCT_ROWS

_WIDE_ROWS = 4096  # rows that are float64 at a time


class Parameters:
    """Arrays of a state on a device; each is copied once."""

    def __init__(self, device: str) -> None:
        exact_float32(device)
        self.device = device
        self._lock = threading.Lock()
        self._kept: dict[int, tuple[Array, Tensor | Codebooks]] = {}  # by identity of the array

    def tensor(self, array: Array) -> Tensor:
        """The array as a tensor on the device."""
        with self._lock:
            kept = self._kept.get(id(array))
            if kept is None or not isinstance(kept[1], Tensor):
                moved = torch.from_numpy(np.array(array)).to(self.device)
                kept = self._kept[id(array)] = array, moved
        assert isinstance(kept[1], Tensor)
        return kept[1]

    def codebooks(self, C: Array) -> Codebooks:
        """Codebooks C [M, K, d], ready to assign rows."""
        with self._lock:
            kept = self._kept.get(id(C))
            if kept is None or not isinstance(kept[1], Codebooks):
                kept = self._kept[id(C)] = C, Codebooks.on(self.device, C)
        assert isinstance(kept[1], Codebooks)
        return kept[1]


@dataclass(frozen=True)
class DeviceRows(Rows):
    """Rows X [n, dx], float32, on a torch device."""

    X: Tensor
    parameters: Parameters

    @classmethod
    def of(cls, X: NDArray[np.floating[Any]], parameters: Parameters) -> DeviceRows:
        """Rows copied to the device, float16 as it is, and widened there.

        Raises:
            InputError: NaN or Inf.
        """
        x = on_device(X, parameters.device).float()
        if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
            check_range(x.cpu().numpy(), x.cpu().numpy())
        return cls(x, parameters)

    def __len__(self) -> int:
        return len(self.X)

    def chosen(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.X[torch.from_numpy(index).to(self.X.device)].cpu().numpy()

    def _of(self, X: Tensor) -> DeviceRows:
        return DeviceRows(X, self.parameters)

    def normalised(
        self, scheme: Normalise, mean: Array | None, inverse_std: Array | None
    ) -> DeviceRows:
        given = [None if array is None else self.parameters.tensor(array) for array in
                 (mean, inverse_std)]  # fmt: skip
        return self._of(in_range(normalise_on(self.X, scheme, *given), self.X))

    def projected(self, P: Array) -> DeviceRows:
        return self._of(in_range(self.X @ self.parameters.tensor(P).T, self.X))

    def total(self) -> Tensor:
        return self.X.sum(dim=0, dtype=torch.float64)

    def squares(self) -> Tensor:
        total = self.X.new_zeros(self.X.shape[1], dtype=torch.float64)
        for x in torch.split(self.X, _WIDE_ROWS):
            total += x.double().square().sum(dim=0)
        return total

    def gram(self) -> Tensor:
        return self._outer(self.X)

    def class_sums(self, y: NDArray[np.int32], L: int) -> Tensor:
        of_class = torch.from_numpy(y.astype(np.int64)).to(self.X.device)
        order = torch.argsort(of_class, stable=True)
        S = self.X.new_zeros((L, self.X.shape[1]), dtype=torch.float64)
        for chosen in torch.split(order, _WIDE_ROWS):
            lengths = torch.bincount(of_class[chosen], minlength=L)
            # One thread adds the rows of a segment, in order.
            S += torch.segment_reduce(
                self.X[chosen].double(), "sum", lengths=lengths, axis=0, initial=0.0, unsafe=True
            )
        return S.T

    def codes(self, C: Array) -> Tensor:
        return self.parameters.codebooks(C).assign(self.X)

    def codeword_sums(self, B: Array | Tensor, C: Array) -> tuple[Sums, Sums, Sums]:
        assert isinstance(B, Tensor), "codes of rows on a device"
        book = self.parameters.codebooks(C)
        M, K, d = C.shape
        # Codes as a matrix of zeros and ones: one product gives count, Σx and Σ‖x − c‖².
        sums = self.X.new_zeros((M, K, d + 2), dtype=torch.float64)
        codeword = torch.arange(K, dtype=B.dtype, device=B.device)
        for x, b in self._blocks(B):
            u = x.reshape(-1, M, d).transpose(0, 1)  # [M, n, d]
            error = (u - book.decode(b).reshape(-1, M, d).transpose(0, 1)).double().square().sum(2)
            values = torch.cat([u, torch.ones_like(u[:, :, :1]), error.float()[:, :, None]], dim=2)
            chosen = (b.T[:, None, :] == codeword[None, :, None]).float()  # [M, K, n]
            sums += chosen @ values
        return sums[:, :, d], sums[:, :, :d], sums[:, :, d + 1]

    def reconstruction_product(self, B: Array | Tensor, C: Array) -> Tensor:
        assert isinstance(B, Tensor), "codes of rows on a device"
        book = self.parameters.codebooks(C)
        D = C.shape[0] * C.shape[2]
        total = self.X.new_zeros((D, self.X.shape[1]), dtype=torch.float64)
        for x, b in self._blocks(B):
            total += book.decode(b).T @ x
        return total

    def _outer(self, A: Tensor) -> Tensor:
        total = A.new_zeros((A.shape[1], self.X.shape[1]), dtype=torch.float64)
        for x, a in self._blocks(A):
            total += a.T @ x
        if torch.isfinite(total).all():
            return total
        total.zero_()  # a product overflowed in float32
        for x, a in self._blocks(A):
            total += a.double().T @ x.double()
        return total

    def _blocks(self, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(torch.split(self.X, PRODUCT_ROWS), torch.split(other, PRODUCT_ROWS), strict=True)
