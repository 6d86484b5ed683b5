"""ESZSL: a bilinear score between images and class embeddings, in closed form.

Romera-Paredes and Torr, "An embarrassingly simple approach to zero-shot learning" (ICML 2015).
With rows as images, one column a class, the score of image x and class a is xᵀWa, and

    W = (XXᵀ + γI)⁻¹ X Yᵀ Aᵀ (AAᵀ + λI)⁻¹

W has rank min(L, da) at most, so the common space is its row space: codes contain nothing that
scores ignore.
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
    ClassScaleSettings,
    Matrix,
    Moments,
    MomentsPQ,
    SpanSettings,
    ridge_of,
    solve_ridge,
)
from raypq.methods.support.linear_model import LinearModel


class ESZSLSettings(SpanSettings, ClassScaleSettings):
    """The two ridges."""

    metric: Metric = "dot"
    gamma: float | None = Field(
        None, ge=0, description="added to the diagonal of XXᵀ; default: gamma_share"
    )
    gamma_share: float = Field(1e-3, ge=0, description="γ as a share of the trace of XXᵀ")
    lam: float = Field(1.0, ge=0, description="added to the diagonal of AAᵀ")
    negative: float = Field(0.0, description="target of the other classes; −1 in the paper")


class ESZSLModel(PQModel):
    method = "eszsl"


class ESZSL(MomentsPQ):
    """The bilinear map, and PQ in its row space."""

    name = "eszsl"
    settings_class: ClassVar[type[MethodSettings]] = ESZSLSettings
    model_class: ClassVar[type[LinearModel]] = ESZSLModel
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "normalise": ("unit", "zscore-unit"),
        "attributes": ("centre-unit", "unit", "zscore-unit"),
        "gamma_share": (3e-4, 1e-3, 3e-3),
        "lam": (0.3, 1.0, 3.0),
    }
    trial_settings: ClassVar[Mapping[str, Any]] = {"M": 1, "K": 16, "iterations": 1}
    settings: ESZSLSettings

    def _embedding(self, state: State, data: Moments) -> dict[str, Array]:
        W = self.bilinear(data)
        rank = min(len(data.n), *W.shape)
        rotation = balanced_axes(W.T @ data.G @ W, self.settings.M, rank)
        P, Q = rotation @ W.T, rotation
        return {"P": P.astype(np.float32), "Q": Q.astype(np.float32)}

    def bilinear(self, data: Moments) -> Matrix:
        """W [dx, da].

        Raises:
            ConfigError: XXᵀ or AAᵀ is singular and its ridge is too small.
        """
        settings = self.settings
        # X Yᵀ with targets 1 for an image's own class and ``negative`` for the others.
        all_classes = data.S.sum(axis=1, keepdims=True)
        targets = (1 - settings.negative) * data.S + settings.negative * all_classes
        inner = solve_ridge(
            data.A @ data.A.T, settings.lam, data.A @ targets.T, setting="lam", of="AAᵀ"
        )
        gamma, images = ridge_of(settings.gamma, settings.gamma_share, data), float(data.n.sum())
        return solve_ridge(data.G, gamma, inner.T, setting="gamma", of="XXᵀ", images=images)
