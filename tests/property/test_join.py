"""The join of codes finds every pair within the threshold, once, whatever the groups and sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypq.config import Metric
from raypq.kernels import native
from raypq.kernels.join import CodeJoin, choose
from raypq.kernels.sdc import SymmetricTables

pytestmark = pytest.mark.skipif(not native.available(), reason="the join is a native kernel")
few = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    M, K = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 16, 17])), draw(st.sampled_from([1, 2, 16, 256]))
    C = rng.standard_normal((M, K, draw(st.integers(1, 3)))).astype(np.float32)
    C *= np.float32(draw(st.sampled_from([1e-20, 1.0, 1e10])))
    if draw(st.booleans()):
        C = np.round(C)  # many distances that are equal, or 0

    def codes() -> np.ndarray[Any, Any]:
        n, of = draw(st.integers(0, 150)), draw(st.sampled_from([3, 40, 1000]))
        base = rng.integers(0, K, (of, M), dtype=np.uint8)
        B = base[rng.integers(0, of, n)]
        other = rng.random((n, M)) < 0.1
        B[other] = rng.integers(0, K, int(other.sum()))
        return B

    return {"C": C, "A": codes(), "B": codes(), "parts": draw(st.integers(1, 20))}


def all_pairs(
    C: np.ndarray[Any, Any], metric: Metric, A: np.ndarray[Any, Any], B: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Scores [n, m] of all pairs."""
    i, j = np.divmod(np.arange(len(A) * len(B)), max(1, len(B)))
    return SymmetricTables(C, metric)(A[i], B[j]).reshape(len(A), len(B))


def threshold_of(score: np.ndarray[Any, Any], metric: Metric, rank: float) -> float:
    """A score that occurs, so that some pairs lie exactly at it."""
    ordered = np.sort(score, axis=None) if metric == "l2" else -np.sort(-score, axis=None)
    return float(ordered[int(rank * (len(ordered) - 1))]) if len(ordered) else 0.5


def found_by(join: CodeJoin, *sides: Any, **more: Any) -> list[tuple[int, int]]:
    parts = [rows for group in range(join.groups) for rows in join.pairs(group, *sides, **more)]
    found = [(int(a), int(b)) for part in parts for a, b in part]
    if len(sides) == 1:
        counts = [join.count(group, *sides, **more) for group in range(join.groups)]
        assert all(count.complete for count in counts)
        assert sum(count.total for count in counts) == len(found)
    return found


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@few
@given(case=cases(), rank=st.floats(0, 1))
def test_every_pair_once(metric: Metric, case: dict[str, Any], rank: float) -> None:
    A, B = case["A"], case["B"]
    for sides in ((A,), (A, B)):
        score = all_pairs(case["C"], metric, A, sides[-1])
        inside = np.triu(np.ones_like(score, bool), 1) if len(sides) == 1 else score == score
        threshold = threshold_of(score[inside], metric, rank)
        near = (score <= threshold if metric == "l2" else score >= threshold) & inside
        join = CodeJoin.of(case["C"], metric, threshold, parts=case["parts"])
        found = found_by(join, *sides)
        assert len(set(found)) == len(found)
        assert set(map(tuple, np.argwhere(near).tolist())) <= set(found)
        assert all(inside[pair] for pair in found)


@few
@given(case=cases(), seed=st.integers(0, 1000), rank=st.floats(0, 0.1), once=st.booleans())
def test_few_codes_and_many(case: dict[str, Any], seed: int, rank: float, once: bool) -> None:
    """Most of the many are not even sorted; the pairs are the same."""
    rng = np.random.default_rng(seed)
    A, many = case["A"][:6], np.concatenate([case["A"], case["B"]])
    B = many[rng.permutation(len(many))]
    score = all_pairs(case["C"], "l2", A, B)
    threshold = threshold_of(score, "l2", rank)
    join = CodeJoin.of(case["C"], "l2", threshold, parts=case["parts"])
    found = set(found_by(join, A, B, once=once))
    near = set(map(tuple, np.argwhere(score <= threshold).tolist()))
    if not once:
        assert near <= found
        return
    firsts = [
        {code.tobytes(): row for row, code in reversed([*enumerate(side)])} for side in (A, B)
    ]
    leaders = {(firsts[0][A[a].tobytes()], firsts[1][B[b].tobytes()]) for a, b in near}
    assert leaders <= found
    assert found <= {(a, b) for a in firsts[0].values() for b in firsts[1].values()}


