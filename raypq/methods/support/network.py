"""Networks, batches and phases of training by gradient.

What a network needs from epoch to epoch must be a parameter or a buffer: a checkpoint consists of
its ``state_dict`` and that of the optimiser only.
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
from raypq.methods.support.matrix_product import aligned

Schedule = Literal["constant", "cosine", "exponential"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training, with its own optimiser and schedule of the learning rate."""

    name: str
    epochs: int
    rate: float
    schedule: Schedule = "cosine"
    decay: float = 0.95

    def factor(self, step: int, steps: int) -> float:
        """The factor of the learning rate at ``step`` of the ``steps`` of this phase."""
        done = step / max(1, steps)
        if self.schedule == "cosine":
            return float(0.5 * (1 + np.cos(np.pi * done)))
        if self.schedule == "exponential":
            return float(self.decay ** (done * self.epochs))
        return 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The rows of one step on one worker.

    Attributes:
        x: [n, dx] float32, normalised. y: [n] int64 indices into the L training classes, or None.
        u: rows of the unlabelled store [n', dx], or None.
    """

    x: Tensor
    y: Tensor | None = None
    u: Tensor | None = None


class Network(nn.Module):
    """The network that is trained; ``forward`` returns the terms whose sum is the loss."""

    training_only: ClassVar[frozenset[str]] = frozenset()
    """Names in ``state_dict`` that the trained model does not contain."""
    finished = False
    """Whether every phase is done; set by the training loop."""
    da: int | None = None
    """Width of class embeddings, if ``project`` takes them."""

    @abstractmethod
    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """The weighted terms of the loss, scalars; differentiable."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """f: rows [n, dx] to the common space [n, D]."""

    def queries(self, x: Tensor) -> Tensor:
        """Query vectors [n, D] of rows [n, dx] for asymmetric search."""
        return self.embed(x)

    @abstractmethod
    def codes(self, x: Tensor) -> Tensor | None:
        """Codes [n, M] of rows [n, dx], int64; None: the nearest codeword of ``embed``."""

    @abstractmethod
    def codebooks(self) -> Tensor | None:
        """Codebooks C [M, K, d]; None where a follow-up trains them."""

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The parameters that a phase trains; the others stay fixed."""
        return self.parameters()

    def begin_phase(self, phase: str) -> None:
        """Called before the first step of a phase, but not when training resumes within it."""

    def begin_epoch(self, phase: str, epoch: int) -> None:
        """Called before each epoch of a phase, counted from 0."""

    def end_epoch(self, phase: str, epoch: int) -> None:
        """Called after each epoch."""

    def class_layer(self) -> tuple[Tensor, Tensor] | None:
        """Prototypes V [L, D] and bias [L] of the training classes, if the network has them."""
        return None

    def project(self, e: Tensor) -> Tensor | None:
        """g: class embeddings [T, da] to the common space [T, D]; None if there is no g."""
        return None


def tensor_of(X: NDArray[Any]) -> Tensor:
    """A tensor of rows [n, a]; copies read-only arrays, of which torch would warn."""
    return torch.from_numpy(np.require(aligned(X), requirements=["W"]))


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The values of a tensor as a contiguous array on the CPU."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def autocast(device: str, precision: Precision) -> torch.autocast:
    """Context of bf16 arithmetic if ``precision`` is bf16; weights stay float32."""
    return torch.autocast(
        torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"
    )


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Context in which torch's generators are seeded; restores them afterwards."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with torch.random.fork_rng():
        torch.manual_seed(int(state[0]))
        yield
