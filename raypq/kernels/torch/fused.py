"""Kernels in Triton for GPUs, for what takes several passes over large arrays in plain torch.

They are used where Triton is installed, as it is with torch for CUDA. Where one cannot be compiled,
a warning says so, and plain torch computes the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from raypq.kernels.tables import ACCUMULATORS

_LARGEST_PART = 64  # dimensions of a sub-space, up to which codewords fit the registers
_ROWS = _WORDS = 64  # vectors and codewords of one block
_PAIRS = 32
_GRID = 65_535  # largest second dimension of a grid
_broken: set[str] = set()  # kernels that cannot be compiled here


def two_nearest(U: Tensor, book: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The best and the second score ⟨u, c⟩ − ‖c‖²/2 of vectors U [n, M·d] in each sub-space, and
    the codeword of the best, all [M, n]; products and sums are float32. None where the kernel
    cannot be used.

    Each vector and codebook is read once, and scores stay in registers.
    """
    M, K, d = book.shape
    kernels = _kernels(str(U.device))
    if kernels is None or d > _LARGEST_PART or M > _GRID or "two_nearest" in _broken:
        return None
    U = U if U.stride(1) == 1 else U.contiguous()
    top, second = (torch.empty((M, len(U)), device=U.device) for _ in range(2))
    code = torch.empty((M, len(U)), dtype=torch.int64, device=U.device)
    part = max(16, 1 << (d - 1).bit_length())  # a product of blocks needs 16, and a power of two

    def launch() -> None:
        kernels.two_nearest[(-(-len(U) // _ROWS), M)](
            U, book, half.float(), top, second, code, len(U), U.stride(0),
            K=K, d=d, PART=part, ROWS=_ROWS, WORDS=_WORDS,
        )  # fmt: skip

    return (top, second, code) if _launched("two_nearest", launch) else None


def pair_sums(x: Tensor, w: Tensor, i: Tensor, j: Tensor) -> Tensor | None:
    """The partial sums of ⟨x[i], w[j]⟩ in the order of ``tables`` [p, 8], float64, of vectors
    x [n, D] and w [m, D]; no row is copied. None where the kernel cannot be used."""
    kernels = _kernels(str(x.device))
    if kernels is None or "pair_sums" in _broken:
        return None
    out = torch.empty((len(i), ACCUMULATORS), dtype=torch.float64, device=x.device)

    def launch() -> None:
        kernels.pair_sums[(-(-len(i) // _PAIRS),)](
            x, w, i.contiguous(), j.contiguous(), out, len(i), x.stride(0), w.stride(0),
            x.shape[1], PAIRS=_PAIRS, LANES=ACCUMULATORS,
        )  # fmt: skip

    return out if not len(i) or _launched("pair_sums", launch) else None


def _launched(name: str, launch: Callable[[], None]) -> bool:
    """Whether a kernel was launched; one that cannot be compiled is not tried again."""
    try:
        launch()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways, each with an error of its own
        _broken.add(name)
        warnings.warn(
            f"the Triton kernel {name} cannot be used, plain torch is slower: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            RuntimeWarning,
            stacklevel=4,
        )
        return False
    return True


@cache
def _kernels(device: str) -> Any:  # a module, or None where there is no GPU or no Triton
    if torch.device(device).type != "cuda":
        return None
    try:
        import triton  # noqa: F401
    except ImportError:
        return None
    from raypq.kernels.torch import _triton

    return _triton
