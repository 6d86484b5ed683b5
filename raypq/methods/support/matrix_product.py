"""The matrix product of embeddings, which codes on disk depend on to the last bit."""

from __future__ import annotations

import warnings
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Precision

# Features are read-only views of Arrow buffers; a product only reads them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Scalar = TypeVar("Scalar", bound=np.generic)

_ALIGNMENT = 16  # bytes


def aligned(X: NDArray[Scalar]) -> NDArray[Scalar]:
    """X, row-major and at an address that is a multiple of 16; a copy if it is not.

    In torch's products of few rows, the order of a sum depends on both. Arrays that another process
    sent are at multiples of 8 only.
    """
    contiguous = np.ascontiguousarray(X)
    return contiguous if contiguous.ctypes.data % _ALIGNMENT == 0 else contiguous.copy()


def product(
    X: NDArray[np.float32], P: NDArray[np.float32], precision: Precision = "fp32"
) -> NDArray[np.float32]:
    """X Pᵀ [n, b] for X [n, a] and P [b, a], through torch's matrix product.

    Always of row-major, aligned arrays: others are summed in another order, so that embeddings
    could differ after a model is saved and loaded, or by process.
    """
    if not len(X):
        return np.empty((0, len(P)), np.float32)
    # Here, since torch takes seconds to import, and most processes compute no such product. NumPy's
    # sums have another order: codes of stores would no longer be those of the same model.
    import torch

    kernels.apply_thread_limit()
    left, right = torch.from_numpy(aligned(X)), torch.from_numpy(aligned(P))
    if precision == "bf16":
        return (left.bfloat16() @ right.bfloat16().T).float().numpy()
    return (left @ right.T).numpy()
