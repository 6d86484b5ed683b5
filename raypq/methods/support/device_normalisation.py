"""Normalisation of features, and the range of their lengths, on a torch device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raypq.methods.base import Normalise
from raypq.methods.support.normalisation import SMALL, check_range


def normalise_on(
    X: Tensor,
    scheme: Normalise,
    mean: Tensor | None,
    inverse_std: Tensor | None,
) -> Tensor:
    """As ``normalisation.normalise`` for features X [n, dx] on any torch device."""
    if scheme.startswith("zscore"):
        assert mean is not None, "z-scoring needs the mean"
        assert inverse_std is not None, "z-scoring needs 1/std"
        scored = (X - mean) * inverse_std
        far = ~torch.isfinite(scored).all(dim=1)
        if far.any():
            scored[far] = ((X[far].double() - mean) * inverse_std).float()
        X = scored
    if scheme.endswith("unit"):
        length = torch.linalg.vector_norm(X, dim=1, dtype=torch.float64)
        length = torch.where(length > 0, length, 1.0)[:, None]
        narrow = length.float()
        unit = X / narrow
        far = ~((narrow[:, 0] > SMALL) & torch.isfinite(narrow[:, 0]))
        if far.any():
            unit[far] = (X[far].double() / length[far]).float()
        X = unit
    return X


def in_range(U: Tensor, X: Tensor) -> Tensor:
    """As ``normalisation.check_range`` for rows U [n, D], made of features X [n, dx], on any torch
    device.

    Raises:
        InputError: the squared length of a row overflows float32, or is NaN.
    """
    squares = torch.linalg.vector_norm(U, dim=1, dtype=torch.float64).square()
    if not (squares <= float(np.finfo(np.float32).max)).all():  # not for NaN, either
        check_range(U.float().cpu().numpy(), X.cpu().numpy())
    return U
