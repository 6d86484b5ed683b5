"""Query vectors in the space of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.config import Distance
from raypq.methods.base import Array, Model

_BLOCK_ROWS = 256  # rows that are embedded together


def apply_in_fixed_blocks(X: Array, embed: Callable[[Array], Array]) -> Array:
    """``embed(X)`` in blocks of one size, the last one padded. Matrix products of other shapes may
    add in another order, and the bits of a row must not depend on the other rows."""
    parts = []
    for start in range(0, len(X), _BLOCK_ROWS):
        part = X[start : start + _BLOCK_ROWS]
        padded = np.zeros((_BLOCK_ROWS, X.shape[1]), np.float32)
        padded[: len(part)] = part
        parts.append(embed(padded)[: len(part)])
    return np.concatenate(parts) if parts else embed(X)


def vectors(model: Model, X: NDArray[np.float32], distance: Distance) -> NDArray[np.float32]:
    """Query vectors [n, D] of X [n, dx]: uncompressed (adc), or of their codes (sdc)."""
    if distance == "sdc":
        return model.code_queries(apply_in_fixed_blocks(X, model.encode))
    return apply_in_fixed_blocks(X, model.queries)


def report_invalid(ids: pa.Array, valid: NDArray[np.bool_], uri: str, row: int) -> list[str]:
    """Warns of queries with NaN or Inf; returns the messages.

    Args:
        ids, valid: of consecutive rows of a file, which start at ``row``.
    """
    messages = [
        f"{uri}, row {row + bad} (id {ids[int(bad)].as_py()!r}): expected finite values, found NaN "
        "or Inf; this query has no result"
        for bad in np.flatnonzero(~valid)
    ]
    for message in messages:
        console.warn(message)
    return messages
