"""Axes of the embedding that class scores depend on, scaled for quantization.

A score is x·v. For prototypes with second moment R = E[vvᵀ], the mean squared error of scores of x
quantized to q is (x − q)ᵀ R (x − q). So codes are of u = R^½ x, in which this is the squared
distance, with prototypes v' = R^-½ v: u·v' = x·v. Only the axes of largest weight in R are kept. R
is estimated from the training classes and interpolations of them, so that prototypes of later
classes lie on these axes, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypq.errors import ConfigError
from raypq.methods.base import MethodSettings, ReductionMethod
from raypq.methods.pq import PQ, PQSettings
from raypq.methods.support.axis_allocation import balanced_axes

_INTERPOLATED = 1024  # interpolated classes
_NOISE = 0.5  # their noise, relative to the standard deviation of each attribute
_FLOOR = 0.01  # added to eigenvalues, relative to their mean
_TINY = 1e-150  # least eigenvalue, for prototypes that are all zero


class Axes(nn.Module):
    """D axes of a space [dx], as two maps: one of images and one of prototypes.

    Attributes:
        P: images [n, dx] to u [n, D]. Q: prototypes [T, dx] to v [T, D]; both are [D, dx].
    """

    P: Tensor
    Q: Tensor

    def __init__(self, D: int, dx: int) -> None:
        super().__init__()
        self.register_buffer("P", torch.zeros(D, dx))
        self.register_buffer("Q", torch.zeros(D, dx))

    def fit(self, V: Tensor, x: Tensor, M: int) -> None:
        """Sets the maps by prototypes V [T, dx] and images x [n, dx], balanced over M parts."""
        of_images, of_prototypes = whiten_by_prototypes(V, len(self.P))
        u = x.double() @ of_images.T
        rotation = torch.from_numpy(balanced_axes((u.T @ u).cpu().numpy(), M)).to(u.device)
        self.P.copy_(rotation @ of_images)
        self.Q.copy_(rotation @ of_prototypes)

    def forward(self, x: Tensor) -> Tensor:
        """u [n, D] of images [n, dx]."""
        return F.linear(x, self.P)

    def prototypes(self, v: Tensor) -> Tensor:
        """v' [T, D] of prototypes [T, dx]."""
        return F.linear(v, self.Q)


def whiten_by_prototypes(V: Tensor, D: int) -> tuple[Tensor, Tensor]:
    """R^½ and R^-½ of prototypes V [T, dx] along the D axes of largest weight in R: the maps of
    images and of prototypes, [D, dx] float64 each."""
    R = (V.double().T @ V.double()) / len(V)
    weight, axes = torch.linalg.eigh(R)
    weight, axes = weight.flip(0)[:D], axes.flip(1)[:, :D].T  # axes: [D, dx]
    root = (weight + _FLOOR * weight.mean()).clamp_min(_TINY).sqrt()[:, None]
    return root * axes, axes / root


def interpolated_classes(A: Tensor) -> Tensor:
    """Random class embeddings [n, da]: interpolations of two classes of A [L, da], with noise."""
    random = torch.Generator().manual_seed(0)
    pair = torch.randint(len(A), (2, _INTERPOLATED), generator=random).to(A.device)
    share = torch.rand(_INTERPOLATED, 1, generator=random).to(A.device)
    noise = torch.randn(_INTERPOLATED, A.shape[1], generator=random).to(A.device)
    between = share * A[pair[0]] + (1 - share) * A[pair[1]]
    return between + _NOISE * A.std(dim=0, unbiased=False) * noise


def code_width(D: int, dx: int, M: int) -> int:
    """The largest multiple of M that is at most D and dx.

    Raises:
        ConfigError: there is none but 0.
    """
    width = min(D, dx) // M * M
    if not width:
        raise ConfigError(
            f"M: {M} sub-codebooks are more than the {min(D, dx)} axes that are kept "
            f"(D = {D}, feature width {dx})"
        )
    return width


def codebook_method(settings: MethodSettings) -> ReductionMethod:
    """PQ of the embedded features."""
    return PQ(PQSettings(M=settings.M, K=settings.K, seed=settings.seed))
