"""Images that an earlier run has processed, by id and version."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class KnownImages:
    """Images that need not be decoded: n ids and versions; of an id that repeats, the first."""

    ids: pa.Array
    versions: pa.FixedSizeBinaryArray

    def positions(self, ids: pa.Array, versions: pa.FixedSizeBinaryArray) -> NDArray[np.int64]:
        """The position of each image here, -1 where its id or its version is not known."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        known = [self._positions.get(name, -1) for name in ids.to_pylist()]
        found = np.array(known, np.int64)
        same = pc.equal(self.versions.take(pa.array(np.maximum(found, 0))), versions)
        return np.where(same.to_numpy(zero_copy_only=False), found, -1)

    @cached_property
    def _positions(self) -> dict[Any, int]:
        names = self.ids.to_pylist()
        return {name: len(names) - 1 - at for at, name in enumerate(reversed(names))}
