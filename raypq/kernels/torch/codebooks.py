"""Codebooks on a torch device: vectors to codes and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq.kernels import memory
from raypq.kernels.device import exact_float32, synchronise
from raypq.kernels.tables import check_codebooks
from raypq.kernels.torch import fused
from raypq.kernels.torch.bounds import EPS, HUGE, TINY

_CACHE = 8 << 20  # bytes of a block of scores that fits the cache of a CPU core
_ASSIGN_ROWS = 8192  # rows that are assigned at a time on a device


@dataclass(frozen=True)
class Codebooks:
    """Codebooks on a device, ready to assign vectors to codewords.

    Attributes:
        book: C [M, K, d], float32. half: ‖c‖² / 2 [M, K], float64, in the order of ``tables``.
        largest: the largest ‖c‖ of each sub-codebook [M, 1], float64.
    """

    book: Tensor
    half: Tensor
    largest: Tensor

    @classmethod
    def on(cls, device: str, C: NDArray[np.floating]) -> Codebooks:
        """Codebooks C [M, K, d] on a device."""
        C = np.ascontiguousarray(C, dtype=np.float32)
        check_codebooks(C)
        exact_float32(device)
        book = torch.from_numpy(np.array(C)).to(device)
        half = torch.zeros(book.shape[:2], dtype=torch.float64, device=book.device)
        for j in range(C.shape[2]):
            half += book[:, :, j].double() ** 2
        half *= 0.5
        largest = (2 * half.amax(1)).sqrt()[:, None]
        synchronise(device)  # other streams use them, too
        return cls(book, half, largest)

    def assign(self, U: Tensor) -> Tensor:
        """Codes [n, M], uint8, of vectors U [n, M·d] on the device; as ``reference.encode``."""
        M, K, _ = self.book.shape
        device = self.book.device
        rows = max(1, min(128, _CACHE // (4 * M * K))) if device.type == "cpu" else _ASSIGN_ROWS
        codes = torch.empty((len(U), M), dtype=torch.uint8, device=device)

        def assign(part: slice) -> None:
            with torch.autocast(device.type, enabled=False):  # the bound is of float32 products
                codes[part] = self._assign(U[part])

        memory.in_parts(len(U), rows, str(device), assign)
        return codes

    def _assign(self, U: Tensor) -> Tensor:
        book, half = self.book, self.half
        M, K, d = book.shape
        u = U.reshape(-1, M, d).transpose(0, 1)
        found = fused.two_nearest(U, book, half) or _two_nearest(u, book, half)
        top, second, code = found
        length = torch.linalg.vector_norm(u, dim=2, dtype=torch.float64)
        size = length * self.largest + self.largest**2
        error = (d + 4) * (EPS * size + TINY)
        # Negated, so that NaN (from overflow) counts as close.
        close = ~((second < top - 2 * error) & (size < HUGE))
        m, i = close.nonzero().unbind(1)
        for chunk in memory.parts(len(m), 8 * K, str(book.device)):
            of_book, row = m[chunk], i[chunk]
            part = torch.zeros((len(row), K), dtype=torch.float64, device=U.device)
            for j in range(d):
                part += u[of_book, row, j].double()[:, None] * book[of_book, :, j].double()
            code[of_book, row] = _first_max(part - half[of_book])
        return code.T.to(torch.uint8)

    def decode(self, B: Tensor) -> Tensor:
        """Codewords [n, M·d] of codes B [n, M]."""
        return decode(B, self.book)


def decode(B: Tensor, book: Tensor) -> Tensor:
    """Codewords [n, M·d] of codes B [n, M] by codebooks [M, K, d] on the same device."""
    M, K, d = book.shape
    flat = B.long() + K * torch.arange(M, device=B.device)
    return book.reshape(M * K, d)[flat].reshape(len(B), M * d)


def encode(
    U: NDArray[np.floating] | Tensor, C: NDArray[np.floating], *, device: str = "cpu"
) -> NDArray[np.uint8]:
    """Codes [n, M] of vectors U [n, M·d], an array or a tensor (on the device, too).

    Equal to ``reference.encode``.
    """
    books = Codebooks.on(device, C)
    if not isinstance(U, Tensor):
        U = torch.from_numpy(np.ascontiguousarray(U, dtype=np.float32))
    parts = [books.assign(part.to(device)).cpu() for part in torch.split(U, _ASSIGN_ROWS)]
    codes: NDArray[np.uint8] = torch.cat(parts).numpy()
    return codes


def _two_nearest(u: Tensor, book: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best and the second score ⟨u, c⟩ − ‖c‖²/2 of vectors u [M, n, d], and the codeword of the
    best, all [M, n]."""
    score = torch.baddbmm(half.float()[:, None, :], u, book.transpose(1, 2), beta=-1.0)
    top, code = score.max(2)
    return top, score.scatter_(2, code[:, :, None], -torch.inf).amax(2), code


def _first_max(score: Tensor) -> Tensor:
    # As NumPy's argmax: the first NaN, else the first maximum, which torch does not promise.
    column = torch.arange(score.shape[1], device=score.device)
    best = (score == score.amax(1, keepdim=True)) | score.isnan()
    best &= score.isnan() | ~score.isnan().any(1, keepdim=True)
    return torch.where(best, column, score.shape[1]).amin(1)
