"""All pairs from a score on, and all scores, on a device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.kernels import memory
from raypq.kernels.tables import Tables
from raypq.kernels.torch import pairs
from raypq.kernels.torch.bounds import error_of, floor_from, product
from raypq.kernels.torch.sides import CodeSide, ResidentTables, TableSide, filters

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def range_search(
    B: NDArray[np.uint8],
    tables: Tables,
    threshold: float,
    *,
    upper_triangle: bool = False,
    device: str = "cpu",
) -> Pairs:
    """Every (query, row, score) from ``threshold`` on; equal to ``reference.range_search``."""
    D = tables.W.shape[1]
    resident = ResidentTables.of(tables, device)
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    for queries in resident.blocks(tables):

        def search(rows: slice, queries: TableSide = queries) -> None:
            codes = resident.codes(B[rows])
            least = queries.start - rows.start if upper_triangle else None
            query, row, score = _pairs_from(codes, queries, threshold, device, least)
            found.append((query + queries.start, row + rows.start, score))

        rows = memory.rows_of(12 * D + 5 * len(queries), device)
        memory.in_parts(len(B), rows, device, search)
    query, row, score = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((row, query))
    return query[order], row[order], score[order]


def scores(B: NDArray[np.uint8], tables: Tables, *, device: str = "cpu") -> NDArray[np.float32]:
    """All scores [T, N]; equal to those of ``reference.scores``."""
    out = np.empty((tables.T, len(B)), np.float32)
    resident = ResidentTables.of(tables, device)
    for queries in resident.blocks(tables):

        def score(rows: slice, queries: TableSide = queries) -> None:
            codes = resident.codes(B[rows])
            n, m = len(queries), len(codes)
            pair = torch.arange(n * m, device=codes.vectors.device)
            value = pairs.scores(codes, queries, pair % m, pair // m).reshape(n, m)
            out[queries.start : queries.start + n, rows] = value.cpu().numpy()

        rows = memory.rows_of(12 * tables.W.shape[1] + 32 * len(queries), device)
        memory.in_parts(len(B), rows, device, score)
    return out


def _pairs_from(
    codes: CodeSide, queries: TableSide, threshold: float, device: str, least: int | None
) -> Pairs:
    """Pairs of a block whose score reaches the threshold.

    Args:
        least: only rows above the query's number and this.
    """
    precision, limit = filters(device)[0], np.float32(threshold)
    a, b = queries.operand(precision), codes.operand(precision)
    floor = floor_from(float(limit), error_of(a, b, codes.vectors.shape[1], precision), precision)
    # Negated, so that NaN (from overflow) stays a candidate.
    query, row = (~(product(a, b) < floor[:, None])).nonzero().unbind(1)
    if least is not None:
        above = row > query + least
        query, row = query[above], row[above]
    value = pairs.scores(codes, queries, row, query)
    kept = value >= float(limit)
    return query[kept].cpu().numpy(), row[kept].cpu().numpy(), value[kept].cpu().numpy()
