"""k-means of codes: an iteration by definition, and sums, samples and seeds of any division."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypq.methods.pq import PQModel, PQSettings
from raypq.methods.support import kmeans
from raypq.methods.support.code_sample import CodeSample, hashes_of
from raypq.methods.support.kmeans import CodeRows, assign

SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)


def model(rng: np.random.Generator, M: int = 3, K: int = 16, d: int = 4) -> PQModel:
    C = rng.standard_normal((M, K, d)) * 10.0 ** rng.integers(-3, 4)
    return PQModel(
        settings=PQSettings(M=M, K=K), tensors={"C": C.astype(np.float32)}, dx=M * d
    )  # fmt: skip


def summed(rows: CodeRows, parts: list[np.ndarray], centres: np.ndarray) -> dict[str, np.ndarray]:
    """The sums of rows in several parts, each of its own task."""
    whole = rows.no_sums(len(centres))
    for B in parts:
        sums = rows.no_sums(len(centres))
        rows.add_to(sums, B, assign(B, rows.tables(centres))[1])
        whole.merge(sums)
    return whole.sums


@EXAMPLES
@given(
    seed=SEEDS,
    n=st.sampled_from([3, 50, 400]),
    k=st.sampled_from([2, 3, 30]),
    metric=st.sampled_from(["l2", "cosine"]),
)
def test_an_iteration_is_that_of_the_definition(seed: int, n: int, k: int, metric: str) -> None:
    rng = np.random.default_rng(seed)
    pq = model(rng)
    B = rng.integers(0, pq.K, (n, pq.M)).astype(np.uint8)
    rows = CodeRows(model=pq, metric=metric, n=n)  # type: ignore[arg-type]
    centres = pq.decode(B[rng.integers(0, n, k)])
    X, C = pq.decode(B).astype(np.float64), centres.astype(np.float64)
    if metric == "cosine":
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        C /= np.linalg.norm(C, axis=1, keepdims=True)
        centres = C.astype(np.float32)
    distance = ((X[:, None] - C[None]) ** 2).sum(axis=2)
    score, cluster = assign(B, rows.tables(centres))
    scale = (X**2).sum(axis=1).max()
    mine = distance[np.arange(n), cluster]
    np.testing.assert_allclose(mine, distance.min(axis=1), atol=1e-6 * scale)
    value = 1 - mine / 2 if metric == "cosine" else -mine
    np.testing.assert_allclose(score, value, atol=2e-6 * scale)

    sums = rows.no_sums(k)
    rows.add_to(sums, B, cluster)
    moved, error = rows.moved(centres, sums, np.random.default_rng(0))
    assert error == pytest.approx(mine.mean(), rel=1e-5, abs=1e-6 * scale)
    largest = np.abs(X).max()
    full = [t for t in range(k) if (cluster == t).any()]
    if len(full) == k:  # an empty one is re-seeded, which moves another
        for t in full:
            mean = X[cluster == t].mean(axis=0)
            if metric == "cosine":
                mean /= np.linalg.norm(mean)
            np.testing.assert_allclose(moved[t], mean, atol=3e-7 * largest)
    again = rows.no_sums(k)
    rows.add_to(again, B, assign(B, rows.tables(moved))[1])
    _, later = rows.moved(moved, again, np.random.default_rng(0))
    if len(full) == k:
        assert later <= error + 1e-6 * scale


@EXAMPLES
@given(seed=SEEDS, parts=st.sampled_from([2, 7]), metric=st.sampled_from(["l2", "cosine"]))
def test_sums_are_those_of_any_division_and_order(seed: int, parts: int, metric: str) -> None:
    rng = np.random.default_rng(seed)
    pq = model(rng)
    B = rng.integers(0, pq.K, (500, pq.M)).astype(np.uint8)
    rows = CodeRows(model=pq, metric=metric, n=len(B))  # type: ignore[arg-type]
    centres = pq.decode(B[:9])
    whole = summed(rows, [B], centres)
    mixed = B[rng.permutation(len(B))]
    cuts = np.sort(rng.integers(0, len(B), parts - 1))
    divided = summed(rows, np.split(mixed, cuts), centres)
    for name, value in whole.items():
        np.testing.assert_array_equal(divided[name], value, err_msg=name)


@EXAMPLES
@given(
    seed=SEEDS,
    size=st.sampled_from([1, 5, 100, 5000]),
    M=st.sampled_from([1, 3, 8, 9]),
    codewords=st.sampled_from([2, 5, 256]),
)
def test_a_sample_is_that_of_any_division(seed: int, size: int, M: int, codewords: int) -> None:
    rng = np.random.default_rng(seed)
    B = rng.integers(0, codewords, (700, M)).astype(np.uint8)
    distinct, count = np.unique(B, axis=0, return_counts=True)
    order = np.argsort(hashes_of(distinct, 3))
    samples = []
    for parts in ([B], np.array_split(B[rng.permutation(len(B))], 6)):
        whole = CodeSample.empty(size, M, 3)
        for part in parts:
            sample = CodeSample.empty(size, M, 3)
            for some in np.array_split(part, 3):
                sample.add(some)
            sample.settle()
            whole.merge(sample)
        samples.append(whole)
    for sample in samples:
        np.testing.assert_array_equal(sample.B, distinct[order][:size])
        np.testing.assert_array_equal(sample.count, count[order][:size])
        assert sample.full == (len(distinct) >= size)
    other = hashes_of(distinct, 4)
    assert len(distinct) == 1 or (other != hashes_of(distinct, 3)).all()


@EXAMPLES
@given(seed=SEEDS, k=st.sampled_from([2, 9, 40, 64]), metric=st.sampled_from(["l2", "cosine"]))
def test_seeds_are_distinct_rows(seed: int, k: int, metric: str) -> None:
    rng = np.random.default_rng(seed)
    pq = model(rng, M=2, K=8)
    B = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(64, 2).astype(np.uint8)
    B = np.repeat(B, rng.integers(1, 50, 64), axis=0)
    sample = CodeSample.empty(kmeans.sample_size(k), 2, seed)
    sample.add(B)
    sample.settle()
    assert not sample.full
    rows = CodeRows(model=pq, metric=metric, n=len(B))  # type: ignore[arg-type]
    centres = rows.seeds(sample, k, np.random.default_rng(seed))
    assert centres.shape == (k, pq.D)
    assert len(np.unique(centres, axis=0)) == k
    vectors = pq.decode(sample.B)
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for centre in centres:
        assert np.abs(vectors - centre).max(axis=1).min() <= 1e-6 * np.abs(vectors).max()


def test_equal_vectors_of_distinct_codes_are_seeds_too() -> None:
    """A codebook whose codewords are all the same."""
    C = np.ones((2, 4, 3), np.float32)
    pq = PQModel(settings=PQSettings(M=2, K=4), tensors={"C": C}, dx=6)
    sample = CodeSample.empty(100, 2, 0)
    sample.add(np.array([[0, 1], [2, 3], [1, 1], [0, 1]], np.uint8))
    sample.settle()
    rows = CodeRows(model=pq, metric="l2", n=4)
    assert rows.seeds(sample, 3, np.random.default_rng(0)).tolist() == np.ones((3, 6)).tolist()


def test_empty_clusters_split_the_one_with_the_largest_error() -> None:
    C = np.array([[[0.0], [1.0], [12.0], [30.0]]], np.float32)
    pq = PQModel(settings=PQSettings(M=1, K=4), tensors={"C": C}, dx=1)
    rows = CodeRows(model=pq, metric="l2", n=8)
    B = np.repeat([0, 1, 2, 3], 2)[:, None].astype(np.uint8)
    centres = np.array([[0.5], [21.0], [500.0]], np.float32)  # nothing is near the last one
    sums = rows.no_sums(3)
    rows.add_to(sums, B, assign(B, rows.tables(centres))[1])
    assert sums.sums["count"].tolist() == [4, 4, 0]
    moved, error = rows.moved(centres, sums, np.random.default_rng(0))
    assert error == (4 * 0.25 + 4 * 81) / 8
    assert moved[0] == 0.5
    assert sorted(moved[1:].ravel().tolist()) == [16.5, 25.5]  # a standard deviation apart
