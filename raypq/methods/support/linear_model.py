"""Models with a linear embedding: PQ, OPQ, PQZSL and others."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Metric, Precision
from raypq.methods.base import Model
from raypq.methods.support.matrix_product import product
from raypq.methods.support.normalisation import Attributes, check_range, normalise

if TYPE_CHECKING:
    from raypq.methods.support.resident_model import ResidentModel

_moving = threading.Lock()  # parameters are copied to a device once


def class_scaling(scheme: Attributes) -> tuple[str, ...]:
    """The tensors that normalise class embeddings."""
    if scheme.startswith("zscore"):
        return ("class_mean", "class_inverse_std")
    return ("class_mean",) if scheme.startswith("centre") else ()


def scaled_by_spread(V: NDArray[np.float32], moment: NDArray[np.floating]) -> NDArray[np.float32]:
    """Prototypes V [T, D] divided by the root mean square of their scores ⟨u, v⟩ over images u.

    Args:
        moment: second moment of the images E[uuᵀ] [D, D]. A prototype whose scores are all zero
            stays as it is.
    """
    wide = V.astype(np.float64)
    spread = np.sqrt(np.maximum(np.einsum("td,td->t", wide @ moment.astype(np.float64), wide), 0.0))
    return (wide / np.where(spread > 0, spread, 1.0)[:, None]).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel(Model):
    """f(x) = P·norm(x) and g(a) = Q·norm(a).

    Tensors: ``C`` [M, K, d]; ``P`` [D, dx] (absent: identity); ``Q`` [D, da] (absent: classes are
    given in feature space); ``mean``, ``inverse_std`` [dx] where features are z-scored, and
    ``class_mean``, ``class_inverse_std`` [da] where class embeddings are. Where the scores of a
    class are divided by their spread: ``moment`` [D, D], the second moment of training images in
    the space of prototypes. Where codes are fitted to classes in feature space: ``Q`` [D, dx] and
    ``image_mean`` [dx] (see ``raypq.methods.support.aligned_space``).
    """

    legacy_settings: ClassVar[Mapping[str, Any]] = {"rows_per_codeword": 0}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        shapes = dict(super().shapes)
        if "P" in self.tensors or self.dx != self.D:
            shapes["P"] = (self.D, self.dx)
        if self.da is None:
            if "image_mean" in self.tensors:
                shapes |= {"Q": (self.D, self.dx), "P": (self.D, self.dx)}
                shapes["image_mean"] = (self.dx,)
            return shapes
        W = self.tensors.get("W")
        inner = self.D if W is None or W.ndim != 2 else W.shape[1]
        if W is not None:
            shapes["W"] = (self.D, inner)
        shapes["Q"] = (inner, self.da)
        if "moment" in self.tensors:
            shapes["moment"] = (inner, inner)
        shapes |= dict.fromkeys(
            class_scaling(getattr(self.settings, "attributes", "none")), (self.da,)
        )
        return shapes

    @property
    def weights_axes_by_classes(self) -> bool:
        return "image_mean" in self.tensors or "W" in self.tensors

    def embed(
        self, X: NDArray[np.float32], *, precision: Precision = "fp32"
    ) -> NDArray[np.float32]:
        X = self._features(X)
        U = self._normalised(X)
        return check_range(
            product(U, self.tensors["P"], precision) if "P" in self.tensors else U, X
        )

    def encode(
        self, X: NDArray[np.float32], *, device: str = "cpu", precision: Precision = "fp32"
    ) -> NDArray[np.uint8]:
        if device == "cpu":
            return super().encode(X, precision=precision)
        kernels.check_device(device)
        X = np.asarray(X)
        X = X if X.dtype == np.float16 and X.shape[1:] == (self.dx,) else self._features(X)
        return self._resident_on(device).encode(X, precision)

    def _resident_on(self, device: str) -> ResidentModel:
        """The parameters on a device, cached."""
        from raypq.methods.support.resident_model import ResidentModel  # torch

        with _moving:
            cache: dict[str, ResidentModel] = self.__dict__.setdefault("_moved", {})
            if device not in cache:
                cache[device] = ResidentModel.of(self.tensors, self.settings.normalise, device)
            return cache[device]

    def _normalised(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        X = self._features(X)
        tensors = self.tensors
        return normalise(
            X, self.settings.normalise, tensors.get("mean"), tensors.get("inverse_std")
        )

    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        E = self._embeddings(E)
        bias = np.zeros(len(E))
        tensors = self.tensors
        if "image_mean" in tensors:
            return self._aligned_prototypes(self._normalised(E))
        if self.da is None:
            return self.embed(E), bias
        scheme: Attributes = getattr(self.settings, "attributes", "none")
        A = normalise(E, scheme, tensors.get("class_mean"), tensors.get("class_inverse_std"))
        V = product(A, tensors["Q"])
        return scaled_by_spread(V, tensors["moment"]) if "moment" in tensors else V, bias

    @property
    def prediction_metric(self) -> Metric:
        return "dot" if "moment" in self.tensors else super().prediction_metric

    def _aligned_prototypes(
        self, V: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Prototypes [T, D] and bias [T] of normalised classes V [T, dx]; the bias makes the mean
        score of every class exact."""
        mean = self.tensors["image_mean"].astype(np.float64)
        projected = product(V, self.tensors["Q"])
        of_mean = self.tensors["P"].astype(np.float64) @ mean
        return projected, V.astype(np.float64) @ mean - projected.astype(np.float64) @ of_mean
