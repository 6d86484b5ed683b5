"""Images of a shard, compared one by one with those that a version holds."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class ImageChanges:
    """Counts images by whether a version holds them: with the same content, with another, or not.

    Each image of the version is counted once, so of ids that repeat as many are new or gone as
    there are more or fewer.

    Attributes:
        kept: with the same content, values kept. again: the same, computed again.
        known: images of the version that nothing was found of yet.
    """

    def __init__(self, ids: pa.Array, versions: pa.FixedSizeBinaryArray) -> None:
        self._versions: dict[Any, list[bytes]] = defaultdict(list)
        for name, version in zip(ids.to_pylist(), versions.to_pylist(), strict=True):
            self._versions[name].append(version)
        self.kept = self.again = 0
        self.known = len(ids)
        self._others: list[Any] = []  # ids of images whose content the version does not hold
        self._undecodable: list[Any] = []

    def add(
        self,
        ids: pa.Array,
        versions: pa.FixedSizeBinaryArray,
        reused: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compares images.

        Args:
            reused: mask of those whose values are kept; None for none.
        """
        mask = np.zeros(len(ids), bool) if reused is None else reused
        for name, version, kept in zip(ids.to_pylist(), versions.to_pylist(), mask, strict=True):
            held = self._versions.get(name, ())
            if version not in held:
                self._others.append(name)
                continue
            self._take(name, version)
            self.kept += bool(kept)
            self.again += not kept

    def add_undecodable(self, ids: pa.Array) -> None:
        """Notes images that are left out."""
        self._undecodable += ids.to_pylist()

    def finish(self) -> tuple[int, int]:
        """Images with another content, and undecodable images, that the version holds. Those whose
        content it holds must all have been added before."""
        return self._matched(self._others), self._matched(self._undecodable)

    def _matched(self, names: list[Any]) -> int:
        matched = 0
        for name in names:
            if held := self._versions.get(name):
                self._take(name, held[0])
                matched += 1
        names.clear()
        return matched

    def _take(self, name: Any, version: bytes) -> None:
        self._versions[name].remove(version)
        self.known -= 1
