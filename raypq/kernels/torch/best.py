"""The k best on a device: a filter of low precision, then exact scores of what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq.kernels import memory
from raypq.kernels.tables import Tables, squared_norms
from raypq.kernels.torch import pairs
from raypq.kernels.torch.bounds import (
    FLOAT32,
    Operand,
    Precision,
    error_of,
    errors_of,
    floor_from,
    floor_of,
    product,
)
from raypq.kernels.torch.sides import CodeSide, ResidentTables, TableSide, filters

_RETRY_ROWS = 256  # rows with more candidates than the first attempt's, rescored at a time

TopK = tuple[NDArray[np.float32], NDArray[np.int64]]
Exact = Callable[[Tensor, Tensor], Tensor]  # scores [p] of rows [p] and columns [p]


def topk_per_code(B: NDArray[np.uint8], tables: Tables, k: int, *, device: str = "cpu") -> TopK:
    """The k best classes of each code; equal to ``reference.topk_per_code``."""
    resident = ResidentTables.of(tables, device)
    return _topk_per_row(len(B), lambda rows: resident.codes(B[rows]), tables, resident, k)


def topk_per_vector(U: NDArray[np.float32], tables: Tables, k: int, *, device: str = "cpu") -> TopK:
    """The k best classes of each vector; equal to ``reference.topk_per_vector``."""
    resident = ResidentTables.of(tables, device)

    def side(rows: slice) -> CodeSide:
        return resident.vectors(U[rows], squared_norms(U[rows]))

    return _topk_per_row(len(U), side, tables, resident, k)


def topk_per_query(B: NDArray[np.uint8], tables: Tables, k: int, *, device: str = "cpu") -> TopK:
    """The k best codes of each query; equal to ``reference.topk_per_query``."""
    T, D = tables.W.shape
    k = max(0, min(k, len(B)))
    best = np.empty((T, k), np.float32), np.empty((T, k), np.int64)
    if not T or not k:
        return best
    resident = ResidentTables.of(tables, device)
    for queries in resident.blocks(tables):
        found = Found.none(len(queries), device)

        def search(rows: slice, queries: TableSide = queries, found: Found = found) -> None:
            codes = resident.codes(B[rows])

            def exact(i: Tensor, j: Tensor) -> Tensor:
                return pairs.scores(codes, queries, j, i)

            search_block(
                Search(queries.operand, codes.operand, exact, D, device), k, found, rows.start
            )

        memory.in_parts(len(B), _searched_rows(len(queries), D, device), device, search)
        rows = slice(queries.start, queries.start + len(queries))
        best[0][rows], best[1][rows] = found.on_host()
    return best


def _topk_per_row(
    n: int,
    side: Callable[[slice], CodeSide],
    tables: Tables,
    resident: ResidentTables,
    k: int,
) -> TopK:
    T, D = tables.W.shape
    k = max(0, min(k, T))
    best = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
    if not n or not k:
        return best
    device = resident.device

    def classify(rows: slice) -> None:
        codes = side(rows)
        found = Found.none(len(codes), device)
        for classes in resident.blocks(tables):

            def exact(i: Tensor, j: Tensor, classes: TableSide = classes) -> Tensor:
                return pairs.scores(codes, classes, i, j)

            search_block(
                Search(codes.operand, classes.operand, exact, D, device), k, found, classes.start
            )
        best[0][rows], best[1][rows] = found.on_host()

    row_bytes = 4 * resident.block_rows + 12 * D
    memory.in_parts(n, memory.rows_of(row_bytes, device), device, classify)
    return best


@dataclass
class Found:
    """The best that were found so far: scores [n, ·], float32, and indices [n, ·]."""

    score: Tensor
    index: Tensor

    @classmethod
    def none(cls, n: int, device: str) -> Found:
        """Nothing yet, for n rows."""
        return cls(
            torch.empty((n, 0), device=device),
            torch.empty((n, 0), dtype=torch.int64, device=device),
        )

    def add(self, score: Tensor, index: Tensor, k: int) -> None:
        """Keeps the k best of these and others [n, ·], ties to the lower index."""
        self.score, self.index = first_k(
            torch.cat([self.score, score], dim=1), torch.cat([self.index, index], dim=1), k
        )

    def on_host(self) -> TopK:
        """Scores and indices as arrays."""
        return self.score.cpu().numpy(), self.index.cpu().numpy()


@dataclass(frozen=True)
class Search:
    """Rows and columns of a block of scores.

    Attributes:
        rows, columns: their operands in a precision. exact: scores of pairs of them. D: dimensions
            of their vectors.
    """

    rows: Callable[[Precision], Operand]
    columns: Callable[[Precision], Operand]
    exact: Exact
    D: int
    device: str


def search_block(search: Search, k: int, found: Found, start: int) -> None:
    """Adds the k best columns of each row, whose numbers begin at ``start``, to those found."""
    first = filters(search.device)[0]
    n, m = len(search.rows(first)), len(search.columns(first))
    kth = found.score[:, k - 1] if found.score.shape[1] >= k else None
    score = torch.full((n, min(k, m)), -torch.inf, device=search.device)
    index = torch.zeros((n, min(k, m)), dtype=torch.int64, device=search.device)
    for rows in memory.parts(n, 4 * m, search.device):
        chosen = torch.arange(rows.start, rows.stop, device=search.device)
        _search_rows(search, chosen, kth, score, index)
    found.add(score, index + start, k)


def _search_rows(
    search: Search, rows: Tensor, kth: Tensor | None, score: Tensor, index: Tensor
) -> None:
    """Writes the best columns of some rows to score and index [n, min(k, m)]."""
    k = score.shape[1]
    for precision in filters(search.device):
        a, b = search.rows(precision).take(rows), search.columns(precision)
        rough, m = product(a, b), len(b)
        error = error_of(a, b, search.D, precision)
        width = min(m, k + max(precision.least_spare, int(precision.spare * k)))
        top = rough.topk(width)
        floor = floor_of(top.values[:, k - 1], error, precision)
        if kth is not None:  # columns that cannot displace what was found before
            floor = torch.maximum(floor, floor_from(kth[rows], error, precision))
        enough = (top.values[:, -1] < floor) | (width == m)
        sure = enough.nonzero()[:, 0]
        # Negated, so that NaN (from overflow) stays a candidate.
        candidate = ~(top.values[sure] < floor[sure, None])
        _settle(search, rows[sure], candidate, top.indices[sure], score, index)
        left = (~enough).nonzero()[:, 0]
        if not len(left):
            return
        if precision is not FLOAT32:
            rows = rows[left]
    for part in torch.split(left, _RETRY_ROWS):
        _search_by_pairs(search, rows[part], rough[part], a.take(part), b, score, index)


def _search_by_pairs(
    search: Search,
    rows: Tensor,
    rough: Tensor,
    a: Operand,
    b: Operand,
    score: Tensor,
    index: Tensor,
) -> None:
    """As ``_search_rows`` for rows whose bound by the largest column leaves too much: a bound for
    each pair."""
    errors = errors_of(a, b, search.D, FLOAT32)
    wide = rough.double()
    lower, upper = wide - errors, wide + errors
    # NaN (from overflow) bounds nothing, and stays a candidate.
    kth = lower.nan_to_num(nan=-torch.inf).topk(score.shape[1]).values[:, -1:]
    candidate = ~(upper < kth)
    order = torch.where(candidate, upper.nan_to_num(nan=torch.inf), -torch.inf)
    for group, columns in by_width(candidate, order):
        chosen = candidate[group[:, None], columns]
        _settle(search, rows[group], chosen, columns, score, index)


def by_width(candidate: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups of rows [g] with the columns [g, ·] of all their candidates, which are those of the
    largest ``order``; both [n, m].

    The number of columns is a power of two, or all, so that many rows share it.
    """
    needed = candidate.sum(1)
    widths = (2 ** needed.double().log2().ceil().long()).clamp_max(candidate.shape[1]).cpu()
    for width in np.unique(widths.numpy()).tolist():
        for rows in torch.split((widths == width).nonzero()[:, 0], _RETRY_ROWS):
            group = rows.to(order.device)
            yield group, order[group].topk(width).indices


def _settle(
    search: Search, rows: Tensor, candidate: Tensor, columns: Tensor, score: Tensor, index: Tensor
) -> None:
    """Writes the exact scores of the best of some columns [r, c], as far as they are candidates
    [r, c]."""
    row, place = candidate.nonzero().unbind(1)
    value = torch.full(columns.shape, -torch.inf, device=columns.device)
    value[row, place] = search.exact(rows[row], columns[row, place])
    score[rows], index[rows] = first_k(value, columns, score.shape[1])


def first_k(score: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of scores [n, c] and their indices, ties to the lower index."""
    ascending = index.sort(dim=1, stable=True)
    score = score.gather(1, ascending.indices)
    best = score.sort(dim=1, descending=True, stable=True)
    return best.values[:, :k], ascending.values.gather(1, best.indices[:, :k])


def _searched_rows(T: int, D: int, device: str) -> int:
    """Rows of codes of one block of a search."""
    return memory.rows_of(max(12 * D, 4 * min(T, 1024)), device)
