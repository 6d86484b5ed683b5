"""The result of training a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raypq.data.store.shard_stats import ShardStats
from raypq.errors import ShardFailure
from raypq.methods.base import Model


def nothing() -> None:
    """What there is to clear after most trainings."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A model, the shards left out, the images used, what some shards look like to the model,
    and what to clear once it is saved."""

    model: Model
    failures: Sequence[ShardFailure]
    images: int
    measured: Sequence[ShardStats]
    tidy: Callable[[], None] = nothing
