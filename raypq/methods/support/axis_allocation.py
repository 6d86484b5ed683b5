"""Allocation of principal axes to sub-codebooks of balanced variance (OPQ)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq.methods.support.closed_form import Matrix


def balanced_axes(covariance: Matrix, M: int, rank: int | None = None) -> Matrix:
    """Principal axes [D, r] of a second moment [r, r], dealt out to M equal parts.

    All parts get equal products of variances, as in parametric OPQ; D is ``rank`` (the axes of
    most variance; default all) and the zero rows that pad it to a multiple of M.
    """
    variance, axes = np.linalg.eigh(covariance)
    order = np.argsort(variance)[::-1][:rank]
    short = -len(order) % M
    turn = np.pad(fix_signs(axes.T[order]), ((0, short), (0, 0)))
    return turn[allocate(np.pad(variance[order], (0, short)), M)]


def allocate(variance: NDArray[np.float64], M: int) -> NDArray[np.int64]:
    """Deals D axes (largest variance first) to M equal parts, each to the part whose product of
    variances is smallest and that has room; returns the order of axes, part by part."""
    D = len(variance)
    logs = np.log(np.maximum(variance, 1e-9 * max(float(variance.max()), 1e-300)))
    logs = logs - logs.min() + 1.0  # positive, so that an axis never makes a part smaller
    parts: list[list[int]] = [[] for _ in range(M)]
    load = np.zeros(M)
    for axis in range(D):
        load_now = np.where([len(part) < D // M for part in parts], load, np.inf)
        m = int(np.argmin(load_now))
        parts[m].append(axis)
        load[m] += logs[axis]
    return np.array([axis for part in parts for axis in part], dtype=np.int64)


def fix_signs(P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows with their largest entry positive: an eigenvector's sign is the library's whim."""
    largest = np.take_along_axis(P, np.argmax(np.abs(P), axis=1)[:, None], axis=1)
    return P * np.where(largest < 0, -1.0, 1.0)
