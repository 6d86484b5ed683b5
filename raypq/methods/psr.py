"""PSR: class embeddings mapped to the visual space so that semantic relations are kept.

Annadani and Biswas, "Preserving Semantic Relations for Zero-Shot Learning" (CVPR 2018). With
s the cosine (eq. 1), δ that of class embeddings, f the encoder and g the decoder:

    O1 = −s(f(y_r), x_i) + (τ − δ_kr)·s(f(y_r), x_k)              eq. 2, x_k of a dissimilar class
    O2 = [τ − s(f(y_r), x_j)]₊ + [s(f(y_r), x_j) − δ_jr]₊         eq. 3, x_j of a similar class
    O3 = ‖y_r − g(f(y_r))‖²                                       eq. 4
    O1 + λ1·O2 + λ2·O3                                            eq. 5

Classes are similar at τ ≤ δ < 1 and dissimilar at δ < τ. Images are compared in the visual space by
cosine (eq. 6), so the embedding of images is linear: features of unit length along the axes in
which prototypes differ (``support.score_axes``); the dot product there is the cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from raypq.config import Metric, Positive
from raypq.errors import ConfigError, InputError
from raypq.methods.base import Normalise, TrainingSetInfo
from raypq.methods.gradient import (
    Batch,
    GradientMethod,
    GradientSettings,
    Network,
    NetworkModel,
    Schedule,
    tensor_of,
)
from raypq.methods.support.layers import unit
from raypq.methods.support.score_axes import Axes, code_width, codebook_method, interpolated_classes
from raypq.methods.support.statistics import check_embeddings

_LEAST_DEVIATION = 1e-32  # of a dimension at least 1e-6 times that, whose inverse fits float32

Attributes = Literal["centre", "zscore"]


class PSRSettings(GradientSettings):
    """The paper's settings, and the width of the common space."""

    M: Positive = Field(64, description="sub-codebooks")
    D: Positive = Field(128, description="axes of the visual space that are kept, at most")
    metric: Metric = "dot"
    normalise: Normalise = "zscore-unit"
    attributes: Attributes = Field(
        "centre", description="normalisation of class embeddings: zscore, or centre"
    )
    baseline: Literal["full", "B1", "B2", "B3"] = Field(
        "full", description="baseline of section 4.1"
    )
    hidden: tuple[Positive, ...] = Field((1024,), description="widths between y and f(y)")
    tau: float = Field(0.0, ge=-1, le=1, description="smallest cosine of similar classes")
    lam1: float = Field(1.0, ge=0, description="weight of O2")
    lam2: float = Field(0.1, ge=0, description="weight of O3")
    p: Positive = Field(50, description="candidates of which a tuple takes the hardest")
    epochs: Positive = 60
    batch: Positive = 128
    schedule: Schedule = "constant"
    weight_decay: float = Field(5e-5, ge=0)

    @field_validator("hidden", mode="before")
    @classmethod
    def _one_width(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value


class PSRNetwork(Network):
    """Encoder f and decoder g of class embeddings, and the axes of image embeddings."""

    training_only = frozenset({"decoder", "A", "delta"})
    A: Tensor
    delta: Tensor
    class_mean: Tensor
    class_scale: Tensor

    def __init__(self, settings: PSRSettings, dx: int, da: int, D: int) -> None:
        super().__init__()
        self.settings, self.da = settings, da
        self.encoder = _perceptron(da, settings.hidden, dx)
        self.decoder = _perceptron(dx, settings.hidden[::-1], da)
        self.axes = Axes(D, dx)
        self.register_buffer("class_mean", torch.zeros(da))
        self.register_buffer("class_scale", torch.ones(da))

    def learn_classes(self, A: NDArray[np.float32]) -> None:
        """Sets the normalisation and the relations δ [L, L] of the training classes A [L, da]."""
        raw = torch.from_numpy(A.astype(np.float64))
        mean = raw.mean(dim=0)
        deviation = raw.std(dim=0, unbiased=False)
        whole = (raw - mean).square().mean().sqrt()
        if not float(whole) > _LEAST_DEVIATION:
            raise InputError(
                "class embeddings",
                expected=f"values that differ by {_LEAST_DEVIATION:g} and more, in float32",
                found=f"a standard deviation of {float(whole):.3g}; scale the embeddings up",
            )
        constant = deviation <= 1e-6 * whole
        scale = deviation.where(~constant, 1.0) if self.settings.attributes == "zscore" else whole
        self.class_mean.copy_(mean)
        self.class_scale.copy_(1 / scale)
        with torch.no_grad():
            self.register_buffer("A", self.normalised(tensor_of(A)))
            a = unit(self.A)
            self.register_buffer("delta", a @ a.T)

    def normalised(self, e: Tensor) -> Tensor:
        """Class embeddings [T, da], normalised for the encoder."""
        return (e - self.class_mean) * self.class_scale

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        assert batch.y is not None, "training has labels"
        settings = self.settings
        classes, class_of_row = torch.unique(batch.y, return_inverse=True)
        f = self.encoder(self.A[classes])
        terms = {}
        if settings.baseline == "B1":
            terms["regression"] = (f[class_of_row] - batch.x).square().sum(dim=1).mean()
        else:
            terms |= self._relations(unit(f), classes, class_of_row, unit(batch.x))
        lam2 = 0.0 if settings.baseline == "B3" else settings.lam2
        if lam2:
            error = (self.decoder(f) - self.A[classes]).square().sum(dim=1)
            terms["reconstruction"] = lam2 * error[class_of_row].mean()
        return terms

    def _relations(
        self, f: Tensor, classes: Tensor, class_of_row: Tensor, x: Tensor
    ) -> dict[str, Tensor]:
        """O1 and O2 for prototypes f [c, dx] of the classes in the batch and images x [n, dx]."""
        settings = self.settings
        tau, lam1 = (1.0, 0.0) if settings.baseline == "B2" else (settings.tau, settings.lam1)
        s = (f @ x.T)[class_of_row]  # [n, n]: the prototype of row r's class and image j
        y = classes[class_of_row]
        delta = self.delta[y][:, y]
        other = y[:, None] != y[None, :]
        similar, dissimilar = other & (delta >= tau), other & (delta < tau)
        terms = {"identical": -s.diagonal().mean()}
        terms["dissimilar"] = _hardest((tau - delta) * s, dissimilar, settings.p)
        if lam1:
            hinge = F.relu(tau - s) + F.relu(s - delta)
            terms["similar"] = lam1 * _hardest(hinge, similar, settings.p)
        return terms

    def fit_axes(self, x: Tensor) -> None:
        """Sets the axes by the classes, interpolations of them, and a sample of rows x [n, dx]."""
        with torch.no_grad():
            V = unit(self.encoder(torch.cat([self.A, interpolated_classes(self.A)])))
            self.axes.fit(V, unit(x), self.settings.M)

    def embed(self, x: Tensor) -> Tensor:
        return self.axes(unit(x))

    def codes(self, x: Tensor) -> Tensor | None:
        return None

    def codebooks(self) -> Tensor | None:
        return None

    def project(self, e: Tensor) -> Tensor | None:
        return self.axes.prototypes(unit(self.encoder(self.normalised(e))))


def _perceptron(a: int, hidden: Sequence[int], b: int) -> nn.Sequential:
    """ReLU between the layers, ELU at the end (section 4.1)."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(a, width), nn.ReLU()]
        a = width
    return nn.Sequential(*layers, nn.Linear(a, b), nn.ELU())


def _hardest(loss: Tensor, allowed: Tensor, p: int) -> Tensor:
    """The mean over rows of the largest loss among p random allowed candidates (section 3.3).

    A row without allowed candidates counts 0. loss, allowed: [n, n].
    """
    priority = torch.rand(allowed.shape, device=allowed.device).where(allowed, 2.0)
    if p < priority.shape[1]:
        allowed = allowed & (priority <= priority.kthvalue(p, dim=1, keepdim=True).values)
    hardest = loss.where(allowed, -torch.inf).max(dim=1).values
    return hardest.where(allowed.any(dim=1), 0.0).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class PSRModel(NetworkModel):
    """Compares f(y) with images by cosine in the visual space."""

    method = "psr"

    settings: PSRSettings

    def build_network(self) -> PSRNetwork:
        assert self.da is not None, "a model that takes embeddings knows their width"
        return PSRNetwork(self.settings, self.dx, self.da, self.D)

    def cosines(self, q: NDArray[np.float32], V: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dot products here are the cosines of the visual space."""
        return np.clip(q @ V.T, -1, 1)


class PSR(GradientMethod):
    """Preserving semantic relations."""

    name = "psr"
    settings_class: ClassVar[type[GradientSettings]] = PSRSettings
    model_class: ClassVar[type[NetworkModel]] = PSRModel
    needs_classes = True
    needs_embeddings = True
    small_batches = True
    sample_rows = 16_384
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"tau": (-0.1, 0.0, 0.1, 0.2)}
    trial_settings: ClassVar[Mapping[str, Any]] = {"M": 1, "K": 16}
    settings: PSRSettings

    def build(self, dataset_info: TrainingSetInfo) -> PSRNetwork:
        if dataset_info.A is None:
            raise ConfigError("psr needs a class table: pass --classes (classes)")
        check_embeddings(dataset_info.A)
        D = code_width(self.settings.D, dataset_info.dx, self.settings.M)
        network = PSRNetwork(self.settings, dataset_info.dx, dataset_info.A.shape[1], D)
        network.learn_classes(dataset_info.A)
        self._check_relations(network.delta)
        return network

    def _check_relations(self, delta: Tensor) -> None:
        """Refuses a τ at which no two training classes are dissimilar."""
        pairs = delta[~torch.eye(len(delta), dtype=torch.bool)]
        tau = 1.0 if self.settings.baseline == "B2" else self.settings.tau
        if self.settings.baseline != "B1" and not (pairs < tau).any():
            raise ConfigError(
                f"tau: at {tau:g} all training classes are similar (their cosines go from "
                f"{float(pairs.min()):.3f} to {float(pairs.max()):.3f}), so nothing is dissimilar; "
                "choose a tau between"
            )

    def finish(
        self,
        network: Network,
        dataset_info: TrainingSetInfo,
        X: NDArray[np.float32],
        y: NDArray[np.int32],
    ) -> None:
        assert isinstance(network, PSRNetwork), "built here"
        network.fit_axes(torch.from_numpy(X))

    def follow_up(self) -> Any:
        return codebook_method(self.settings)
