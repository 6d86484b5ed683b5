"""The index of nearest codes gives the rows and scores of the scan of all codes, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypq import kernels
from raypq.kernels import native, reference
from raypq.kernels.join import usable
from raypq.kernels.neighbors import NeighborIndex, worthwhile
from raypq.kernels.tables import build_tables, decode

pytestmark = pytest.mark.skipif(not native.available(), reason="the index is a native kernel")
few = settings(max_examples=80, deadline=None, derandomize=True)


def check(B: Any, C: Any, rows: Any, k: int, isa: str | None = None) -> None:
    """Compares with the reference, before and after a search for all rows."""
    tables = build_tables(C, decode(B[rows], C), None, "l2")
    score, row = reference.topk_per_query(B, tables, k)
    index = NeighborIndex(B, C, isa=isa)
    for for_all in (False, True):
        if for_all:
            index.search_all(k)
        found_score, found_row, _ = index.find(rows, k)
        np.testing.assert_array_equal(found_score.view(np.uint32), score.view(np.uint32))
        np.testing.assert_array_equal(found_row, row)


def codebooks(rng: Any, M: int, K: int, d: int, scale: float, rounded: bool) -> Any:
    C = rng.standard_normal((M, K, d)).astype(np.float32)
    if rounded:
        C = np.round(C)  # many distances that are equal, or 0
    return C * np.float32(scale)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    M = draw(st.integers(1, 20))
    K = draw(st.sampled_from([1, 2, 15, 16, 17, 100, 256]))
    scale = draw(st.sampled_from([1e-20, 1.0, 1e10]))
    C = codebooks(rng, M, K, draw(st.sampled_from([1, 2, 3, 8, 17])), scale, draw(st.booleans()))
    n, of = draw(st.integers(1, 2500)), draw(st.sampled_from([1, 3, 40, 1000, 100_000]))
    base = rng.integers(0, K, (of, M), dtype=np.uint8)
    B = base[rng.integers(0, of, n)]
    changed = rng.random((n, M)) < draw(st.sampled_from([0.0, 0.1, 0.5]))
    B[changed] = rng.integers(0, K, int(changed.sum()))
    rows = rng.integers(0, n, draw(st.integers(0, 40)))
    return {"B": B, "C": C, "rows": rows, "k": draw(st.sampled_from([1, 2, 11, 300, 3000]))}


@few
@given(case=cases())
def test_any_codes(case: dict[str, Any]) -> None:
    check(**case)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize(("M", "K", "spread"), [(16, 256, 0.5), (4, 256, 1.0), (9, 16, 0.3)])
def test_each_instruction_set(isa: str, M: int, K: int, spread: float) -> None:
    """Enough codes for several tables of cells, with queries near and far from others."""
    rng = np.random.default_rng(M)
    C = codebooks(rng, M, K, 4, 1.0, rounded=False)
    center = rng.standard_normal((60, M * 4)).astype(np.float32)
    X = center[rng.integers(0, 60, 18_000)]
    X += spread * rng.standard_normal(X.shape).astype(np.float32)
    X[:20] *= 5  # far from all
    check(kernels.encode(X, C), C, np.r_[:40, 100:18_000:200], 11, isa)


def test_the_number_of_threads_and_the_rows_searched_together_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    C = codebooks(rng, 8, 32, 2, 1.0, rounded=True)
    B = rng.integers(0, 32, (3000, 8), dtype=np.uint8)
    index, of_all = NeighborIndex(B, C), NeighborIndex(B, C)
    with kernels.native_threads(3):
        score, row, _ = index.find(np.arange(3000), 7)
        work = of_all.search_all(7)
    assert of_all.search_all(7) == work  # by one thread
    again = of_all.find(np.arange(3000), 7)
    np.testing.assert_array_equal(again[0], score)
    np.testing.assert_array_equal(again[1], row)
    index = NeighborIndex(B, C)
    for part in np.array_split(np.arange(3000), 5):
        again = index.find(part, 7)
        np.testing.assert_array_equal(again[0], score[part])
        np.testing.assert_array_equal(again[1], row[part])


def test_many_codes_at_the_same_distance() -> None:
    """More than are kept by distance: the scores and the rows decide."""
    rng = np.random.default_rng(3)
    C = np.repeat(np.round(rng.standard_normal((6, 5, 2))), 8, axis=1).astype(np.float32)
    B = rng.integers(0, 40, (20_000, 6), dtype=np.uint8)
    for k in (1, 11, 40):
        check(B, C, np.arange(0, 20_000, 400), k)


def test_a_search_for_all_compares_about_half() -> None:
    rng = np.random.default_rng(4)
    C = codebooks(rng, 16, 256, 4, 1.0, rounded=False)
    X = rng.standard_normal((60, 64)).astype(np.float32)[rng.integers(0, 60, 30_000)]
    X += 0.5 * rng.standard_normal(X.shape).astype(np.float32)
    index = NeighborIndex(kernels.encode(X, C), C)
    half = np.arange(0, 30_000, 2)
    score, row, work = index.find(half, 11)
    assert index.search_all(11).bounds < 1.2 * work.bounds
    found = index.find(half, 11)
    np.testing.assert_array_equal(found[0], score)
    np.testing.assert_array_equal(found[1], row)


def test_a_million_equal_codes() -> None:
    """The lowest rows are the nearest of all of them, at the cost of one."""
    rng = np.random.default_rng(1)
    C = codebooks(rng, 8, 256, 2, 1.0, rounded=False)
    B = rng.integers(0, 256, (1_001_000, 8), dtype=np.uint8)
    B[500:-500] = 7
    score, row, work = NeighborIndex(B, C).find(np.arange(400, 900_400), 11)
    assert (score[100:] == score[100, 0]).all()
    assert (row[100:] == np.arange(500, 511)).all()
    assert work.scored < 200_000
    check(B, C, np.array([0, 499, 1_000_999]), 11)


def test_where_an_index_is_of_use() -> None:
    rng = np.random.default_rng(2)
    C = codebooks(rng, 16, 256, 4, 1.0, rounded=False)
    apart = rng.integers(0, 256, (20_000, 16), dtype=np.uint8)
    near = apart[rng.integers(0, 300, 20_000)]
    changed = rng.random(near.shape) < 0.2
    near[changed] = rng.integers(0, 256, int(changed.sum()))
    assert not worthwhile(apart, C, 11)
    assert worthwhile(near, C, 11)
    assert usable(C)
    assert not usable(C * np.float32(1e19))
    with pytest.raises(ValueError, match="too far apart"):
        NeighborIndex(near, C * np.float32(1e19))
