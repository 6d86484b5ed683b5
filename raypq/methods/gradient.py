"""The interface of methods that train by gradient; a method imports it and those of networks and
their models from here.

A method builds a ``Network`` for a ``TrainingSetInfo`` and lists the ``Phase``s of its training.
The training loop (``raypq.stages.training.trainer``) streams batches through ``Network.forward``,
which returns the terms of the loss; it is the same in this process and in every worker of Ray
Train. A method with a ``follow_up`` trains that reduction method afterwards, on the embedded
features, for the codebooks. ``freeze`` turns the result into a ``NetworkModel``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from raypq.config import Positive, Precision
from raypq.errors import ConfigError, InputError, NotFittedError
from raypq.methods.base import Method, MethodSettings, Model, ReductionMethod, TrainingSetInfo
from raypq.methods.support.network import (
    Batch,
    Network,
    Phase,
    Schedule,
    array_of,
    autocast,
    seeded,
    tensor_of,
)
from raypq.methods.support.network_model import PREFIX, NetworkModel

__all__ = [
    "Batch", "GradientMethod", "GradientSettings", "Network", "NetworkModel", "Phase", "Schedule",
    "autocast", "seeded", "tensor_of",
]  # fmt: skip


# Passes over the rows, unless ``epochs`` is given: as many as make _STEPS. More than _MOST overfit
# few rows: of 1,000 rows of CIFAR-100, DPQ and GPQ have a lower mAP after 100 passes than after 50.
_LEAST, _MOST, _STEPS = 16, 100, 2_000


class GradientSettings(MethodSettings):
    """Settings of every method that trains by gradient."""

    epochs: Positive | None = Field(
        None,
        description="passes over the rows; default: as many as make 2,000 steps, 16 to 100",
    )
    batch: Positive = Field(256, description="rows per step, over all workers")
    rate: float = Field(1e-3, gt=0, description="learning rate of Adam at the start")
    schedule: Schedule = Field("cosine", description="schedule of the learning rate")
    decay: float = Field(
        0.95, gt=0, le=1, description="factor of the rate per epoch, if exponential"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first momentum")
    weight_decay: float = Field(0.0, ge=0)
    shuffle: Positive = Field(65_536, description="size of the shuffle buffer, in rows")
    validation: int = Field(0, ge=0, description="training rows held out to validate each epoch")
    patience: int = Field(
        0, ge=0, description="stop after so many epochs without a better validation score; 0: never"
    )
    precision: Precision = Field("fp32", description="precision of the forward pass in training")
    compile: bool = Field(
        False,
        description="train with torch.compile: faster steps after a minute of compilation; needs "
        "a C++ compiler",
    )


class GradientMethod(Method):
    """A method that trains by gradient descent."""

    needs_labels: ClassVar[bool] = True
    sample_rows: ClassVar[int] = 0
    """Most rows in the sample for ``finish``."""
    samples_unlabelled: ClassVar[bool] = False
    """Whether this sample is of the unlabelled store, rather than of the labelled one."""
    small_batches: ClassVar[bool] = False
    """Whether a batch may have fewer rows than there are training classes."""
    settings: GradientSettings
    model_class: ClassVar[type[NetworkModel]]

    @abstractmethod
    def build(self, dataset_info: TrainingSetInfo) -> Network:
        """The untrained network. Called with the method's seed set (see ``network``).

        Raises:
            ConfigError: settings that do not fit the training set.
        """

    def network(self, dataset_info: TrainingSetInfo) -> Network:
        """The untrained network, with random weights that depend only on ``seed``."""
        with seeded(self.settings.seed):
            return self.build(dataset_info)

    def phases(self, steps: int) -> Sequence[Phase]:
        """The phases of training, in order; one named ``train`` unless overridden.

        Args:
            steps: of one epoch.
        """
        settings = self.settings
        return [
            Phase(
                name="train",
                epochs=settings.epochs or max(_LEAST, min(_MOST, -(-_STEPS // steps))),
                rate=settings.rate,
                schedule=settings.schedule,
                decay=settings.decay,
            )
        ]

    def held_out_rows(self, dataset_info: TrainingSetInfo) -> int:
        """Number of labelled rows that are not trained on: those of ``validation``, and more where
        something is chosen on them after training."""
        return self.settings.validation

    def validation_score(self, network: Network, x: Tensor, y: Tensor) -> float | None:
        """The validation score of held-out rows x [n, dx], y [n], higher is better. None: use the
        mAP of retrieval among their codes."""
        return None

    def finish(
        self,
        network: Network,
        dataset_info: TrainingSetInfo,
        X: NDArray[np.float32],
        y: NDArray[np.int32],
    ) -> None:
        """Completes the network in place, after the last phase and before the follow-up.

        X [n, dx], normalised, and y [n] are a sample of at most ``sample_rows`` training rows; y
        is zero for rows without labels.
        """

    def follow_up(self) -> ReductionMethod | None:
        """The reduction method that trains codebooks on the embedded features, if any."""
        return None

    def check(self, dataset_info: TrainingSetInfo, world: int = 1) -> None:
        """Refuses a training set or settings that cannot be trained with.

        Raises:
            ConfigError: too few rows, a batch smaller than the classes or the workers.
        """
        batch = self.settings.batch
        if self.needs_unlabelled and not dataset_info.unlabelled:
            raise ConfigError(
                f"{self.name} learns from unlabelled rows too: pass a store of them (--unlabelled)"
            )
        if self.needs_labels and dataset_info.L < 2:
            raise ConfigError(
                f"{self.name} needs at least 2 training classes, found {dataset_info.L}"
            )
        if batch // world < (2 if self.small_batches else dataset_info.L):
            raise ConfigError(
                f"batch: {batch} rows over {world} worker(s) are {batch // world} each, fewer "
                f"than the {dataset_info.L} training classes"
            )
        held_out = self.held_out_rows(dataset_info)
        rows = dataset_info.N - held_out
        if rows < batch:
            raise ConfigError(
                f"batch: {batch} rows are more than the {max(rows, 0)} to train on "
                f"({dataset_info.N} less {held_out} held out)"
            )

    def check_classes(self, count: NDArray[np.int64], names: Sequence[str]) -> None:
        """Refuses classes that have too few rows, given the rows of each class [L].

        Raises:
            InputError: naming the classes.
        """
        few = [name for name, n in zip(names, count, strict=True) if n < 2]
        if few:
            raise InputError(
                "training classes",
                expected="at least 2 images of each",
                found=f"fewer of {', '.join(few[:5])}{', …' if len(few) > 5 else ''} "
                f"({len(few)} in all); mark classes without images as not seen (the column seen of "
                "the class table)",
            )

    def freeze(
        self,
        network: Network,
        dataset_info: TrainingSetInfo,
        *,
        scale: Mapping[str, NDArray[np.float32]],
        codebooks: NDArray[np.float32] | None = None,
        record: Mapping[str, Any],
    ) -> Model:
        """The model of a trained network.

        Args:
            scale: ``mean`` and ``inverse_std`` [dx] where features are z-scored.
            codebooks: C [M, K, d] of the follow-up, where there is one.

        Raises:
            NotFittedError: training has not finished.
        """
        if not network.finished:
            raise NotFittedError(f"{self.name}: not trained yet; run every phase first")
        learned = network.codebooks()
        C = array_of(learned) if learned is not None else codebooks
        assert C is not None, "a network without codebooks names a follow-up"
        weights = {
            PREFIX + key: array_of(value)
            for key, value in network.state_dict().items()
            if key.split(".")[0] not in network.training_only
        }
        return self.model_class(
            settings=self.settings,
            tensors={"C": C, **scale, **weights},
            dx=dataset_info.dx,
            da=network.da,
            classes=dataset_info.names if network.class_layer() is not None else None,
            record=record,
        )
