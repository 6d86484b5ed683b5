"""Clusterable features: a generator of features of any class, and a classifier on what it makes.

Xu, Shu and Samaras, "Learning Clusterable Visual Features for Zero-Shot Recognition" (2020).
Images are mapped to x' (``support.clusterable_network``), a conditional VAE learns to generate x'
from a class embedding, and a softmax classifier is trained on real x' of the seen classes and
generated ones of the others. Its weights are the prototypes, its bias goes into the tables.

Codes are made of the axes of x' that such classifiers use (``support.score_axes``), and the
classifier learns from vectors that have been through the codes. A sample of the seen rows stays
with the model, so a classifier for other classes can be trained at any time, from it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import kernels
from raypq.errors import ConfigError
from raypq.methods.base import ReductionMethod, TrainingSetInfo, check_embeddings
from raypq.methods.gradient import (
    GradientMethod,
    GradientSettings,
    Network,
    NetworkModel,
    Phase,
    tensor_of,
)
from raypq.methods.support.clusterable_network import (
    CVAE,
    GAUSSIAN,
    ClusterableNetwork,
    ClusterableSettings,
    attributes,
)
from raypq.methods.support.score_axes import code_width, codebook_method, interpolated_classes
from raypq.methods.support.softmax_classifier import fit_on_axes, fit_softmax

_AXIS_CLASSES = 128  # mixtures of training classes that help to choose the axes
_AXIS_SAMPLES = 50  # generated features of each
_MAKE = 65_536  # features generated at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class ClusterableModel(NetworkModel):
    """Embeds x'; prototypes are the weights of a classifier of all classes at hand."""

    method = "clusterable"
    takes_embeddings = True

    settings: ClusterableSettings

    def blank(self) -> ClusterableNetwork:
        assert self.da is not None, "a model that takes embeddings knows their width"
        L = len(self.tensors["net.memory"])
        return ClusterableNetwork(self.settings, self.dx, self.da, L, self.D)

    def generator(self) -> ClusterableNetwork:
        """The network, as what it is."""
        network = self.network()
        assert isinstance(network, ClusterableNetwork), "made by blank"
        return network

    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Of a classifier of these classes; one with a training class's embedding is that class."""
        self._check_embeddings(E)
        A = self.generator().A.numpy()
        a = attributes(E, self.settings)
        place = np.full(len(E), -1, np.int64)
        for index, row in enumerate(a):
            near = np.flatnonzero(np.abs(A - row).max(axis=1) <= 1e-6)
            place[index] = near[0] if len(near) else -1
        return self._classifier(a, place)

    def mapped(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """x' [n, width], before the axes for codes are taken."""
        with torch.inference_mode():
            return self.generator().map(tensor_of(self._normalised(X))).numpy()

    @property
    def joint_classes(self) -> bool:
        return True

    def _classifier(
        self, a: NDArray[np.float32], place: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """V [T, D] and bias [T] for normalised embeddings a [T, da] and, where a class is a
        training class, its number there (−1: it is not, and its features are made)."""
        if not len(a):
            return np.empty((0, self.D), np.float32), np.empty(0)
        settings, network = self.settings, self.generator()
        random = torch.Generator().manual_seed(settings.seed)
        real, made = np.flatnonzero(place >= 0), np.flatnonzero(place < 0)
        with torch.inference_mode():
            kept = network.memory[torch.from_numpy(place[real])].float().reshape(-1, self.D)
            u = [kept.numpy(), *self._make(network, a[made], random)]
        q = self._through_codes(np.concatenate(u))
        y = np.concatenate([np.repeat(real, settings.memory), np.repeat(made, settings.samples)])
        share = settings.weight * settings.memory / settings.samples
        mass = np.where(place[y] >= 0, 1.0, share).astype(np.float32)
        V, bias = fit_on_axes(
            network.axes,
            torch.from_numpy(q),
            torch.from_numpy(y),
            torch.from_numpy(mass),
            len(a),
            settings.head,
            random,
        )
        return V.numpy(), bias.double().numpy()

    def _make(
        self, network: ClusterableNetwork, a: NDArray[np.float32], random: torch.Generator
    ) -> list[NDArray[np.float32]]:
        """Embedded features of classes a [T, da], ``samples`` of each."""
        step = max(1, _MAKE // self.settings.samples)
        parts = []
        for start in range(0, len(a), step):
            some = tensor_of(a[start : start + step])
            made = network.samples(some, self.settings.samples, random)
            parts.append(network.axes(made).numpy())
        return parts

    def _through_codes(self, u: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.decode(kernels.encode(u, self.C))


class Clusterable(GradientMethod):
    """The CVAE, with M, F and noise as settings ask."""

    name = "clusterable"
    settings_class: ClassVar[type[GradientSettings]] = ClusterableSettings
    model_class: ClassVar[type[NetworkModel]] = ClusterableModel
    needs_classes = True
    needs_embeddings = True
    small_batches = True
    sample_rows = 50_000
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"weight": (1.0, 3.0, 10.0)}
    settings: ClusterableSettings

    def build(self, corpus: TrainingSetInfo) -> ClusterableNetwork:
        if corpus.A is None:
            raise ConfigError("clusterable needs a class table: pass --classes (classes)")
        check_embeddings(corpus.A)
        settings = self.settings
        D = code_width(settings.D, settings.mapping or corpus.dx, settings.M)
        L, da = corpus.A.shape
        network = ClusterableNetwork(settings, corpus.dx, da, L, D)
        network.A.copy_(torch.from_numpy(attributes(corpus.A, settings)))
        return network

    def phases(self) -> Sequence[Phase]:
        settings = self.settings
        whole = Phase(
            name=CVAE,
            epochs=settings.epochs,
            rate=settings.rate,
            schedule=settings.schedule,
            decay=settings.decay,
        )
        fine = replace(whole, name=GAUSSIAN, epochs=settings.gaussian)
        return [fine, whole] if settings.gaussian else [whole]

    def finish(
        self,
        network: Network,
        corpus: TrainingSetInfo,
        X: NDArray[np.float32],
        y: NDArray[np.int32],
    ) -> None:
        """Chooses the axes by a classifier of the training classes and of mixtures of them, and
        keeps rows of the training classes."""
        assert isinstance(network, ClusterableNetwork), "built here"
        random = torch.Generator().manual_seed(self.settings.seed)
        L = len(network.A)
        with torch.inference_mode():
            x = network.map(torch.from_numpy(X))
            a = interpolated_classes(network.A)[:_AXIS_CLASSES]
            made = network.samples(a, _AXIS_SAMPLES, random)
        labels = torch.cat(
            [
                torch.from_numpy(y.astype(np.int64)),
                L + torch.arange(len(a)).repeat_interleave(_AXIS_SAMPLES),
            ]
        )
        rows = torch.cat([x, made]).clone()  # out of inference mode, for the classifier to learn
        V, _ = fit_softmax(
            rows, labels, torch.ones(len(rows)), L + len(a), self.settings.head, random
        )
        with torch.inference_mode():
            network.axes.fit(V - V.mean(dim=0), x, self.settings.M)
            network.remember(torch.from_numpy(X), y)

    def follow_up(self) -> ReductionMethod | None:
        return codebook_method(self.settings)
