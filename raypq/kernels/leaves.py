"""Groups of similar classes, so that one bound excludes a whole group (``cpp/leaves.hpp``).

Classes are clustered by a random projection of their weights. How they are grouped affects speed
only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.kernels import leaf_clusters
from raypq.kernels.stored_tables import StoredTables

GROUP = 64  # leaves of a block: those of a tile of bounds
_AXES = 64  # of the projection
_READ = 8192  # classes that are read at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaves:
    """Classes in the order of their leaves.

    Attributes:
        tables: the classes in that order. number: which class each one is [T].
        first: leaf i is the classes [first[i], first[i + 1]); [L + 1].
        centre: mean weights [L, D], float32. radius: an upper bound of the distance of weights
            from it [L], float64. bias: the largest bias [L].
        weight: an upper bound of ‖w‖.
    """

    tables: StoredTables
    number: NDArray[np.int64]
    first: NDArray[np.int64]
    centre: NDArray[np.float32]
    radius: NDArray[np.float64]
    bias: NDArray[np.float64]
    weight: float

    def __len__(self) -> int:
        return len(self.radius)

    def blocks(self) -> Iterator[slice]:
        """Groups of leaves."""
        for start in range(0, len(self), GROUP):
            yield slice(start, min(len(self), start + GROUP))


def build(stored: StoredTables, *, threads: int = 1, seed: int = 0) -> Leaves:
    """Clusters classes, and stores them in the order of their leaves."""
    clusters = leaf_clusters.leaves(_projected(stored, seed).numpy(), threads=threads, seed=seed)
    order, sizes = np.concatenate(clusters), np.array([len(rows) for rows in clusters])
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    tables = stored.reordered(order, _READ)
    centre = np.empty((len(sizes), stored.D), np.float32)
    radius, weight = np.empty(len(sizes)), 0.0
    for start in range(0, len(sizes), GROUP):
        leaves = slice(start, min(len(sizes), start + GROUP))
        begin = first[leaves.start : leaves.stop + 1]
        W = tables.part(int(begin[0]), int(begin[-1])).W.astype(np.float64)
        at = begin[:-1] - begin[0]
        centre[leaves] = np.add.reduceat(W, at) / sizes[leaves, None]
        weight = max(weight, float(_lengths(W).max()))
        W -= np.repeat(centre[leaves].astype(np.float64), sizes[leaves], axis=0)
        radius[leaves] = np.maximum.reduceat(_lengths(W), at)
    # Sums of squares in float64 are exact to far less than this; the least number covers squares
    # that underflow.
    radius, weight = radius * (1 + 1e-9) + 1e-150, weight * (1 + 1e-9) + 1e-150
    bias = np.maximum.reduceat(tables.bias, first[:-1])
    return Leaves(tables=tables, number=order, first=first, centre=centre, radius=radius,
                  bias=bias, weight=weight)  # fmt: skip


def _lengths(W: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.einsum("td,td->t", W, W)))


def _projected(stored: StoredTables, seed: int) -> torch.Tensor:
    """A random projection of the weights [T, 64], scaled to lie within float32."""
    axes = np.random.default_rng([seed, 1]).standard_normal((stored.D, min(_AXES, stored.D)))
    matrix = torch.from_numpy(axes.astype(np.float32))
    out = torch.empty((stored.T, matrix.shape[1]))
    scale = 0.0
    for first, part in stored.parts(_READ):
        W = torch.from_numpy(part.W)
        if not scale:
            scale = 1.0 / max(float(W.abs().max()), 1e-30)
        out[first : first + part.T] = (W * scale) @ matrix
    return torch.nan_to_num(out, nan=0.0, posinf=1e15, neginf=-1e15).clamp(-1e15, 1e15)
