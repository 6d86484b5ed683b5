"""Every path and instruction set against the NumPy oracle: equal codes, scores, ids and order."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import Metric
from raypq.kernels import native, reference
from raypq.kernels import torch as torch_path
from raypq.kernels.device import REHEARSAL

METRICS: tuple[Metric, ...] = ("l2", "cosine", "dot")
PATHS = [*native.isas(), "torch", REHEARSAL]  # the last one: the way of a GPU on the CPU

EXAMPLES = int(os.environ.get("RAYPQ_EXAMPLES", "30"))
few = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
fewer = settings(few, max_examples=max(1, EXAMPLES // 5))

LARGEST = float(np.finfo(np.float32).max)
THREADS = (1, 2, 3, 7, 300)


def run(path: str, name: str, *args: Any, threads: int = 2) -> Any:
    if path == REHEARSAL:
        return getattr(torch_path, name)(*args, device=REHEARSAL)
    if path == "torch":
        return getattr(torch_path, name)(*args)
    return getattr(native, name)(*args, threads=threads, isa=path)


def same(result: tuple[NDArray[Any], ...], expected: tuple[NDArray[Any], ...]) -> None:
    for a, b in zip(result, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def magnitudes(draw: st.DrawFn, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Factors over all of float32's range, denormals included: one for all, or mixed in a row."""
    how = draw(st.sampled_from(["ordinary", "one", "rows", "mixed"]))
    if how == "ordinary":
        return 1.0
    centre = draw(st.floats(-45, 38))
    if how == "one":
        return 10.0**centre
    width = draw(st.sampled_from([1.0, 8.0, 80.0]))
    exponents = rng.uniform(centre - width, centre + width, shape if how == "mixed" else shape[:1])
    return 10.0 ** np.clip(exponents, -45, 38).reshape(
        *exponents.shape, *[1] * (2 - exponents.ndim)
    )


def vectors(draw: st.DrawFn, rng: np.random.Generator, rows: int, width: int) -> Any:
    """Finite float32 vectors of any magnitude, many of them equal."""
    values = draw(st.sampled_from(["normal", "integers", "few rows", "zero"]))
    x = rng.standard_normal((rows, width))
    if values == "integers":  # many equal sums
        x = np.round(x)
    x = x * magnitudes(draw, rng, (rows, width))
    if values == "few rows" and rows:
        x = x[rng.integers(0, min(3, rows), rows)]
    if values == "zero":
        x[:] = 0
    return np.clip(x, -LARGEST / 2, LARGEST / 2).astype(np.float32)  # l2's weights are 2·v


def case_of(
    draw: st.DrawFn, M: int, K: int, d: int, N: int, T: int, ks: list[int]
) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    C = vectors(draw, rng, K, M * d).reshape(K, M, d).transpose(1, 0, 2)
    bias = draw(st.sampled_from(["none", "constant", "normal", "any"]))
    size = 1.0 if bias == "normal" else 0.0
    if bias == "any":  # of float64's range
        size = 10.0 ** draw(st.floats(-300, 300))
    return {
        "C": np.ascontiguousarray(C),
        "U": vectors(draw, rng, N, M * d),
        "B": rng.integers(0, K, (N, M)).astype(np.uint8),
        "V": vectors(draw, rng, T, M * d),
        "bias": None if bias == "none" else rng.standard_normal(T) * size + 0.7,
        "k": draw(st.sampled_from(ks)),
        "threads": draw(st.sampled_from(THREADS)),
    }


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes around every edge of the kernels."""
    M = draw(st.sampled_from([1, 2, 3, 7, 16, 17, 50, 64, 65, 128, 129]))
    d = draw(st.sampled_from([1, 2, 3, 8, 20, 64] if M <= 17 else [1, 3, 8]))
    K = draw(st.sampled_from([1, 2, 5, 16, 255, 256] if M * d <= 200 else [1, 3, 16]))
    N = draw(st.sampled_from([0, 1, 2, 13, 97, *([257] if M * d <= 200 else [])]))
    T = draw(st.sampled_from([0, 1, 2, 63, 64, 65, 131, *([577] if M * d <= 64 else [])]))
    return case_of(draw, M, K, d, N, T, [1, 2, 10, 64, 1000])


@st.composite
def large_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Many rows, or many classes, or lists as long as there are classes or rows."""
    M, K, d = draw(st.sampled_from([(1, 2, 1), (2, 16, 1), (3, 5, 3), (130, 2, 1)]))
    N, T = draw(
        st.sampled_from([(8_300, 512), (8_192, 131), (9_001, 3), (300, 3_000), (9, 40_001)])
    )
    return case_of(draw, M, K, d, N, T, [1, 100, 513, 2_043, 4_091, 50_000])


