"""Normalisation of features, and the range of their lengths, on the CPU.

``device_normalisation`` does the same on a torch device.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raypq.errors import InputError
from raypq.methods.base import Normalise

Attributes = Literal["none", "unit", "centre-unit", "zscore", "zscore-unit"]

SMALL = 1e-30  # below it a float32 sum of squares may have lost some to underflow
_LONGEST = 1.8e19  # about the largest length whose square float32 can hold


def normalise(
    X: NDArray[np.float32],
    scheme: Normalise | Attributes,
    mean: NDArray[np.float32] | None = None,
    inverse_std: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Features [n, dx] after z-scoring or centring, and/or scaling to unit length; a zero row stays
    zero.

    Computed in float32, and again in float64 for rows that overflow or underflow in float32.
    """
    if scheme.startswith(("zscore", "centre")):
        assert mean is not None, "z-scoring and centring need the mean"
        inverse = np.float32(1.0) if scheme.startswith("centre") else inverse_std
        assert inverse is not None, "z-scoring needs 1/std"
        with np.errstate(over="ignore"):
            scored = (X - mean) * inverse
        far = ~np.isfinite(scored).all(axis=1)
        if far.any():
            scored[far] = (X[far].astype(np.float64) - mean) * inverse
        X = scored
    if scheme.endswith("unit"):
        with np.errstate(over="ignore", under="ignore"):
            squares = np.einsum("nd,nd->n", X, X)
        far = ~((squares > SMALL) & np.isfinite(squares))
        length: NDArray[np.float32] = np.sqrt(squares)
        length[far] = 1.0
        unit: NDArray[np.float32] = X / length[:, None]
        if far.any():
            wide = X[far].astype(np.float64)
            exact = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
            unit[far] = wide / np.where(exact > 0, exact, 1.0)
        X = unit
    return X


def check_range(
    U: NDArray[np.float32], X: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Returns rows U [n, D] unchanged if their squared lengths fit float32.

    Args:
        X: the features that they are made of [n, dx], for errors.

    Raises:
        InputError: the squared length of a row overflows float32, or is NaN.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", U, U)
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        if not np.isfinite((U if X is None else X)[bad[0]]).all():
            raise InputError(
                f"features, row {bad[0]}" if X is not None else "features, as they are embedded",
                expected="finite values",
                found=f"NaN or Inf ({len(bad)} such row(s) in a batch)",
            )
        largest = float(np.abs(U[bad[0]].astype(np.float64)).max())
        raise InputError(
            "features, as they are embedded",
            expected=f"rows no longer than {_LONGEST:.2g}, whose squares float32 can hold",
            found=f"{len(bad)} longer row(s) in a batch, one with a value of {largest:.3g}; scale "
            "the features down, or train with normalise=unit or zscore",
        )
    return U
