"""Second moments, means and scales of rows, summed in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq.errors import InputError
from raypq.methods.base import Array

# Values of each class from which a sum by class is faster than ``reduceat``; the bits are the same.
_VALUES_OF_CLASS = 400
PRODUCT_ROWS = 1024  # rows of a float32 product, before it is added to a float64 sum


def gram(X: NDArray[np.float32]) -> NDArray[np.float64]:
    """XᵀX [dx, dx] of rows X, float64."""
    return outer(X, X)


def scale(n: Array, x: Array, xx: Array) -> dict[str, Array]:
    """Mean and 1/std (1 for a constant dimension) from n, Σx and Σx²; float32 [dx].

    Raises:
        InputError: the 1/std of a dimension overflows float32.
    """
    mean = x / n
    variance = np.maximum(xx / n - mean**2, 0.0)
    constant = variance <= 1e-12 * np.maximum(mean**2, 1e-300)
    inverse = 1.0 / np.sqrt(np.where(constant, 1.0, variance))
    faint = np.flatnonzero(inverse > np.finfo(np.float32).max)
    if len(faint):
        raise InputError(
            f"dimension {faint[0]} of the features or class embeddings",
            expected="a standard deviation of at least 3e-39, to z-score in float32",
            found=f"{1 / inverse[faint[0]]:.3g} ({len(faint)} such dimension(s)); scale the values "
            "up, or use normalise=unit or none",
        )
    return {"mean": mean.astype(np.float32), "inverse_std": inverse.astype(np.float32)}


def outer(A: NDArray[np.float32], X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Aᵀ X [a, x] of rows A [n, a] and X [n, x]: float32 products of blocks, summed in float64."""
    total = np.zeros((A.shape[1], X.shape[1]))
    for start in range(0, len(X), PRODUCT_ROWS):
        rows = slice(start, start + PRODUCT_ROWS)
        with np.errstate(over="ignore", invalid="ignore"):
            part = A[rows].T @ X[rows]
        if not np.isfinite(part).all():  # overflow in float32
            part = A[rows].astype(np.float64).T @ X[rows].astype(np.float64)
        total += part
    return total


def class_sums(X: NDArray[np.float32], y: NDArray[np.int32], L: int) -> NDArray[np.float64]:
    """XYᵀ [dx, L]: the sum of the rows of each class, float64."""
    order = np.argsort(y, kind="stable")
    S = np.zeros((L, X.shape[1]))
    classes, starts = np.unique(y[order], return_index=True)
    if X.size > _VALUES_OF_CLASS * len(classes):
        for t, rows in zip(classes, np.split(order, starts[1:]), strict=True):
            np.sum(X[rows], axis=0, dtype=np.float64, out=S[t])
    elif len(y):
        S[classes] = np.add.reduceat(X[order].astype(np.float64), starts, axis=0)
    return S.T


def check_embeddings(A: NDArray[np.float32]) -> None:
    """Refuses class embeddings [L, da] that are all the same.

    Raises:
        InputError: they are.
    """
    if len(A) > 1 and np.ptp(A.astype(np.float64), axis=0).max() <= 1e-6 * np.abs(A).max():
        raise InputError(
            "class embeddings", expected="classes that differ", found="all of them alike"
        )
