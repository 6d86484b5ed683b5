"""Exact scores of pairs of a code (or vector) and a row of tables, in the order of ``tables``."""

from __future__ import annotations

import torch
from torch import Tensor

from raypq.kernels import memory
from raypq.kernels.tables import ACCUMULATORS
from raypq.kernels.torch import fused
from raypq.kernels.torch.sides import CodeSide, TableSide


def scores(codes: CodeSide, tables: TableSide, i: Tensor, j: Tensor) -> Tensor:
    """Scores [p], float32, of codes i [p] with rows j [p] of a block of tables.

    Beyond float32's range they are infinite.
    """
    D, device = codes.vectors.shape[1], codes.vectors.device
    out = torch.empty(len(i), dtype=torch.float32, device=device)
    for part in memory.parts(len(i), 8 * D, str(device)):
        of_code, of_row = i[part], j[part]
        dot = _dots(codes.vectors, tables.W, of_code, of_row)
        value = (dot * codes.scale[of_code] + codes.offset[of_code]) + tables.bias[of_row]
        out[part] = value.float()
    return out


def _dots(x: Tensor, w: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """⟨x[i], w[j]⟩ [p], float64."""
    sums = fused.pair_sums(x, w, i, j)
    if sums is None:
        a, b = x[i], w[j]
        sums = torch.zeros((len(i), ACCUMULATORS), dtype=torch.float64, device=x.device)
        for first in range(0, a.shape[1], ACCUMULATORS):
            columns = slice(first, first + ACCUMULATORS)
            part = a[:, columns].double() * b[:, columns].double()
            sums[:, : part.shape[1]] += part
    four = sums[:, :4] + sums[:, 4:]
    two = four[:, :2] + four[:, 2:]
    return two[:, 0] + two[:, 1]
