"""The kernels on any torch device: float32 matrix products filter, and survivors get exact scores.

The error of a float32 product is at most γ·‖q‖·‖w‖ (γ = n·ε over n terms), so a score that is below
the k-th best by more than twice that cannot be among the k best. The others are computed again
exactly. Where a product may leave float32's range the bound is infinite, and all are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.kernels.tables import (
    ACCUMULATORS,
    Tables,
    check_codebooks,
    decode,
    merge_topk,
    squared_norms,
)

_BUDGET = 128 << 20  # bytes of one intermediate array
_CACHE = 8 << 20  # bytes of a block of scores that fits the cache of a CPU core
_ASSIGN_ROWS = 8192  # rows that are assigned at a time on a device
_PAD = 8  # candidates beyond k in the first attempt at a row's top k
_RETRY_ROWS = 256  # rows with more candidates than that, rescored at a time
_EPS = 2.0**-23  # twice the unit roundoff of float32: room for the bound's own rounding
_TINY = 2.0**-126  # smallest normal float32: bound on the error of underflow
_HUGE = 2.0**126  # products whose sum of magnitudes is below it cannot overflow


@dataclass(frozen=True)
class Codebooks:
    """Codebooks on a device, ready to assign vectors to codewords.

    Attributes:
        book: C [M, K, d], float32. half: ‖c‖² / 2 [M, K], float64, in the order of ``tables``.
        largest: the largest ‖c‖ of each sub-codebook [M, 1], float64.
    """

    book: torch.Tensor
    half: torch.Tensor
    largest: torch.Tensor

    @classmethod
    def on(cls, device: str, C: NDArray[np.floating]) -> Codebooks:
        """Codebooks C [M, K, d] on a device."""
        C = np.ascontiguousarray(C, dtype=np.float32)
        check_codebooks(C)
        book = torch.from_numpy(np.array(C)).to(device)
        half = torch.zeros(book.shape[:2], dtype=torch.float64, device=book.device)
        for j in range(C.shape[2]):
            half += book[:, :, j].double() ** 2
        half *= 0.5
        return cls(book, half, (2 * half.amax(1)).sqrt()[:, None])

    def assign(self, U: torch.Tensor) -> torch.Tensor:
        """Codes [n, M], uint8, of vectors U [n, M·d] on the device; as ``reference.encode``."""
        M, K, _ = self.book.shape
        on_cpu = self.book.device.type == "cpu"
        step = max(1, min(128, _CACHE // (4 * M * K))) if on_cpu else _ASSIGN_ROWS
        parts = [self._assign(part) for part in torch.split(U, step)] if len(U) else []
        empty = torch.empty((0, M), dtype=torch.uint8, device=self.book.device)
        return torch.cat(parts) if parts else empty

    def _assign(self, U: torch.Tensor) -> torch.Tensor:
        book, half = self.book, self.half
        M, K, d = book.shape
        u = U.reshape(-1, M, d).transpose(0, 1)
        score = torch.baddbmm(half.float()[:, None, :], u, book.transpose(1, 2), beta=-1.0)
        top, code = score.max(2)
        second = score.scatter_(2, code[:, :, None], -torch.inf).amax(2)
        length = torch.linalg.vector_norm(u, dim=2, dtype=torch.float64)
        size = length * self.largest + self.largest**2
        error = (d + 4) * (_EPS * size + _TINY)
        # Negated, so that NaN (from overflow) counts as close.
        close = ~((second < top - 2 * error) & (size < _HUGE))
        pairs = close.nonzero()
        for chunk in torch.split(pairs, max(1, _BUDGET // (8 * K))):
            m, i = chunk.unbind(1)
            part = torch.zeros((len(m), K), dtype=torch.float64, device=U.device)
            for j in range(d):
                part += u[m, i, j].double()[:, None] * book[m, :, j].double()
            code[m, i] = _first_max(part - half[m])
        return code.T.to(torch.uint8)

    def decode(self, B: torch.Tensor) -> torch.Tensor:
        """Codewords [n, M·d] of codes B [n, M]."""
        M, K, d = self.book.shape
        flat = B.long() + K * torch.arange(M, device=B.device)
        return self.book.reshape(M * K, d)[flat].reshape(len(B), M * d)


def encode(
    U: NDArray[np.floating] | torch.Tensor, C: NDArray[np.floating], *, device: str = "cpu"
) -> NDArray[np.uint8]:
    """Codes [n, M] of vectors U [n, M·d], an array or a tensor (on the device, too).

    Equal to ``reference.encode``.
    """
    books = Codebooks.on(device, C)
    if not isinstance(U, torch.Tensor):
        U = torch.from_numpy(np.ascontiguousarray(U, dtype=np.float32))
    parts = [books.assign(part.to(device)).cpu() for part in torch.split(U, _ASSIGN_ROWS)]
    codes: NDArray[np.uint8] = torch.cat(parts).numpy()
    return codes


def _first_max(score: torch.Tensor) -> torch.Tensor:
    # As NumPy's argmax: the first NaN, else the first maximum, which torch does not promise.
    column = torch.arange(score.shape[1], device=score.device)
    best = (score == score.amax(1, keepdim=True)) | score.isnan()
    best &= score.isnan() | ~score.isnan().any(1, keepdim=True)
    return torch.where(best, column, score.shape[1]).amin(1)


def topk_per_code(
    B: NDArray[np.uint8], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each code; equal to ``reference.topk_per_code``."""
    return _topk_rows(decode(B, tables.C), tables.squared_norms(B), tables, k, device)


