"""The merge of ranked parts: its fast form equals the plain one, bit for bit."""

import numpy as np
import pytest

from raypq.kernels import merge_topk

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.5], np.float32)


def by_sort(parts, k):
    """Row by row, with Python's own sort."""
    score = np.concatenate([score for score, _ in parts], axis=1)
    index = np.concatenate([index for _, index in parts], axis=1)
    order = np.array(
        [
            sorted(range(len(s)), key=lambda at: (-s[at], i[at]))[:k]
            for s, i in zip(score, index, strict=True)
        ]
    ).reshape(len(score), -1)
    return np.take_along_axis(score, order, 1), np.take_along_axis(index, order, 1)


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == np.ascontiguousarray(other).tobytes()


def part(rng, n, width, values, first=0):
    score = rng.choice(values, (n, width)).astype(np.float32)
    index = np.stack([rng.permutation(width) for _ in range(n)]).astype(np.int64) + first
    return score, index


@pytest.mark.parametrize("k", [1, 3, 7, 20])
@pytest.mark.parametrize("widths", [(1,), (5,), (4, 3), (2, 1, 6)])
@pytest.mark.parametrize("positive_zero", [True, False])
def test_equals_a_plain_sort(k, widths, positive_zero):
    rng = np.random.default_rng(k)
    values = SPECIAL[[0, *range(2, len(SPECIAL))]] if positive_zero else SPECIAL
    parts = [part(rng, 50, width, values, first=100 * at) for at, width in enumerate(widths)]
    same(merge_topk(parts, k), by_sort(parts, k))


@pytest.mark.parametrize("index", [(1 << 32) - 1, 1 << 32, (1 << 40) + 5, -1])
def test_indices_of_any_size(index):
    parts = [
        (np.array([[2.0, 1.0]], np.float32), np.array([[index, 3]])),
        (np.array([[2.0]], np.float32), np.array([[7]])),
    ]
    same(merge_topk(parts, 2), by_sort(parts, 2))


def test_parts_may_be_views_of_larger_arrays():
    rng = np.random.default_rng(0)
    score, index = part(rng, 9, 12, rng.standard_normal(40))
    parts = [(score[:, ::2], index[:, ::2]), (score[:, 1::2], index[:, 1::2])]
    same(merge_topk(parts, 5), by_sort(parts, 5))


def test_no_rows():
    score, index = merge_topk([(np.empty((0, 3), np.float32), np.empty((0, 3), np.int64))], 2)
    assert score.shape == index.shape == (0, 2)