@few
@given(case=cases(), rank=st.floats(0, 0.2))
def test_equal_codes_once(case: dict[str, Any], rank: float) -> None:
    """The first row of a code stands for the others, and the pairs connect the same rows."""
    A = case["A"]
    score = all_pairs(case["C"], "l2", A, A)
    inside = np.triu(np.ones_like(score, bool), 1)
    threshold = threshold_of(score[inside], "l2", rank)
    join = CodeJoin.of(case["C"], "l2", threshold, parts=case["parts"])
    whole, once = found_by(join, A), found_by(join, A, once=True)
    assert set(once) <= set(whole)
    codes, first = np.unique(A, axis=0, return_index=True)
    leaders = set(first.tolist())
    assert all(a in leaders for a, _ in once)
    assert components(len(A), once) == components(len(A), whole)
    assert len(once) <= len(A) - len(codes) + len(codes) * (len(codes) - 1) // 2


def components(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The lowest row that each row is connected with."""
    lowest = list(range(n))
    for _ in range(n):
        before = list(lowest)
        for a, b in pairs:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
        if lowest == before:
            break
    return lowest


def test_limits() -> None:
    rng = np.random.default_rng(0)
    C = rng.standard_normal((8, 256, 2)).astype(np.float32)
    B = rng.integers(0, 256, (3000, 8), dtype=np.uint8)
    join = CodeJoin.of(C, "l2", 1e9, parts=8)
    assert not join.count(0, B, most_steps=1000).complete
    near = np.repeat(B[:1], 3000, 0)
    near[:, 4:] = B[:, 4:]
    for codes in (B, near):  # many prefixes, or one alone
        stopped = join.count(0, codes, most_steps=100_000)
        assert not stopped.complete
        assert stopped.checked + stopped.visited < 1_000_000
    assert join.count(0, B).total == 3000 * 2999 // 2
    empty = B[:0]
    assert not list(join.pairs(0, empty))
    assert not list(join.pairs(0, B, empty))
    with pytest.raises(ValueError, match="not below K"):
        list(CodeJoin.of(C[:, :4], "l2", 1.0, parts=2).pairs(0, B))


def test_pairs_are_found_only_as_they_are_taken() -> None:
    """Of 5e11 pairs, a few parts; the threads then end with the iterator."""
    rng = np.random.default_rng(0)
    C = rng.standard_normal((4, 256, 2)).astype(np.float32)
    B = np.repeat(rng.integers(0, 256, (10, 4), dtype=np.uint8), 100_000, 0)
    for once in (False, True):
        parts = CodeJoin.of(C, "l2", 1e9, parts=4).pairs(0, B, once=once)
        first, second = next(parts), next(parts)
        assert 0 < len(first) <= 1 << 17
        assert not {*map(tuple, first[:100].tolist())} & {*map(tuple, second[:100].tolist())}
        parts.close()


def test_vectors_beyond_float32_are_scanned() -> None:
    C = np.full((4, 16, 2), 1e19, np.float32)
    B = np.zeros((100, 4), np.uint8)
    assert choose(B, 10_000_000, C, "cosine", 0.9).join is None


def test_the_choice_sees_every_group() -> None:
    """Codes that differ in some parts alone cost more in the others."""
    rng = np.random.default_rng(0)
    C = rng.standard_normal((16, 256, 2)).astype(np.float32)
    B = rng.integers(0, 256, (20_000, 16), dtype=np.uint8)
    B[:, :4] = 0
    choice = choose(B, 20_000_000, C, "l2", 2.0)
    scan = choose(B, 20_000_000, C, "l2", 1000.0)
    assert choice.join is None or choice.seconds > 0.001 * scan.seconds


def test_the_choice_follows_the_threshold() -> None:
    """Narrow thresholds are joined, wide ones scanned."""
    rng = np.random.default_rng(0)
    C = rng.standard_normal((8, 256, 4)).astype(np.float32)
    B = rng.integers(0, 256, (20_000, 8), dtype=np.uint8)
    narrow = choose(B, 1_000_000, C, "l2", 0.5)
    assert narrow.join is not None
    assert narrow.pairs >= 0
    wide = choose(B, 1_000_000, C, "l2", 60.0)
    assert wide.join is None
    assert wide.seconds > narrow.seconds
