"""The kernels on any torch device: matrix products as the filter, exact scores for what it keeps.

A float32 product is off by at most γ·‖q‖·‖w‖ (γ = n·ε over n terms), so whatever is further than
twice that below the k-th best cannot be among the k best. The rest is scored again exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.kernels.tables import LANES, Tables, decode, squared_norms

_BUDGET = 128 << 20  # bytes of one intermediate array
_CACHE = 8 << 20  # bytes of a block of scores that a CPU core still holds
_PAD = 8  # candidates kept beyond k before a row counts as doubtful
_EPS = 2.0**-23  # twice the unit roundoff of float32: room for the bound's own rounding


def encode(
    U: NDArray[np.floating], C: NDArray[np.floating], *, device: str = "cpu"
) -> NDArray[np.uint8]:
    """Codes [n, M] of vectors U [n, M·d]; equal to ``reference.encode``."""
    C = np.ascontiguousarray(C, dtype=np.float32)
    U = np.ascontiguousarray(U, dtype=np.float32)
    M, K, d = C.shape
    book = torch.from_numpy(C).to(device)
    exact = book.double()
    half = torch.zeros((M, K), dtype=torch.float64, device=device)
    for j in range(d):
        half += exact[:, :, j] ** 2
    half *= 0.5
    half32 = half.float()[:, None, :]
    largest = (2 * half.amax(1)).sqrt().float()[:, None]  # max_k ‖c_mk‖, [M, 1]
    B = np.empty((len(U), M), np.uint8)
    step = max(1, min(128, _CACHE // (4 * M * K))) if device == "cpu" else 8192
    for start in range(0, len(U), step):
        u = torch.from_numpy(U[start : start + step]).to(device).view(-1, M, d).transpose(0, 1)
        score = torch.baddbmm(half32, u, book.transpose(1, 2), beta=-1.0)  # [M, n, K]
        top, code = score.amax(2), score.argmax(2)
        second = score.scatter_(2, code[:, :, None], -torch.inf).amax(2)
        error = (d + 4) * _EPS * (u.norm(dim=2) * largest + largest**2)
        close = second >= top - 2 * error
        m, i = close.nonzero(as_tuple=True)
        if len(m):
            part = torch.zeros((len(m), K), dtype=torch.float64, device=device)
            for j in range(d):
                part += u[m, i, j].double()[:, None] * exact[m, :, j]
            code[m, i] = _first_max(part - half[m])
        B[start : start + step] = code.T.to(torch.uint8).cpu().numpy()
    return B


def _first_max(score: torch.Tensor) -> torch.Tensor:
    # torch does not promise which of several equal maxima it names; NumPy names the first.
    at = torch.arange(score.shape[1], device=score.device)
    best = score == score.amax(1, keepdim=True)
    return torch.where(best, at, score.shape[1]).amin(1)


def topk_per_code(
    B: NDArray[np.uint8], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each code; equal to ``reference.topk_per_code``."""
    return _topk(decode(B, tables.C), tables.squared_norms(B), tables, k, device)


def topk_per_vector(
    U: NDArray[np.float32], tables: Tables, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best classes of each vector; equal to ``reference.topk_per_vector``."""
    return _topk(U, squared_norms(U), tables, k, device)


def _topk(
    q: NDArray[np.float32], squared: NDArray[np.float64], tables: Tables, k: int, device: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    k = min(k, tables.T)
    n, D = q.shape
    best, classes = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
    if not n or not k:
        return best, classes
    W = torch.from_numpy(tables.W).to(device)
    bias = torch.from_numpy(tables.bias).to(device)
    wide = float(np.sqrt(squared_norms(tables.W).max()))
    scale, offset = (torch.from_numpy(term).to(device) for term in tables.row_terms(squared))
    reach = scale * torch.from_numpy(np.sqrt(squared)).to(device) * wide
    error = (D + 8) * _EPS * reach + 4 * _EPS * (offset.abs() + bias.abs().max())
    for rows in _blocks(n, 4 * tables.T):
        x = torch.from_numpy(np.ascontiguousarray(q[rows])).to(device)
        score = (x @ W.T) * scale[rows, None].float() + bias.float()
        top = score.topk(min(k + _PAD, tables.T))
        floor = top.values[:, k - 1] - 2 * error[rows].float()
        enough = (top.values[:, -1] < floor) | (top.values.shape[1] == tables.T)
        for chosen, width in _groups(score, floor, enough, top.indices.shape[1]):
            found = top.indices[chosen] if width is None else score[chosen].topk(width).indices
            exact = _rescore(x[chosen], W, found)
            at = rows.start + chosen
            value = (exact * scale[at, None] + offset[at, None]) + bias[found]
            place = at.cpu().numpy()
            best[place], classes[place] = _first_k(value, found, k)
    return best, classes


def _groups(
    score: torch.Tensor, floor: torch.Tensor, enough: torch.Tensor, width: int
) -> Iterator[tuple[torch.Tensor, int | None]]:
    """Rows whose padded top-k is sure to hold the answer, then the others with their width."""
    sure = enough.nonzero()[:, 0]
    if len(sure):
        yield sure, None
    doubtful = (~enough).nonzero()[:, 0]
    if len(doubtful):
        needed = (score[doubtful] >= floor[doubtful, None]).sum(1)
        for row, count in zip(doubtful, needed.tolist(), strict=True):
            yield row[None], max(width, int(count))


def _rescore(x: torch.Tensor, W: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """⟨x_i, W[found[i, c]]⟩ [n, c], float64 in the canonical order of ``tables``."""
    n, c = found.shape
    D = W.shape[1]
    out = torch.empty((n, c), dtype=torch.float64, device=x.device)
    columns = max(1, _BUDGET // (4 * D * max(1, n)))
    for start in range(0, c, columns):
        w = W[found[:, start : start + columns]]
        lanes = torch.zeros((*w.shape[:2], LANES), dtype=torch.float64, device=x.device)
        for j in range(0, D, LANES):
            part = x[:, None, j : j + LANES].double() * w[:, :, j : j + LANES].double()
            lanes[:, :, : part.shape[2]] += part
        four = lanes[..., :4] + lanes[..., 4:]
        two = four[..., :2] + four[..., 2:]
        out[:, start : start + columns] = two[..., 0] + two[..., 1]
    return out


def _first_k(
    value: torch.Tensor, found: torch.Tensor, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    score, index = value.cpu().numpy().astype(np.float32), found.cpu().numpy()
    order = np.lexsort((index, -score), axis=1)[:, :k]
    return np.take_along_axis(score, order, 1), np.take_along_axis(index, order, 1)


def _blocks(n: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, min(n, _BUDGET // max(1, row_bytes)))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))
