"""The kernels of ``fused`` in Triton; imported only where it is installed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def two_nearest(
    U,
    book,
    half,
    top,
    second,
    code,
    n,
    stride,
    K: tl.constexpr,
    d: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Program (b, m): vectors of block b in sub-space m. U [n, M·d], book [M, K, d], half [M, K];
    top, second, code [M, n]."""
    m = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, PART)
    live = rows < n
    at = rows.to(tl.int64)[:, None] * stride + m * d + dims[None, :]
    u = tl.load(U + at, mask=live[:, None] & (dims < d)[None, :], other=0.0)
    best = tl.full([ROWS], -float("inf"), tl.float32)
    runner_up = tl.full([ROWS], -float("inf"), tl.float32)
    nearest = tl.zeros([ROWS], tl.int32)
    for first in range(0, K, WORDS):
        words = first + tl.arange(0, WORDS)
        known = words < K
        at_word = (m * K + words)[None, :] * d + dims[:, None]
        c = tl.load(book + at_word, mask=(dims < d)[:, None] & known[None, :], other=0.0)
        h = tl.load(half + m * K + words, mask=known, other=float("inf"))
        score = tl.dot(u, c, input_precision="ieee") - h[None, :]
        here = tl.max(score, 1)
        place = tl.argmax(score, 1).to(tl.int32)
        others = tl.where(tl.arange(0, WORDS)[None, :] == place[:, None], -float("inf"), score)
        runner_up = tl.maximum(tl.maximum(runner_up, tl.max(others, 1)), tl.minimum(best, here))
        nearest = tl.where(here > best, first + place, nearest)
        best = tl.maximum(best, here)
    out = m.to(tl.int64) * n + rows
    tl.store(top + out, best, mask=live)
    tl.store(second + out, runner_up, mask=live)
    tl.store(code + out, nearest.to(tl.int64), mask=live)


@triton.jit
def pair_sums(
    x,
    w,
    i,
    j,
    out,
    pairs,
    x_stride,
    w_stride,
    D,
    PAIRS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Program b: pairs of block b. x [n, D], w [m, D]; i, j [pairs]; out [pairs, LANES]."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    lanes = tl.arange(0, LANES)
    live = pair < pairs
    a_row = tl.load(i + pair, mask=live, other=0)[:, None] * x_stride
    b_row = tl.load(j + pair, mask=live, other=0)[:, None] * w_stride
    sums = tl.zeros([PAIRS, LANES], tl.float64)
    for first in range(0, D, LANES):
        column = first + lanes[None, :]
        inside = live[:, None] & (column < D)
        a = tl.load(x + a_row + column, mask=inside, other=0.0).to(tl.float64)
        b = tl.load(w + b_row + column, mask=inside, other=0.0).to(tl.float64)
        sums += a * b  # the product of two float32 is exact, fused or not
    tl.store(out + pair.to(tl.int64)[:, None] * LANES + lanes[None, :], sums, mask=live[:, None])
