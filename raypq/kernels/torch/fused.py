"""Kernels in Triton for GPUs, for what takes several passes over large arrays in plain torch.

They are used where Triton is installed, as it is with torch for CUDA. Where one cannot be compiled,
a warning says so, and plain torch computes the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from raypq.kernels.tables import ACCUMULATORS

_LARGEST_PART = 64  # dimensions of a sub-space, up to which codewords fit the registers
_ROWS = _WORDS = 64  # vectors and codewords of one block
_PAIRS = 32
_GRID = 65_535  # largest second dimension of a grid


def assigns(book: Tensor) -> bool:
    """Whether ``two_nearest`` is used for codebooks [M, K, d]."""
    M, _, d = book.shape
    return d <= _LARGEST_PART and M <= _GRID and _usable(str(book.device), _try_two_nearest)


def sums_pairs(x: Tensor) -> bool:
    """Whether ``pair_sums`` is used on the device of x."""
    return _usable(str(x.device), _try_pair_sums)


def two_nearest(U: Tensor, book: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best and the second score ⟨u, c⟩ − ‖c‖²/2 of vectors U [n, M·d] in each sub-space, and
    the codeword of the best, all [M, n]; products and sums are float32.

    Each vector and codebook is read once, and scores stay in registers.
    """
    kernels = _kernels()
    assert kernels is not None, "Triton is installed"
    M, K, d = book.shape
    U = U if U.stride(1) == 1 else U.contiguous()
    top, second = (torch.empty((M, len(U)), device=U.device) for _ in range(2))
    code = torch.empty((M, len(U)), dtype=torch.int64, device=U.device)
    part = max(16, 1 << (d - 1).bit_length())  # a product of blocks needs 16, and a power of two
    kernels.two_nearest[(-(-len(U) // _ROWS), M)](
        U, book, half.float(), top, second, code, len(U), U.stride(0),
        K=K, d=d, PART=part, ROWS=_ROWS, WORDS=_WORDS,
    )  # fmt: skip
    return top, second, code


def pair_sums(x: Tensor, w: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The partial sums of ⟨x[i], w[j]⟩ in the order of ``tables`` [p, 8], float64, of vectors
    x [n, D] and w [m, D]; no row is copied."""
    kernels = _kernels()
    assert kernels is not None, "Triton is installed"
    out = torch.empty((len(i), ACCUMULATORS), dtype=torch.float64, device=x.device)
    if len(i):
        kernels.pair_sums[(-(-len(i) // _PAIRS),)](
            x, w, i.contiguous(), j.contiguous(), out, len(i), x.stride(0), w.stride(0),
            x.shape[1], PAIRS=_PAIRS, LANES=ACCUMULATORS,
        )  # fmt: skip
    return out


@cache
def _usable(device: str, attempt: Callable[[str], None]) -> bool:
    """Whether a kernel works on a device, by a small attempt."""
    if torch.device(device).type != "cuda" or _kernels() is None:
        return False
    try:
        attempt(device)
    except Exception as error:  # compilers fail in many ways, each with an error of its own
        warnings.warn(
            f"a Triton kernel cannot be used on {device}, plain torch is slower there: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            RuntimeWarning,
            stacklevel=4,
        )
        return False
    return True


def _try_two_nearest(device: str) -> None:
    book = torch.eye(4, device=device)[None]
    _, _, code = two_nearest(torch.eye(4, device=device), book, torch.zeros(1, 4, device=device))
    if code.tolist() != [[0, 1, 2, 3]]:
        raise ArithmeticError("wrong codes of unit vectors")


def _try_pair_sums(device: str) -> None:
    x, i = torch.eye(9, device=device), torch.arange(9, device=device)
    if not torch.equal(pair_sums(x, x, i, i).sum(1), torch.ones_like(i).double()):
        raise ArithmeticError("wrong products of unit vectors")


@cache
def _kernels() -> ModuleType | Any | None:
    try:
        import triton  # noqa: F401
    except ImportError:
        return None
    from raypq.kernels.torch import _triton

    return _triton
