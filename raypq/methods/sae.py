"""SAE: a semantic autoencoder with tied weights, in closed form.

Kodirov, Xiang and Gong, "Semantic Autoencoder for Zero-Shot Learning" (CVPR 2017). With rows as
images X [dx, N] and the embedding of each one's class S [da, N], W [da, dx] minimises
‖X − WᵀS‖² + λ‖WX − S‖², so

    SSᵀ W + λ W XXᵀ = (1 + λ) S Xᵀ

Images are compared in the visual space, cosine(x, Wᵀa). Prototypes lie in the row space of W, so
codes are of that space only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from raypq.config import Metric
from raypq.methods.base import Array, MethodSettings, State
from raypq.methods.pq import PQModel
from raypq.methods.support.axis_allocation import balanced_axes
from raypq.methods.support.closed_form import (
    Matrix,
    Moments,
    MomentsPQ,
    SpanSettings,
    solve_sylvester,
)
from raypq.methods.support.linear_model import LinearModel
from raypq.methods.support.normalisation import Attributes


class SAESettings(SpanSettings):
    """The weight of the encoder's loss."""

    metric: Metric = "cosine"
    attributes: Attributes = Field("unit", description="normalisation of class embeddings")
    lam: float = Field(0.03, gt=0, description="weight of WX = S beside X = WᵀS")


class SAEModel(PQModel):
    method = "sae"


class SAE(MomentsPQ):
    """The decoder of the autoencoder, which maps class embeddings to the visual space."""

    name = "sae"
    settings_class: ClassVar[type[MethodSettings]] = SAESettings
    model_class: ClassVar[type[LinearModel]] = SAEModel
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "normalise": ("unit", "zscore-unit"),
        "attributes": ("unit", "zscore-unit"),
        "lam": (0.01, 0.03, 0.1, 0.3),
    }
    trial_settings: ClassVar[Mapping[str, Any]] = {"M": 1, "K": 16, "iterations": 1}
    settings: SAESettings

    def _embedding(self, state: State, data: Moments) -> dict[str, Array]:
        W = self.autoencoder(data)
        rank = min(len(data.n), *W.shape)
        axes = np.linalg.svd(W, full_matrices=False)[2][:rank]
        P = balanced_axes(axes @ data.G @ axes.T, self.settings.M) @ axes
        return {"P": P.astype(np.float32), "Q": (P @ W.T).astype(np.float32)}

    def autoencoder(self, data: Moments) -> Matrix:
        """W [da, dx]."""
        return solve_sylvester(
            (data.A * data.n) @ data.A.T, data.G, (data.A, data.S), 1.0, self.settings.lam
        )
