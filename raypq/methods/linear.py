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


def encode_on(
    device: str,
    X: NDArray[np.float32],
    P: NDArray[np.float32] | None,
    C: NDArray[np.float32],
    precision: Precision,
) -> NDArray[np.uint8]:
    """Projection and assignment in one go on a torch device: features cross over once.

    Page-locked memory lets the copy run beside what the device still computes.
    """
    from raypq.kernels import torch as kernels

    x = torch.from_numpy(np.ascontiguousarray(X))
    x = (x.pin_memory() if device.startswith("cuda") else x).to(device, non_blocking=True)
    if P is not None:
        p = torch.from_numpy(np.ascontiguousarray(P)).to(device)
        x = (x.bfloat16() @ p.bfloat16().T).float() if precision == "bf16" else x @ p.T
    return kernels.encode(x, C, device=device)


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
        X = self._normalised(X)
        return product(X, self.tensors["P"], precision) if "P" in self.tensors else X

    def encode(
        self, X: NDArray[np.float32], *, device: str = "cpu", precision: Precision = "fp32"
    ) -> NDArray[np.uint8]:
        if device == "cpu":
            return super().encode(X, precision=precision)
        return encode_on(device, self._normalised(X), self.tensors.get("P"), self.C, precision)

    def _normalised(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        if X.shape[1] != self.dx:
            raise ModelError(
                f"{self.method} model",
                expected=f"features of width {self.dx}",
                found=str(X.shape[1]),
            )
        tensors = self.tensors
        return normalise(
            X, self.settings.normalise, tensors.get("mean"), tensors.get("inverse_std")
        )

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
