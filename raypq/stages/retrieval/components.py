"""Connected components of a graph over numbered rows, from edges that arrive in parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Components:
    """The lowest row that each of n rows is connected with; 8 bytes a row."""

    def __init__(self, n: int) -> None:
        self.lowest: Rows = np.arange(n, dtype=np.int64)

    def connect(self, a: Rows, b: Rows) -> None:
        """Adds edges between rows a [e] and b [e]."""
        a, b = self.lowest[a], self.lowest[b]
        apart = a != b
        if not apart.any():
            return
        # A graph of the components alone, of which only these edges are known.
        names, ends = np.unique(np.concatenate([a[apart], b[apart]]), return_inverse=True)
        root = _lowest(len(names), *ends.reshape(2, -1))
        # Names ascend, so that the lowest number has the lowest name.
        replaced = np.arange(len(self.lowest), dtype=np.int64)
        replaced[names] = names[root]
        self.lowest = replaced[self.lowest]


def _lowest(n: int, a: Rows, b: Rows) -> Rows:
    """The lowest of n nodes that each is connected with, by edges a [e], b [e].

    Shiloach and Vishkin's algorithm: every root is hung below a lower neighbouring root, and paths
    are halved, until no edge connects two trees.
    """
    parent = np.arange(n, dtype=np.int64)
    while True:
        x, y = parent[a], parent[b]
        apart = x != y
        if not apart.any():
            return parent
        np.minimum.at(parent, np.maximum(x[apart], y[apart]), np.minimum(x[apart], y[apart]))
        while (parent != (above := parent[parent])).any():
            parent = above
