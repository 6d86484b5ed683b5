"""The results of training: of a method, and of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq.data.store.shard_stats import ShardStats
from raypq.errors import ShardFailure
from raypq.methods.base import Model


def nothing() -> None:
    """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A trained model.

    Attributes:
        failures: of shards that were left out. images: number that were used.
        measured: statistics of some training shards under the model.
        held_out: labelled rows X [n, dx], y [n] that were not trained on.
        clean_up: to be called when the model is saved.
    """

    model: Model
    failures: Sequence[ShardFailure]
    images: int
    measured: Sequence[ShardStats]
    held_out: tuple[NDArray[np.float32], NDArray[np.int32]] | None = None
    clean_up: Callable[[], None] = nothing


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model, the quarantined shards, and a summary as plain values."""

    model: Model
    quarantined: Sequence[ShardFailure]
    summary: dict[str, Any]
