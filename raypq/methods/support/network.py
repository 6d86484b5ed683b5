"""Networks, batches and phases of gradient training.

All that a network must remember from epoch to epoch belongs in its parameters and buffers: a
checkpoint is its ``state_dict`` and the optimiser's, and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypq.config import Precision

Schedule = Literal["constant", "cosine", "exponential"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training: its own optimiser and its own schedule of the learning rate."""

    name: str
    epochs: int
    rate: float
    schedule: Schedule = "cosine"
    decay: float = 0.95

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied by at ``step`` of the ``steps`` of this phase."""
        done = step / max(1, steps)
        if self.schedule == "cosine":
            return float(0.5 * (1 + np.cos(np.pi * done)))
        if self.schedule == "exponential":
            return float(self.decay ** (done * self.epochs))
        return 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rows of one step on one worker.

    Attributes:
        x: [n, dx] float32, normalised. y: [n] int64 indices into the L training classes, or None.
        u: rows of the unlabelled store [n', dx], or None.
    """

    x: Tensor
    y: Tensor | None = None
    u: Tensor | None = None


class Network(nn.Module):
    """What is trained. ``forward`` gives the weighted terms of the loss, which is their sum."""

    training_only: ClassVar[frozenset[str]] = frozenset()
    """Names in ``state_dict`` that the frozen model does without."""
    finished = False
    """Whether every phase is done; set by the training loop."""

    @abstractmethod
    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """The weighted terms of the loss, scalars; differentiable."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """f: rows [n, dx] to the common space [n, D]."""

    def queries(self, x: Tensor) -> Tensor:
        """What stands for queries [n, dx] in asymmetric search, [n, D]."""
        return self.embed(x)

    @abstractmethod
    def codes(self, x: Tensor) -> Tensor | None:
        """Codes [n, M] of rows [n, dx], int64; None: the nearest codeword of ``embed``."""

    @abstractmethod
    def codebooks(self) -> Tensor | None:
        """C [M, K, d] as codes are decoded; None where a follow-up makes them."""

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The parameters that a phase moves; the others stand still."""
        return self.parameters()

    def begin_phase(self, phase: str) -> None:
        """Called before the first step of a phase; not again when training is resumed in it."""

    def begin_epoch(self, phase: str, epoch: int) -> None:
        """Called before each epoch of a phase, counted from 0."""

    def end_epoch(self, phase: str, epoch: int) -> None:
        """Called after each epoch."""

    def class_layer(self) -> tuple[Tensor, Tensor] | None:
        """Prototypes V [L, D] and bias [L] of the training classes, where the network has any."""
        return None

    def project(self, e: Tensor) -> Tensor | None:
        """g: class embeddings [T, da] to the common space [T, D]; None: it takes none."""
        return None


def tensor_of(X: NDArray[Any]) -> Tensor:
    """A tensor of rows [n, a]; a copy where torch would warn that it must not write into them."""
    return torch.from_numpy(np.require(X, requirements=["C", "W"]))


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The values of a tensor, on the CPU and in one piece."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def autocast(device: str, precision: Precision) -> torch.autocast:
    """bf16 arithmetic where ``precision`` asks for it; the weights stay float32."""
    return torch.autocast(
        torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"
    )


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """torch's generators from a seed inside, and as they were afterwards."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with torch.random.fork_rng():
        torch.manual_seed(int(state[0]))
        yield