@pytest.fixture(autouse=True)
def quiet() -> Any:
    # Scores beyond float32 become infinite on every path; NumPy warns of it.
    with np.errstate(over="ignore", invalid="ignore"):
        yield


@pytest.mark.parametrize("path", PATHS)
@few
@given(case=cases())
def test_encode(path: str, case: dict[str, Any]) -> None:
    expected = reference.encode(case["U"], case["C"])
    np.testing.assert_array_equal(run(path, "encode", case["U"], case["C"]), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("path", PATHS)
@few
@given(case=cases())
def test_topk(path: str, metric: Metric, case: dict[str, Any]) -> None:
    tables = kernels.build_tables(case["C"], case["V"], case["bias"], metric)
    for name in ("topk_per_code", "topk_per_query"):
        expected = getattr(reference, name)(case["B"], tables, case["k"])
        same(run(path, name, case["B"], tables, case["k"], threads=case["threads"]), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("path", native.isas())
@fewer
@given(case=large_cases())
def test_topk_of_many(path: str, metric: Metric, case: dict[str, Any]) -> None:
    tables = kernels.build_tables(case["C"], case["V"], case["bias"], metric)
    for name in ("topk_per_code", "topk_per_query"):
        # All results are computed; some of the long ones are compared.
        B, k, threads = case["B"], case["k"], case["threads"]
        score, index = run(path, name, B, tables, k, threads=threads)
        if name == "topk_per_code":
            some = np.arange(0, len(B), max(1, len(B) * tables.T // 500_000))
            same((score[some], index[some]), reference.topk_per_code(B[some], tables, k))
        else:
            some = np.arange(0, tables.T, max(1, len(B) * tables.T // 500_000))
            part = replace(tables, W=tables.W[some], bias=tables.bias[some])
            same((score[some], index[some]), reference.topk_per_query(B, part, k))


@pytest.mark.parametrize("path", native.isas())
@pytest.mark.parametrize(
    ("k", "threads"),
    [
        (2_060, 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(2_043, 1), (4_091, 2)]),
    ],
)
def test_long_lists_of_many_rows(path: str, k: int, threads: int) -> None:
    # Lists so long that a block holds fewer rows than the pilot has.
    rng = np.random.default_rng(14)
    T, N = k + 500, 8_192
    C = rng.standard_normal((2, 16, 2)).astype(np.float32)
    V = rng.standard_normal((T, 4)).astype(np.float32)
    B = rng.integers(0, 16, (N, 2)).astype(np.uint8)
    tables = kernels.build_tables(C, V, None, "dot")
    score, index = run(path, "topk_per_code", B, tables, k, threads=threads)
    some = np.arange(0, N, 256)
    same((score[some], index[some]), reference.topk_per_code(B[some], tables, k))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("M", "d"), [(7, 20), (8, 2)])
@pytest.mark.parametrize("exponent", [-12, -8, -7, -6, -5])
@pytest.mark.parametrize("k", [1, 10])
def test_l2_where_classes_are_small_beside_codes(
    path: str, M: int, d: int, exponent: int, k: int
) -> None:
    # Rounded to float32, far fewer scores than classes differ: candidates that may be among the
    # best must stay, and ties go to the lower class.
    rng = np.random.default_rng(4)
    C = rng.standard_normal((M, 16, d)).astype(np.float32)
    V = (rng.standard_normal((2_000, M * d)) * 10.0**exponent).astype(np.float32)
    B = rng.integers(0, 16, (100, M)).astype(np.uint8)
    tables = kernels.build_tables(C, V, None, "l2")
    same(run(path, "topk_per_code", B, tables, k), reference.topk_per_code(B, tables, k))
    same(run(path, "topk_per_query", B, tables, k), reference.topk_per_query(B, tables, k))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rows", [[np.nan, 0.0], [np.inf, -np.inf], [np.nan, np.inf]])
def test_encode_of_values_that_are_not_finite(path: str, rows: list[float]) -> None:
    rng = np.random.default_rng(15)
    C = rng.standard_normal((3, 16, 2)).astype(np.float32)
    C[:, 3] = 0
    U = rng.standard_normal((20, 6)).astype(np.float32)
    U[::3, 2], U[::3, 3] = rows
    np.testing.assert_array_equal(run(path, "encode", U, C), reference.encode(U, C))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("N", "T"), [(0, 0), (0, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize("k", [0, 1, 5])
def test_empty_inputs_give_empty_results(path: str, metric: Metric, N: int, T: int, k: int) -> None:
    C = np.ones((1, 1, 1), np.float32)
    B = np.zeros((N, 1), np.uint8)
    tables = kernels.build_tables(C, np.ones((T, 1), np.float32), None, metric)
    for name in ("topk_per_code", "topk_per_query"):
        expected = getattr(reference, name)(B, tables, k)
        for threads in THREADS:
            same(run(path, name, B, tables, k, threads=threads), expected)
    result = run(path, "range_search", B, tables, -10.0)
    same(result, reference.range_search(B, tables, -10.0))
    assert run(path, "encode", np.ones((N, 1), np.float32), C).shape == (N, 1)


@pytest.mark.parametrize("path", [*PATHS, "reference"])
@pytest.mark.parametrize("shape", [(0, 4, 2), (2, 0, 2), (2, 4, 0), (2, 257, 1)])
def test_codebooks_without_values_are_refused(path: str, shape: tuple[int, int, int]) -> None:
    C = np.ones(shape, np.float32)
    U = np.ones((3, shape[0] * shape[2]), np.float32)
    with pytest.raises(ValueError, match="C must be"):
        reference.encode(U, C) if path == "reference" else run(path, "encode", U, C)
    with pytest.raises(ValueError, match="C must be"):
        kernels.build_tables(C, U, None, "dot")


def test_weights_that_overflow_are_refused() -> None:
    C, V = np.ones((1, 2, 1), np.float32), np.full((1, 1), 2e38, np.float32)
    with pytest.raises(ValueError, match=r"at most 1\.7e38"):
        kernels.build_tables(C, V, None, "l2")
    kernels.build_tables(C, V, None, "cosine")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("path", PATHS)
@few
@given(case=cases(), upper=st.booleans(), rank=st.integers(0, 40))
def test_range_search(
    path: str, metric: Metric, case: dict[str, Any], upper: bool, rank: int
) -> None:
    # The limit is a score that occurs, so that some pairs lie exactly at it.
    tables = kernels.build_tables(case["C"], case["V"], case["bias"], metric)
    occurring = np.sort(reference.topk_per_query(case["B"], tables, 41)[0].ravel())[::-1]
    threshold = float(occurring[min(rank, len(occurring) - 1)]) if len(occurring) else 0.0
    search = (native if path in native.isas() else torch_path).range_search
    more = {"torch": {}, REHEARSAL: {"device": REHEARSAL}}.get(
        path, {"isa": path, "threads": case["threads"]}
    )
    expected = reference.range_search(case["B"], tables, threshold, upper_triangle=upper)
    same(search(case["B"], tables, threshold, upper_triangle=upper, **more), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("path", native.isas())
@few
@given(case=cases())
def test_scores(path: str, metric: Metric, case: dict[str, Any]) -> None:
    tables = kernels.build_tables(case["C"], case["V"], case["bias"], metric)
    q, B = kernels.decode(case["B"], tables.C), case["B"]
    expected = reference.scores(q, tables.squared_norms(B), tables).T
    result = native.scores(B, tables, threads=case["threads"], isa=path)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("path", native.isas())
@pytest.mark.parametrize("k", [64, 65, 150, 700])
def test_deep_lists_with_ties(path: str, k: int) -> None:
    rng = np.random.default_rng(11)
    C = np.round(rng.standard_normal((4, 16, 3))).astype(np.float32)
    V = np.round(rng.standard_normal((70, 12))).astype(np.float32)
    B = rng.integers(0, 16, (9_001, 4)).astype(np.uint8)
    tables = kernels.build_tables(C, V, None, "l2")
    same(run(path, "topk_per_query", B, tables, k), reference.topk_per_query(B, tables, k))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [1, 2, 10])
def test_scores_that_differ_by_less_than_float32_tells(path: str, metric: Metric, k: int) -> None:
    rng = np.random.default_rng(4)
    C = rng.standard_normal((7, 16, 20)).astype(np.float32)
    V = (rng.standard_normal((2_000, 140)) * 1e-18).astype(np.float32)
    B = rng.integers(0, 16, (33, 7)).astype(np.uint8)
    tables = kernels.build_tables(C, V, np.full(2_000, 0.7), metric)
    result = run(path, "topk_per_code", B, tables, k)
    same(result, reference.topk_per_code(B, tables, k))
    assert (result[1] == np.arange(k)).all() or metric == "cosine"


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
@few
@given(case=cases(), threads=st.integers(1, 5))
def test_codeword_sums(case: dict[str, Any], threads: int) -> None:
    args = case["U"], case["B"], case["C"]
    same(native.codeword_sums(*args, threads=threads), reference.codeword_sums(*args))


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
@few
@given(n=st.integers(0, 60), D=st.integers(1, 9), k=st.integers(1, 7), threads=st.integers(1, 5))
def test_add_rows(n: int, D: int, k: int, threads: int) -> None:
    """In row order, so the same bits though sums of these rows are rounded."""
    rng = np.random.default_rng([n, D, k])
    X, group = rng.standard_normal((n, D)), rng.integers(0, k, n)
    sums = rng.standard_normal((k, D)), rng.standard_normal((k, D))
    sums[1][:] = sums[0]
    native.add_rows(sums[0], group, X, threads=threads)
    reference.add_rows(sums[1], group, X)
    np.testing.assert_array_equal(*sums)
    if n:
        with pytest.raises(ValueError, match="a group is not below k"):
            native.add_rows(sums[0], group + k, X)


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
@few
@given(
    case=cases().filter(lambda case: len(case["U"])),
    threads=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_kmeans_pp_init(case: dict[str, Any], threads: int, seed: int) -> None:
    """k-means++: the same rows from either path, ends of the running sum included."""
    U, (M, K, _) = case["U"], case["C"].shape
    rng = np.random.default_rng(seed)
    draws = rng.random((M, K - 1))
    draws[rng.random(draws.shape) < 0.1] = 0.0
    first = rng.integers(0, len(U), M)
    result = native.kmeans_pp_init(U, first, draws, threads=threads)
    np.testing.assert_array_equal(result, reference.kmeans_pp_init(U, first, draws))
    rows = np.asarray(U, np.float32).reshape(len(U), M, -1)
    for m in range(M):
        assert {c.tobytes() for c in result[m]} <= {row.tobytes() for row in rows[:, m]}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("metric", METRICS)
def test_many_classes(path: str, metric: Metric) -> None:
    rng = np.random.default_rng(5)
    M, K, d, T = 10, 256, 4, 21_841
    C = rng.standard_normal((M, K, d)).astype(np.float32)
    V = rng.standard_normal((T, M * d)).astype(np.float32)
    V[1::7] = V[0]  # a seventh of the classes are one
    B = rng.integers(0, K, (23, M)).astype(np.uint8)
    tables = kernels.build_tables(C, V, None, metric)
    for k in (1, 10, 100):
        same(run(path, "topk_per_code", B, tables, k), reference.topk_per_code(B, tables, k))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("metric", METRICS)
def test_many_rows(path: str, metric: Metric) -> None:
    rng = np.random.default_rng(6)
    M, K, d, N = 3, 16, 5, 20_011
    C = rng.standard_normal((M, K, d)).astype(np.float32)
    V = rng.standard_normal((67, M * d)).astype(np.float32)
    B = rng.integers(0, K, (N, M)).astype(np.uint8)  # 4,096 codes: every row has its equals
    tables = kernels.build_tables(C, V, None, metric)
    for k in (1, 30):
        same(run(path, "topk_per_query", B, tables, k), reference.topk_per_query(B, tables, k))


# Tiles of M·K·64 bytes, of which a part at a time fits caches of 0.5, 1 and 2 MB; the sums of 4,096
# rows are carried from part to part.
@pytest.mark.parametrize("path", native.isas())
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "K"), [(23, 256), (50, 256), (64, 256), (101, 250), (128, 256)])
def test_tiles_larger_than_the_cache(path: str, metric: Metric, M: int, K: int) -> None:
    rng = np.random.default_rng(M)
    C = rng.standard_normal((M, K, 1)).astype(np.float32)
    V = rng.standard_normal((130, M)).astype(np.float32)
    B = rng.integers(0, K, (8_300, M)).astype(np.uint8)
    tables = kernels.build_tables(C, V, None, metric)
    for k in (1, 10):
        same(run(path, "topk_per_code", B, tables, k), reference.topk_per_code(B, tables, k))
        same(run(path, "topk_per_query", B, tables, k), reference.topk_per_query(B, tables, k))


@pytest.mark.parametrize("path", native.isas())
@pytest.mark.parametrize("M", [64, 128, 129, 1024])
def test_sums_cannot_overflow(path: str, M: int) -> None:
    # Every table entry of the chosen codewords is the largest possible, in every column.
    C = np.zeros((M, 2, 1), np.float32)
    C[:, 1] = 1
    V = np.ones((70, M), np.float32)
    V[33] = 1.25
    B = np.ones((9, M), np.uint8)
    B[4] = 0
    for bias in (None, np.arange(70) * 1e-3):
        tables = kernels.build_tables(C, V, bias, "dot")
        same(run(path, "topk_per_code", B, tables, 5), reference.topk_per_code(B, tables, 5))
        same(run(path, "topk_per_query", B, tables, 5), reference.topk_per_query(B, tables, 5))


@pytest.mark.parametrize("path", native.isas())
def test_a_cutoff_above_the_kth_best_score_is_detected(path: str) -> None:
    # Every table entry of codeword 1 is rounded up by nearly half a unit, for every class: the
    # error of the sums is almost the largest possible, far more than the likely error.
    rng = np.random.default_rng(7)
    M, K, T = 60, 256, 640
    C = np.repeat(np.linspace(0, 1, K, dtype=np.float32)[None, :, None], M, axis=0)
    C[:, 1] = 60.52 / 127  # 121.52 / 255: tables have 127 or 255 units
    V = (1 - 1e-5 * rng.random((T, M))).astype(np.float32)
    B = np.ones((50, M), np.uint8)
    tables = kernels.build_tables(C, V, None, "dot")
    same(run(path, "topk_per_code", B, tables, 3), reference.topk_per_code(B, tables, 3))
    assert native.prepare(tables, across_rows=False, isa=path).rescans == len(B)


@pytest.mark.parametrize("path", native.isas())
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "N"), [(6, 8_300), (130, 400)])
def test_forecast_thresholds(path: str, metric: Metric, M: int, N: int) -> None:
    # Enough rows that the first ones give a forecast for the others, or the first call one for the
    # second; some rows have no length, and many classes have equal scores.
    rng = np.random.default_rng(12)
    K, d, T = 16, 2, 701
    C = rng.standard_normal((M, K, d)).astype(np.float32)
    C[:, 0] = 0
    V = rng.standard_normal((T, M * d)).astype(np.float32)
    V[1::9] = V[0]
    B = rng.integers(0, K, (N, M)).astype(np.uint8)
    B[5::100] = 0
    tables = kernels.build_tables(C, V, rng.standard_normal(T), metric)
    score, best = reference.topk_per_code(B, tables, 10)
    for n in (N, 301):
        same(run(path, "topk_per_code", B[:n], tables, 10), (score[:n], best[:n]))
    for k in (1, 300):
        expected = reference.topk_per_code(B[:257], tables, k)
        for _ in range(2):
            same(run(path, "topk_per_code", B[:257], tables, k), expected)


@pytest.mark.parametrize("path", native.isas())
def test_a_forecast_that_is_too_high_is_detected(path: str) -> None:
    # Codewords 0 to 7 are near a few classes, 8 to 15 near none: the forecast learned from rows of
    # the first kind is far too high for the second.
    rng = np.random.default_rng(13)
    M, K, d, T, near = 8, 16, 4, 1_000, 20
    V = rng.standard_normal((T, M, d)).astype(np.float32)
    C = rng.standard_normal((M, K, d)).astype(np.float32)
    C[:, :8] = 3 * V[0].reshape(M, 1, d) + 0.01 * C[:, :8]
    V[:near] = V[0] + 0.01 * V[:near]
    tables = kernels.build_tables(C, V.reshape(T, -1), None, "dot")
    made = native.prepare(tables, across_rows=False, isa=path)
    for low, few in ((0, True), (8, False)):
        B = rng.integers(low, low + 8, (400, M)).astype(np.uint8)
        before = made.rescans
        same(run(path, "topk_per_code", B, tables, 10), reference.topk_per_code(B, tables, 10))
        assert (made.rescans - before < 40) == few


@pytest.mark.parametrize("path", native.isas())
def test_what_the_filter_leaves_is_counted(path: str) -> None:
    rng = np.random.default_rng(14)
    M, K, T, N, k = 8, 16, 1_000, 700, 10
    C = rng.standard_normal((M, K, 4)).astype(np.float32)
    V = rng.standard_normal((T, M * 4)).astype(np.float32)
    tables = kernels.build_tables(C, V, None, "dot")
    B = rng.integers(0, K, (N, M)).astype(np.uint8)
    made = native.prepare(tables, across_rows=False, isa=path)
    for turn in (1, 2):
        run(path, "topk_per_code", B, tables, k)
        assert turn * N * k <= made.exact_scores < turn * N * T / 10
        assert turn * N * k <= made.candidates < turn * N * T / 10


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_and_layout(path: str, dtype: Any) -> None:
    rng = np.random.default_rng(8)
    U = rng.standard_normal((40, 2 * 12)).astype(dtype)[::2, ::2]
    C = np.asfortranarray(rng.standard_normal((3, 9, 4)).astype(dtype))
    B = reference.encode(U, C)
    np.testing.assert_array_equal(run(path, "encode", U, C), B)
    V = rng.standard_normal((33, 24)).astype(dtype)[:, 1::2]
    tables = kernels.build_tables(C, V, None, "l2")
    wide = np.repeat(B, 2, axis=1)[:, ::2]
    same(run(path, "topk_per_code", wide, tables, 4), reference.topk_per_code(B, tables, 4))


@pytest.mark.parametrize("path", PATHS)
def test_blocks_of_a_store_join(path: str) -> None:
    rng = np.random.default_rng(9)
    C = rng.standard_normal((4, 8, 2)).astype(np.float32)
    B = rng.integers(0, 8, (501, 4)).astype(np.uint8)
    tables = kernels.build_tables(C, rng.standard_normal((5, 8)).astype(np.float32), None, "cosine")
    parts = []
    for start in range(0, len(B), 100):
        score, row = run(path, "topk_per_query", B[start : start + 100], tables, 9)
        parts.append((score, row + start))
    same(kernels.merge_topk(parts, 9), reference.topk_per_query(B, tables, 9))


@pytest.mark.parametrize("isa", native.isas())
def test_every_float16_is_widened_exactly(isa: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    for X in (finite, finite[1:], finite.reshape(2, -1)[:, ::3], finite[:0], every):
        wide, all_finite = native.widen(X, isa=isa)
        expected, expected_finite = reference.widen(X)
        assert all_finite == expected_finite == (X is not every)
        same((wide,), (expected,))
    for bad in every[~np.isfinite(every)]:
        X = np.zeros(41, np.float16)
        X[int(bad.view(np.uint16)) % 41] = bad
        assert not native.widen(X, isa=isa)[1]
