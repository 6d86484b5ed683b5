"""What a training is likely to disappoint by, said before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from raypq import console
from raypq.data.class_advice import advice
from raypq.methods.base import Method, ReductionMethod
from raypq.stages.training.dataset import TrainingPlan

if TYPE_CHECKING:
    from raypq.methods.support.class_codes import ClassCodesSettings

# Below it k-means fits the training rows rather than the data; FAISS warns at the same number.
_ROWS_OF_CODEWORD = 39
_STEPS = 1_000  # below it the networks here are far from trained (docs/methods/dpq.md)


def warn_of(plan: TrainingPlan, method: Method) -> None:
    """Writes the warnings."""
    for warning in warnings_of(plan, method):
        console.warn(warning)


def warnings_of(plan: TrainingPlan, method: Method) -> Iterator[str]:
    """Warnings on the classes, and on rows and steps that are few for the settings."""
    rows, settings = plan.dataset_info.N, method.settings
    if method.needs_embeddings and plan.classes is not None:
        table = plan.classes.table
        yield from advice(table, np.arange(len(table)))
    if rows < _ROWS_OF_CODEWORD * settings.K and isinstance(method, ReductionMethod):
        yield (
            f"{rows:,} training rows are {rows / settings.K:.0f} for each of {settings.K} "
            "codewords: codes will be worse on other rows than on these. Use at least "
            f"{_ROWS_OF_CODEWORD} rows a codeword, or fewer codewords (--set K=…, settings.K)"
        )
    if not isinstance(method, ReductionMethod):
        yield from _of_networks(plan, method)


def _of_networks(plan: TrainingPlan, method: Method) -> Iterator[str]:
    """Warnings on a method that trains by gradient: codes of classes, and few steps."""
    # Here, since these import torch.
    from raypq.methods.gradient import GradientMethod
    from raypq.methods.support.class_codes import ClassCodesSettings

    assert isinstance(method, GradientMethod), "a method trains by reduction or by gradient"
    rows, settings = plan.dataset_info.N, method.settings
    if isinstance(settings, ClassCodesSettings):
        yield from _of_classes(plan, method, settings)
    batch = settings.batch
    larger = max(rows - settings.validation, plan.dataset_info.unlabelled)
    epoch_steps = larger // batch
    epochs = sum(phase.epochs for phase in method.phases(max(1, epoch_steps)))
    steps = epoch_steps * epochs
    if steps < _STEPS:
        yield (
            f"{steps:,} steps ({epochs} epochs of {larger:,} rows in batches of {batch}) are "
            f"few to train {method.name}: with {-(-_STEPS // max(1, epoch_steps)):,} epochs "
            f"there would be {_STEPS:,} (--set epochs=…, settings.epochs)"
        )


def _of_classes(plan: TrainingPlan, method: Method, settings: ClassCodesSettings) -> Iterator[str]:
    """Warnings on codes of classes: unseen classes without them, and few rows to fit them to."""
    info = plan.dataset_info
    if not settings.stores_classes(info.L):
        if info.A_other is not None and len(info.A_other):
            yield (
                f"{method.name} can predict only the {info.L:,} classes that it is trained on, and "
                f"none of the {len(info.A_other):,} unseen classes of the table: that takes codes "
                f"of classes (codes=classes), the default for K >= {info.L:,}, or a method that "
                "learns from class embeddings, such as pqzsl"
            )
        return
    rows = info.unlabelled or info.N
    if rows < settings.K:
        kind = "unlabelled" if info.unlabelled else "training"
        yield (
            f"{rows:,} {kind} rows, to which codebooks of {settings.K} codewords are fitted: codes "
            f"will be far worse on other rows. Use at least {settings.K} {kind} rows, or fewer "
            "codewords (--set K=…, settings.K)"
        )
