"""Layers of the learned quantizers; inputs are x [n, a] float32, or M parts [n, M, a]."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TINY = 1e-6
_SMALL, _LARGE = 1e-12, 1e15  # squares of values between them fit float32


class Trunk(nn.Module):
    """The backbone for features, an MLP dx → hidden → width with dropout between the layers."""

    def __init__(
        self, dx: int, hidden: int, width: int, dropout: float, feature_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.first = nn.Linear(dx, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, dx] to [n, width]."""
        hidden: Tensor = self.dropout(F.relu(self.first(self.feature_dropout(x))))
        return self.second(hidden)


class Parts(nn.Module):
    """M linear layers in parallel: [n, M, a] to [n, M, b]."""

    def __init__(self, M: int, a: int, b: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(a)  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(M, a, b).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(M, b).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nma,mab->nmb", x, self.weight) + self.bias


def intra_normalise(x: Tensor) -> Tensor:
    """Each part [..., d] scaled to unit length (Arandjelović and Zisserman, "All about VLAD")."""
    return F.normalize(_prescaled(x, least=0.0), dim=-1, eps=_TINY)


def unit(x: Tensor) -> Tensor:
    """Rows [..., d] scaled to unit length, of any magnitude; a zero row stays zero."""
    return F.normalize(_prescaled(x, least=_SMALL), dim=-1)


def _prescaled(x: Tensor, least: float) -> Tensor:
    """Rows [..., d], divided by their largest magnitude if their squares would overflow float32, or
    if it is below ``least``."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    rescale = (largest > _LARGE) | ((largest < least) & (largest > 0))
    return x / largest.where(rescale, 1.0)


def one_hot_of(p: Tensor) -> Tensor:
    """Arg-max of p [..., K] as one-hot vectors; gradients pass to p unchanged (straight-through
    estimator)."""
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
    """x itself, with its gradient negated (Ganin and Lempitsky)."""
    return _Reversal.apply(x)  # type: ignore[no-untyped-call]
