"""The model of every method whose embeddings are linear: PQ, OPQ and PQZSL."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.config import Precision
from raypq.errors import ModelError
from raypq.methods.base import Model, Normalise

_TINY = 1e-12


def normalise(
    X: NDArray[np.float32],
    how: Normalise,
    mean: NDArray[np.float32] | None = None,
    inverse_std: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Features [n, dx] after z-scoring and/or scaling to unit length; a zero row stays zero."""
    if how.startswith("zscore"):
        assert mean is not None, "z-scoring needs the mean"
        assert inverse_std is not None, "z-scoring needs 1/std"
        X = (X - mean) * inverse_std
    if how.endswith("unit"):
        length = np.sqrt(np.einsum("nd,nd->n", X, X))[:, None]
        X = X / np.maximum(length, np.float32(_TINY))
    return X


def product(
    X: NDArray[np.float32], P: NDArray[np.float32], precision: Precision = "fp32"
) -> NDArray[np.float32]:
    """X Pᵀ [n, b] for X [n, a] and P [b, a], through torch's matrix product.

    Of row-major arrays always: another layout is summed in another order, and a model would embed
    otherwise after loading than before saving.
    """
    if not len(X):
        return np.empty((0, len(P)), np.float32)
    left = torch.from_numpy(np.ascontiguousarray(X))
    right = torch.from_numpy(np.ascontiguousarray(P))
    if precision == "bf16":
        return (left.bfloat16() @ right.bfloat16().T).float().numpy()
    return (left @ right.T).numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel(Model):
    """f(x) = P·norm(x) and g(a) = Q·norm(a).

    Tensors: ``C`` [M, K, d]; ``P`` [D, dx] (absent: identity); ``Q`` [D, da] (absent: classes are
    given in feature space); ``mean``, ``inverse_std`` [dx] where features are z-scored, and
    ``class_mean``, ``class_inverse_std`` [da] where class embeddings are.
    """

    def embed(
        self, X: NDArray[np.float32], *, precision: Precision = "fp32"
    ) -> NDArray[np.float32]:
        if X.shape[1] != self.dx:
            raise ModelError(
                f"{self.method} model",
                expected=f"features of width {self.dx}",
                found=str(X.shape[1]),
            )
        tensors = self.tensors
        X = normalise(X, self.settings.normalise, tensors.get("mean"), tensors.get("inverse_std"))
        return product(X, tensors["P"], precision) if "P" in tensors else X

    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        width = self.dx if self.da is None else self.da
        if E.shape[1] != width:
            hint = (
                ""
                if self.da
                else " (this method has no class projection: classes are vectors of features)"
            )
            raise ModelError(
                f"{self.method} model",
                expected=f"class embeddings of width {width}{hint}",
                found=str(E.shape[1]),
            )
        bias = np.zeros(len(E))
        if self.da is None:
            return self.embed(E), bias
        how: Normalise = getattr(self.settings, "attributes", "none")
        tensors = self.tensors
        A = normalise(E, how, tensors.get("class_mean"), tensors.get("class_inverse_std"))
        return product(A, tensors["Q"]), bias
