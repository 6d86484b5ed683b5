"""Allocation of principal axes to sub-codebooks of balanced variance (OPQ)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq.methods.support.closed_form import Matrix


def balanced_axes(covariance: Matrix, M: int, rank: int | None = None) -> Matrix:
    """Principal axes [D, r] of a second moment [r, r], allocated to M equal parts.

    All parts get about equal products of variances, as in parametric OPQ. The ``rank`` axes of
    largest variance (default: all) are padded with zero rows to D, a multiple of M.
    """
    variance, axes = np.linalg.eigh(covariance)
    order = np.argsort(variance)[::-1][:rank]
    padding = -len(order) % M
    padded = np.pad(fix_signs(axes.T[order]), ((0, padding), (0, 0)))
    return padded[allocate(np.pad(variance[order], (0, padding)), M)]


def allocate(variance: NDArray[np.float64], M: int) -> NDArray[np.int64]:
    """Greedy allocation of D axes (largest variance first) to M equal parts: each to the part with
    the smallest product of variances that has room. Returns the order of axes, part by part."""
    D = len(variance)
    logs = np.log(np.maximum(variance, 1e-9 * max(float(variance.max()), 1e-300)))
    logs = logs - logs.min() + 1.0  # positive, so that an axis never makes a part smaller
    parts: list[list[int]] = [[] for _ in range(M)]
    load = np.zeros(M)
    for axis in range(D):
        with_room = np.where([len(part) < D // M for part in parts], load, np.inf)
        m = int(np.argmin(with_room))
        parts[m].append(axis)
        load[m] += logs[axis]
    return np.array([axis for part in parts for axis in part], dtype=np.int64)


def fix_signs(P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows with their largest entry positive: signs of eigenvectors depend on the library."""
    largest = np.take_along_axis(P, np.argmax(np.abs(P), axis=1)[:, None], axis=1)
    return P * np.where(largest < 0, -1.0, 1.0)
