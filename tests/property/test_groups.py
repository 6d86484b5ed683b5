"""Classes in two groups; the smaller one is scored only as far as it may matter."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raypq import kernels
from raypq.stages.classification.ranking import best_above


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 7, 200]),
    large=st.sampled_from([1, 3, 64, 130]),
    small=st.sampled_from([1, 2, 9, 65]),
    k=st.sampled_from([1, 2, 5, 10]),
    ahead=st.sampled_from([-3.0, 0.0, 3.0]),
    coarse=st.booleans(),
)
def test_merged_results_are_those_of_all_classes(seed, n, large, small, k, ahead, coarse):
    """Scores tie often if ``coarse``; ``ahead`` is added to the scores of the small group."""
    rng = np.random.default_rng(seed)
    C, V = rng.standard_normal((3, 16, 4)), rng.standard_normal((large + small, 12))
    if coarse:
        C, V = np.round(C), np.round(V)
    bias = np.repeat([0.0, ahead], [large, small])
    B = rng.integers(0, 16, (n, 3)).astype(np.uint8)

    def tables(part: slice) -> kernels.Tables:
        return kernels.build_tables(
            C.astype(np.float32), V[part].astype(np.float32), bias[part], "dot"
        )

    first = kernels.topk_per_code(B, tables(slice(large)), k)
    bar = first[0][:, -1] if first[0].shape[1] == k else None
    small_tables = tables(slice(large, None))
    score, index = best_above(B, small_tables, k, bar)
    merged = kernels.merge_topk([first, (score, index + large)], k)
    expected = kernels.topk_per_code(B, tables(slice(None)), k)
    np.testing.assert_array_equal(merged[0], expected[0])
    np.testing.assert_array_equal(merged[1], expected[1])
    best = kernels.topk_per_code(B, small_tables, 1)
    np.testing.assert_array_equal(score[:, :1], best[0])
    np.testing.assert_array_equal(index[:, :1], best[1])
