"""Vectors of queries in a model's space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.config import Distance
from raypq.methods.base import Array, Model

_STEADY = 256  # rows that are embedded together, always


def apply_in_fixed_blocks(X: Array, embed: Callable[[Array], Array]) -> Array:
    """``embed(X)`` in blocks of one size, the last filled up: a matrix product of another shape may
    add in another order, and a row's bits must not depend on its neighbours."""
    parts = []
    for start in range(0, len(X), _STEADY):
        part = X[start : start + _STEADY]
        padded = np.zeros((_STEADY, X.shape[1]), np.float32)
        padded[: len(part)] = part
        parts.append(embed(padded)[: len(part)])
    return np.concatenate(parts) if parts else embed(X)


def vectors(model: Model, X: NDArray[np.float32], distance: Distance) -> NDArray[np.float32]:
    """What stands for queries X [n, dx] in the model's space [n, D]: as the model asks (adc),
    or the codewords of their codes (sdc)."""
    if distance == "sdc":
        return model.decode(apply_in_fixed_blocks(X, model.encode))
    return apply_in_fixed_blocks(X, model.queries)


def report_invalid(ids: pa.Array, fit: NDArray[np.bool_], uri: str, row: int) -> list[str]:
    """What is wrong with queries that are not fit to be answered; warned of, too.

    Args:
        ids, fit: of consecutive rows of a file, which start at ``row``.
    """
    messages = [
        f"{uri}, row {row + bad} (id {ids[int(bad)].as_py()!r}): expected finite values, found NaN "
        "or Inf; this query has no answer"
        for bad in np.flatnonzero(~fit)
    ]
    for message in messages:
        console.warn(message)
    return messages
