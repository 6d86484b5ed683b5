"""Minimum spanning forests: which nodes of a graph are connected, at which weight, and by what."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from raypq.kernels import native, reference

Nodes = NDArray[np.uint32]
Weights = NDArray[np.float32]

_PENDING = 1 << 22  # edges that are added before others are left out


class Forest:
    """The minimum spanning forest of a graph of n nodes whose edges arrive in parts.

    It does not depend on their order: of edges of equal weight, those of lower nodes come first.

    Attributes:
        edges: [e, 2], e < n. weight: [e], ascending.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._edges: list[Nodes] = []
        self._weight: list[Weights] = []
        self._added = 0

    def add(self, edges: Nodes, weight: Weights) -> None:
        """Adds edges [p, 2], the lower node of each first, with their weights [p]."""
        self._edges.append(edges)
        self._weight.append(weight)
        self._added += len(edges)
        if self._added > max(_PENDING, self._n // 4):
            self._reduce()

    @property
    def edges(self) -> Nodes:
        """The edges that connect nodes which lighter edges do not connect."""
        return self._reduce()._edges[0]

    @property
    def weight(self) -> Weights:
        """The weight of each edge."""
        return self._reduce()._weight[0]

    def _reduce(self) -> Self:
        if self._added or not self._edges:
            edges = np.concatenate([np.empty((0, 2), np.uint32), *self._edges])
            weight = np.concatenate([np.empty(0, np.float32), *self._weight])
            self._edges.clear()
            self._weight.clear()
            kept = spanning_forest(self._n, edges, weight)
            self._edges, self._weight, self._added = [edges[kept]], [weight[kept]], 0
        return self


def spanning_forest(n: int, edges: Nodes, weight: Weights) -> NDArray[np.uint32]:
    """As ``reference.spanning_forest``."""
    kernel = native if native.available() else reference
    return kernel.spanning_forest(n, edges, weight)


def edges_from(n: int, edges: Nodes, roots: Nodes) -> NDArray[np.uint32]:
    """As ``reference.edges_from``."""
    kernel = native if native.available() else reference
    return kernel.edges_from(n, edges, roots)


def lowest_nodes(n: int, edges: Nodes) -> NDArray[np.uint32]:
    """The lowest node that each of n nodes is connected with, itself at most.

    Pointers to lower nodes are followed in doubling steps (Shiloach and Vishkin).
    """
    lowest = np.arange(n, dtype=np.uint32)
    a, b = edges[:, 0], edges[:, 1]
    while True:
        x, y = lowest[a], lowest[b]
        apart = x != y
        if not apart.any():
            return lowest
        a, b, x, y = a[apart], b[apart], x[apart], y[apart]
        np.minimum.at(lowest, np.maximum(x, y), np.minimum(x, y))
        while (lowest != (above := lowest[lowest])).any():
            lowest = above
