"""Layers of the learned quantizers; x [n, a] float32 throughout, M parts side by side."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TINY = 1e-6
_FAINT, _FAR = 1e-12, 1e15  # between them squares are sure to fit float32


class Trunk(nn.Module):
    """The network below the quantizer where the input is features: dx → hidden → width.

    A dropout between the layers; none in inference.
    """

    def __init__(self, dx: int, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(dx, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, dx] to [n, width]."""
        hidden: Tensor = self.dropout(F.relu(self.first(x)))
        return self.second(hidden)


class Parts(nn.Module):
    """M linear layers side by side: [n, M, a] to [n, M, b]."""

    def __init__(self, M: int, a: int, b: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(a)  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(M, a, b).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(M, b).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nma,mab->nmb", x, self.weight) + self.bias


def intra_normalise(x: Tensor) -> Tensor:
    """Each part [..., d] at unit length (Arandjelović and Zisserman, "All about VLAD")."""
    return F.normalize(_squarable(x, least=0.0), dim=-1, eps=_TINY)


def unit(x: Tensor) -> Tensor:
    """Rows [..., d] at unit length, whatever their magnitude; a zero row stays zero."""
    return F.normalize(_squarable(x, least=_FAINT), dim=-1)


def _squarable(x: Tensor, least: float) -> Tensor:
    """Rows [..., d] as they are; those whose squares would overflow, or vanish where the largest
    value is below ``least``, in parts of their largest value."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    far = (largest > _FAR) | ((largest < least) & (largest > 0))
    return x / largest.where(far, 1.0)


def one_hot_of(p: Tensor) -> Tensor:
    """Arg-max of p [..., K] as one-hot vectors; the gradient is passed to p unchanged
    (straight-through)."""
    e = F.one_hot(p.argmax(dim=-1), p.shape[-1]).to(p.dtype)
    return e + (p - p.detach())


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, *gradient: Tensor) -> Tensor:
        return -gradient[0]


def reverse_gradient(x: Tensor) -> Tensor:
    """x as it is; its gradient with the sign turned (Ganin and Lempitsky)."""
    return _Reversal.apply(x)  # type: ignore[no-untyped-call]
