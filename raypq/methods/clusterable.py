"""Clusterable features: a generator of features of any class, and a classifier trained on them.

Xu, Shu and Samaras, "Learning Clusterable Visual Features for Zero-Shot Recognition" (2020).
Images are mapped to x' (``support.clusterable_network``), a conditional VAE learns to generate x'
from a class embedding, and a softmax classifier is trained on real x' of the seen classes and
generated x' of the others. Its weights are the prototypes, with a bias.

Codes are of the axes of x' that such classifiers depend on (``support.score_axes``), and the
classifier is trained on quantized vectors. The model contains a sample of the seen rows, so that it
can train a classifier for other classes at any time.
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
from raypq.methods.base import ReductionMethod, TrainingSetInfo
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
from raypq.methods.support.statistics import check_embeddings

_AXIS_CLASSES = 128  # interpolated classes used to choose the axes
_AXIS_SAMPLES = 50  # generated features of each
_GENERATED_ROWS = 65_536  # features generated at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class ClusterableModel(NetworkModel):
    """Embeds x'; prototypes are the weights of a classifier of all classes given."""

    method = "clusterable"

    settings: ClusterableSettings

    def build_network(self) -> ClusterableNetwork:
        assert self.da is not None, "a model that takes embeddings knows their width"
        L = len(self.tensors["net.memory"])
        return ClusterableNetwork(self.settings, self.dx, self.da, L, self.D)

    def generator(self) -> ClusterableNetwork:
        """The network, with its own type."""
        network = self.network()
        assert isinstance(network, ClusterableNetwork), "made by build_network"
        return network

    def prototypes(self, E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Weights of a classifier of these classes. A class with the embedding of a training class
        is that class, and has real features."""
        self._check_embeddings(E)
        A = self.generator().A.numpy()
        a = attributes(E, self.settings)
        training_class = np.full(len(E), -1, np.int64)
        for index, row in enumerate(a):
            near = np.flatnonzero(np.abs(A - row).max(axis=1) <= 1e-6)
            training_class[index] = near[0] if len(near) else -1
        return self._classifier(a, training_class)

    def mapped(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """x' [n, width], before projection to the axes of codes."""
        with torch.inference_mode():
            return self.generator().map(tensor_of(self._normalised(X))).numpy()

    @property
    def joint_classes(self) -> bool:
        return True

    def _classifier(
        self, a: NDArray[np.float32], training_class: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Trains a classifier: V [T, D] and bias [T].

        Args:
            a: normalised class embeddings [T, da].
            training_class: index of the training class of each, whose rows are in the model; −1:
                none, so features are generated [T].
        """
        if not len(a):
            return np.empty((0, self.D), np.float32), np.empty(0)
        settings, network = self.settings, self.generator()
        random = torch.Generator().manual_seed(settings.seed % 2**64)
        seen, unseen = np.flatnonzero(training_class >= 0), np.flatnonzero(training_class < 0)
        with torch.inference_mode():
            stored = network.memory[torch.from_numpy(training_class[seen])].float()
            u = [stored.reshape(-1, self.D).numpy(), *self._generate(network, a[unseen], random)]
        q = self._quantized(np.concatenate(u))
        y = np.concatenate([np.repeat(seen, settings.memory), np.repeat(unseen, settings.samples)])
        generated = settings.weight * settings.memory / settings.samples
        weight = np.where(training_class[y] >= 0, 1.0, generated).astype(np.float32)
        V, bias = fit_on_axes(
            network.axes,
            torch.from_numpy(q),
            torch.from_numpy(y),
            torch.from_numpy(weight),
            len(a),
            settings.head,
            random,
        )
        return V.numpy(), bias.double().numpy()

    def _generate(
        self, network: ClusterableNetwork, a: NDArray[np.float32], random: torch.Generator
    ) -> list[NDArray[np.float32]]:
        """Generated and embedded features of classes a [T, da], ``samples`` of each."""
        step = max(1, _GENERATED_ROWS // self.settings.samples)
        parts = []
        for start in range(0, len(a), step):
            classes = tensor_of(a[start : start + step])
            x = network.samples(classes, self.settings.samples, random)
            parts.append(network.axes(x).numpy())
        return parts

    def _quantized(self, u: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.decode(kernels.encode(u, self.C))


class Clusterable(GradientMethod):
    """The CVAE, with mapping, F and noise according to the settings."""

    name = "clusterable"
    settings_class: ClassVar[type[GradientSettings]] = ClusterableSettings
    model_class: ClassVar[type[NetworkModel]] = ClusterableModel
    needs_classes = True
    needs_embeddings = True
    small_batches = True
    sample_rows = 50_000
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"weight": (1.0, 3.0, 10.0)}
    settings: ClusterableSettings

    def build(self, dataset_info: TrainingSetInfo) -> ClusterableNetwork:
        if dataset_info.A is None:
            raise ConfigError("clusterable needs a class table: pass --classes (classes)")
        check_embeddings(dataset_info.A)
        settings = self.settings
        D = code_width(settings.D, settings.mapping or dataset_info.dx, settings.M)
        L, da = dataset_info.A.shape
        network = ClusterableNetwork(settings, dataset_info.dx, da, L, D)
        network.A.copy_(torch.from_numpy(attributes(dataset_info.A, settings)))
        return network

    def phases(self, steps: int) -> Sequence[Phase]:
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
        dataset_info: TrainingSetInfo,
        X: NDArray[np.float32],
        y: NDArray[np.int32],
    ) -> None:
        """Sets the axes by a classifier of the training classes and of interpolated ones, and
        stores rows of the training classes."""
        assert isinstance(network, ClusterableNetwork), "built here"
        random = torch.Generator().manual_seed(self.settings.seed % 2**64)
        L = len(network.A)
        with torch.inference_mode():
            x = network.map(torch.from_numpy(X))
            a = interpolated_classes(network.A)[:_AXIS_CLASSES]
            generated = network.samples(a, _AXIS_SAMPLES, random)
        labels = torch.cat(
            [
                torch.from_numpy(y.astype(np.int64)),
                L + torch.arange(len(a)).repeat_interleave(_AXIS_SAMPLES),
            ]
        )
        rows = torch.cat([x, generated]).clone()  # leaves inference mode, for training
        V, _ = fit_softmax(
            rows, labels, torch.ones(len(rows)), L + len(a), self.settings.head, random
        )
        with torch.inference_mode():
            network.axes.fit(V - V.mean(dim=0), x, self.settings.M)
            network.store_rows(torch.from_numpy(X), y)

    def follow_up(self) -> ReductionMethod | None:
        return codebook_method(self.settings)