def topk_per_vector(
    U: NDArray[np.float32], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each vector; equal to ``reference.topk_per_vector``."""
    return _topk_rows(U, squared_norms(U), tables, k, device)


def topk_per_query(
    B: NDArray[np.uint8], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best codes of each query; equal to ``reference.topk_per_query``."""
    T, D = tables.W.shape
    if not T or not len(B) or k < 1:
        shape = T, min(k, len(B))
        return np.empty(shape, np.float32), np.empty(shape, np.int64)
    best = np.empty((T, 0), np.float32), np.empty((T, 0), np.int64)
    W = torch.from_numpy(tables.W).to(device)
    bias = torch.from_numpy(tables.bias).to(device)[:, None]
    norm = torch.from_numpy(np.sqrt(squared_norms(tables.W))).to(device)
    for rows in _blocks(len(B), 4 * D):
        squared = tables.squared_norms(B[rows])
        scale, offset = (_column(term, device).T for term in tables.row_terms(squared))
        length = _column(np.sqrt(squared), device).T
        error = _error(
            D,
            norm * length.max(),
            scale.max(),
            norm * (scale * length).max() + offset.abs().max() + bias[:, 0].abs(),
        )
        q = torch.from_numpy(decode(B[rows], tables.C)).to(device)
        score, row = _topk(W, q, _Terms(scale, offset, bias), error, k)
        best = merge_topk([best, (score, row + rows.start)], k)
    return best


def range_search(
    B: NDArray[np.uint8],
    tables: Tables,
    threshold: float,
    *,
    upper_triangle: bool = False,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Every (query, row, score) from ``threshold`` on; equal to ``reference.range_search``."""
    T, D = tables.W.shape
    limit = np.float32(threshold)
    W = torch.from_numpy(tables.W).to(device)
    norm = torch.from_numpy(np.sqrt(squared_norms(tables.W))).to(device)
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    for rows in _blocks(len(B), 4 * (D + T)):
        squared = tables.squared_norms(B[rows])
        scale, offset = (_column(term, device).T for term in tables.row_terms(squared))
        terms = _Terms(scale, offset, torch.from_numpy(tables.bias).to(device)[:, None])
        product = norm[:, None] * _column(np.sqrt(squared), device).T
        error = _error(D, product, scale, product * scale + offset.abs() + terms.bias.abs())
        q = torch.from_numpy(decode(B[rows], tables.C)).to(device)
        # Negated, so that NaN (from overflow) stays a candidate.
        candidate = ~(terms.rough(W @ q.T) < (float(limit) - 2 * error).float())
        query, row = candidate.nonzero(as_tuple=True)
        value = np.empty(len(query), np.float32)
        for part in _blocks(len(query), 8 * D):
            i, j = query[part], row[part]
            dot = _exact_dot(W[i], q[j])
            pair = (dot * scale[0, j] + offset[0, j]) + terms.bias[i, 0]
            value[part] = _float32(pair)
        query_id, row_id = query.cpu().numpy(), row.cpu().numpy() + rows.start
        keep = value >= limit
        if upper_triangle:
            keep &= row_id > query_id
        parts.append((query_id[keep], row_id[keep], value[keep]))
    query_id, row_id, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((row_id, query_id))
    return query_id[order], row_id[order], score[order]


@dataclass(frozen=True)
class _Terms:
    """score[i, j] = (dot[i, j]·scale + offset) + bias; each term broadcasts to [n, m], float64."""

    scale: torch.Tensor
    offset: torch.Tensor
    bias: torch.Tensor

    def rows(self, rows: slice) -> _Terms:
        def part(term: torch.Tensor) -> torch.Tensor:
            return term if len(term) == 1 else term[rows]

        return _Terms(part(self.scale), part(self.offset), part(self.bias))

    def exact(self, dot: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """Scores from the products dot [n, c] of rows i [n] with columns j [n, c]."""

        def pick(term: torch.Tensor) -> torch.Tensor:
            if term.shape[1] > 1:
                return term[0][j]
            return term[i] if len(term) > 1 else term

        return (dot * pick(self.scale) + pick(self.offset)) + pick(self.bias)

    def rough(self, dot: torch.Tensor) -> torch.Tensor:
        return dot * self.scale.float() + self.offset.float() + self.bias.float()


def _column(term: NDArray[np.float64], device: str) -> torch.Tensor:
    return torch.from_numpy(term).to(device)[:, None]


def _error(D: int, product: torch.Tensor, scale: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """Bound on the error of a float32 score of D products; infinite where it may overflow.

    ``product`` bounds ‖q‖·‖w‖, ``parts`` the sum of the magnitudes of a score's terms.
    """
    error = (D + 8) * _EPS * parts + D * _TINY * (1 + scale)
    fits = (product < _HUGE) & (scale < _HUGE) & (parts < _HUGE)
    return torch.where(fits, error, torch.inf)


def topk_of_classes(
    q: NDArray[np.float32],
    squared: NDArray[np.float64],
    tables: Tables,
    owner: NDArray[np.int64],
    k: int,
    *,
    device: str = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of rows q [n, D] where a class has several rows W of the tables, of which
    the best one gives its score: scores and classes [n, min(k, T)], ties to the lower class.

    Args:
        squared: ‖q‖² of each row [n]. owner: class of each row of W [m], ascending from 0 to T − 1.
    """
    n, T = len(q), int(owner[-1]) + 1 if len(owner) else 0
    k = min(k, T)
    best, classes = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
    if not n or not k:
        return best, classes
    x, W, terms, error = _row_inputs(q, squared, tables, device)
    classes_of = torch.from_numpy(owner).to(device)
    for rows in _blocks(n, 16 * len(W)):
        part, local = x[rows].to(device), terms.rows(rows)
        score = local.rough(part @ W.T)
        top = best_of_class(score, classes_of, T)
        # A row of W counts if it may be the best of its class, and the class among the k best.
        least = torch.maximum(top.topk(k).values[:, -1:], top[:, classes_of])
        # Negated, so that NaN (from overflow) stays a candidate.
        candidate = ~(score < least - 2 * error[rows, None].float())
        score = torch.where(candidate, score.nan_to_num(nan=torch.inf), -torch.inf)
        needed = candidate.sum(1)
        widths = (2 ** needed.double().log2().ceil().long()).clamp_max(len(W))
        for width in np.unique(widths.cpu().numpy()).tolist():
            for chosen in torch.split((widths == width).nonzero()[:, 0], _RETRY_ROWS):
                columns = score[chosen].topk(width).indices
                value = local.exact(_rescore(part[chosen], W, columns), chosen, columns)
                value[~candidate[chosen[:, None], columns]] = -torch.inf
                out = rows.start + chosen.cpu().numpy()
                best[out], classes[out] = _first_classes(value, columns, owner, k)
    return best, classes


def best_of_class(score: torch.Tensor, owner: torch.Tensor, T: int) -> torch.Tensor:
    """The largest score of each of T classes [n, T] from scores [n, m] whose classes are owner
    [m]."""
    best = score.new_full((len(score), T), -torch.inf)
    return best.scatter_reduce(1, owner.expand_as(score), score, "amax")


def _first_classes(
    value: torch.Tensor, columns: torch.Tensor, owner: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of candidates with these scores [n, c]; k or more classes are among
    them."""
    score, of_class = _float32(value), owner[columns.cpu().numpy()]
    order = np.lexsort((of_class, -score), axis=1)
    score, of_class = (np.take_along_axis(each, order, 1) for each in (score, of_class))
    by_class = np.argsort(of_class, axis=1, kind="stable")
    ordered = np.take_along_axis(of_class, by_class, 1)
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty(new.shape, bool)
    np.put_along_axis(first, by_class, new, 1)
    kept = np.argsort(~first, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score, kept, 1), np.take_along_axis(of_class, kept, 1)


def _topk_rows(
    q: NDArray[np.float32], squared: NDArray[np.float64], tables: Tables, k: int, device: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    n = len(q)
    if not n or not tables.T or k < 1:
        shape = n, min(k, tables.T)
        return np.empty(shape, np.float32), np.empty(shape, np.int64)
    return _topk(*_row_inputs(q, squared, tables, device), k)


def _row_inputs(
    q: NDArray[np.float32], squared: NDArray[np.float64], tables: Tables, device: str
) -> tuple[torch.Tensor, torch.Tensor, _Terms, torch.Tensor]:
    """Rows x [n, D], weights W [m, D], the terms of scores, and a bound on the error of each row's
    float32 scores [n]."""
    D = q.shape[1]
    W = torch.from_numpy(tables.W).to(device)
    bias = torch.from_numpy(tables.bias).to(device)[None, :]
    scale, offset = (_column(term, device) for term in tables.row_terms(squared))
    longest = float(np.sqrt(squared_norms(tables.W).max()))
    product = longest * _column(np.sqrt(squared), device)
    error = _error(D, product, scale, product * scale + offset.abs() + bias.abs().max())[:, 0]
    x = torch.from_numpy(np.ascontiguousarray(q, dtype=np.float32))
    return x, W, _Terms(scale, offset, bias), error


def _topk(
    x: torch.Tensor, W: torch.Tensor, terms: _Terms, error: torch.Tensor, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of W [m, D] for each of x [n, D]; error [n] bounds that of float32 scores."""
    n, m = len(x), len(W)
    k = min(k, m)
    best, index = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
    for rows in _blocks(n, 4 * m):
        part, local = x[rows].to(W.device), terms.rows(rows)
        score = local.rough(part @ W.T)
        top = score.topk(min(k + _PAD, m))
        floor = top.values[:, k - 1] - 2 * error[rows].float()
        enough = (top.values[:, -1] < floor) | (top.values.shape[1] == m)
        for chosen, width in _groups(score, floor, enough, top.indices.shape[1]):
            columns = top.indices[chosen] if width is None else score[chosen].topk(width).indices
            value = local.exact(_rescore(part[chosen], W, columns), chosen, columns)
            out = rows.start + chosen.cpu().numpy()
            best[out], index[out] = _first_k(value, columns, k)
    return best, index


def _groups(
    score: torch.Tensor, floor: torch.Tensor, enough: torch.Tensor, width: int
) -> Iterator[tuple[torch.Tensor, int | None]]:
    """Rows whose padded top k surely has the k best (width None); then the others, with the number
    of candidates that they need."""
    sure = enough.nonzero()[:, 0]
    if len(sure):
        yield sure, None
    doubtful = (~enough).nonzero()[:, 0]
    if len(doubtful):
        # Negated, so that NaN (from overflow) stays a candidate.
        needed = (~(score[doubtful] < floor[doubtful, None])).sum(1).clamp_min(width).cpu()
        # Rounded up to a power of two, so that many rows share a width.
        widths = (2 ** needed.double().log2().ceil().long()).clamp_max(score.shape[1])
        for shared in np.unique(widths.numpy()).tolist():
            group = doubtful[(widths == shared).to(doubtful.device)]
            for rows in torch.split(group, _RETRY_ROWS):
                yield rows, shared


def _rescore(x: torch.Tensor, W: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """⟨x_i, W[columns[i, c]]⟩ [n, c], float64 in the canonical order of ``tables``."""
    n, c = columns.shape
    D = W.shape[1]
    out = torch.empty((n, c), dtype=torch.float64, device=x.device)
    step = max(1, _BUDGET // (4 * D * max(1, n)))
    for start in range(0, c, step):
        w = W[columns[:, start : start + step]]
        out[:, start : start + step] = _exact_dot(x[:, None, :], w)
    return out


def _exact_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products on the last axis, float64 in the canonical order of ``tables``."""
    shape = np.broadcast_shapes(a.shape, b.shape)[:-1]
    sums = torch.zeros((*shape, ACCUMULATORS), dtype=torch.float64, device=a.device)
    for j in range(0, a.shape[-1], ACCUMULATORS):
        part = a[..., j : j + ACCUMULATORS].double() * b[..., j : j + ACCUMULATORS].double()
        sums[..., : part.shape[-1]] += part
    four = sums[..., :4] + sums[..., 4:]
    two = four[..., :2] + four[..., 2:]
    return two[..., 0] + two[..., 1]


def _first_k(
    value: torch.Tensor, columns: torch.Tensor, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    score, index = _float32(value), columns.cpu().numpy()
    order = np.lexsort((index, -score), axis=1)[:, :k]
    return np.take_along_axis(score, order, 1), np.take_along_axis(index, order, 1)


def _float32(score: torch.Tensor) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # to infinity, as in every implementation
        return score.cpu().numpy().astype(np.float32)


def _blocks(n: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, min(n, _BUDGET // max(1, row_bytes)))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))
