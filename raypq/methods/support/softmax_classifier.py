"""A softmax classifier over real and generated features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raypq.methods.support.score_axes import Axes

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a softmax classifier is trained: with Adam, L2 of ``decay``, from zero weights."""

    epochs: int
    rate: float
    decay: float


def fit_softmax(
    x: Tensor, y: Tensor, weight: Tensor, T: int, fit: Fit, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weights V [T, a] and bias [T] of a classifier of rows x [n, a], y [n], with weights [n]."""
    unit = x.square().mean().sqrt()
    if not 1e-12 < float(unit) < 1e15:  # squares may have overflowed or vanished in float32
        unit = x.double().square().mean().sqrt().float()
        unit = unit if float(unit) else torch.ones(())
    x = x / unit
    V = torch.zeros(T, x.shape[1], requires_grad=True)
    bias = torch.zeros(T, requires_grad=True)
    optimizer = torch.optim.Adam([V, bias], lr=fit.rate, weight_decay=fit.decay, fused=True)
    with torch.enable_grad():
        for _ in range(fit.epochs):
            order = torch.randperm(len(x), generator=random)
            for start in range(0, len(x), _BATCH):
                rows = order[start : start + _BATCH]
                loss = F.cross_entropy(F.linear(x[rows], V, bias), y[rows], reduction="none")
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward((loss * weight[rows]).mean())
                optimizer.step()
    return V.detach() / unit, bias.detach()


def fit_on_axes(
    axes: Axes, u: Tensor, y: Tensor, weight: Tensor, T: int, fit: Fit, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As ``fit_softmax`` for embedded rows u = P·x [n, D], with the decay of a classifier of x.

    With P = L·O and orthonormal rows O, x has the coordinates z = L⁻¹u along them, and a classifier
    w of z is v = L⁻ᵀw of u.
    """
    R = torch.linalg.qr(axes.P.double().T, mode="r").R  # Lᵀ
    L = R.T
    z = torch.linalg.solve_triangular(L, u.double().T, upper=False).T.float()
    w, bias = fit_softmax(z, y, weight, T, fit, random)
    V = torch.linalg.solve_triangular(R, w.double().T, upper=True).T
    return V.float(), bias
