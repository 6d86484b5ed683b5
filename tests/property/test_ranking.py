"""Classes with several prototypes: the best one counts, ties go to the lower class."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raypq import kernels
from raypq.kernels.softmax import log_sum_exp
from raypq.stages.classification.class_groups import ClassGroup
from raypq.stages.classification.ranking import topk


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 7, 200]),
    T=st.sampled_from([1, 3, 64]),
    most=st.sampled_from([1, 2, 9, 80]),
    k=st.sampled_from([1, 2, 5, 10]),
    coarse=st.booleans(),
    vectors=st.booleans(),
)
def test_the_best_prototype_of_each_class_is_its_score(seed, n, T, most, k, coarse, vectors):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(T), rng.integers(1, most + 1, T))
    C, V = rng.standard_normal((3, 16, 4)), rng.standard_normal((len(owner), 12))
    if coarse:
        C, V = np.round(C), np.round(V)
    tables = kernels.build_tables(
        C.astype(np.float32), V.astype(np.float32), np.zeros(len(owner)), "dot"
    )
    B = rng.integers(0, 16, (n, 3)).astype(np.uint8)
    q = kernels.decode(B, tables.C)
    score, classes = topk(q if vectors else B, ClassGroup(tables=tables, owner=owner), k, "cpu")
    every = kernels.scores(B, tables).T if n else np.empty((0, len(owner)), np.float32)
    best = np.full((n, T), -np.inf, np.float32)
    np.maximum.at(best, (slice(None), owner), every)
    order = np.argsort(-best, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(classes, order)
    np.testing.assert_array_equal(score, np.take_along_axis(best, order, 1))
    top, total = log_sum_exp(q, tables.squared_norms(B), tables, 3.0, owner=owner)
    expected = np.logaddexp.reduce(3.0 * best.astype(np.float64), axis=1)
    np.testing.assert_allclose(3.0 * top + total, expected, rtol=1e-5, atol=1e-5)
