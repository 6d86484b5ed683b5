"""Filters of low precision on a device: the bounds on their errors, and exact results of what they
leave, whatever memory there is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from devices import DEVICE

from raypq.config import Metric
from raypq.kernels import build_tables, decode, memory, reference
from raypq.kernels import torch as fast
from raypq.kernels.softmax import log_sum_exp
from raypq.kernels.tables import Tables
from raypq.kernels.torch import fused, pairs
from raypq.kernels.torch.bounds import (
    BFLOAT16,
    FLOAT32,
    Operand,
    Precision,
    error_of,
    product,
)

METRICS: tuple[Metric, ...] = ("l2", "cosine", "dot")
M, K, D = 6, 64, 24


@pytest.fixture(autouse=True)
def _whole_parts() -> Iterator[None]:
    """Parts that a test halves are whole in the next one."""
    yield
    memory._pressure.clear()


def world(kind: str, T: int, n: int, metric: Metric) -> tuple[np.ndarray[Any, Any], Tables]:
    """Codes [n, M] and tables of T classes that are easy or hard to tell from one another."""
    rng = np.random.default_rng(5)
    C = rng.standard_normal((M, K, D // M), dtype=np.float32)
    B = rng.integers(0, K, (n, M), dtype=np.uint8)
    V = rng.standard_normal((T, D), dtype=np.float32)
    bias = np.zeros(T)
    if kind == "cone":
        V = V[:1] + np.float32(0.05) * V
    elif kind == "near ties":
        V = V[rng.integers(0, 4, T)] + np.float32(1e-4) * V
    elif kind == "equal":
        V = V[rng.integers(0, 4, T)]
    elif kind == "lengths":
        V = V * np.exp(3 * rng.standard_normal((T, 1), dtype=np.float32))
    elif kind == "bias":
        bias = 100 * rng.standard_normal(T)
    elif kind == "images":  # classes are decoded images: l2 scores of 0
        V[: min(n, T)] = decode(B[:T], C)
    return B, build_tables(C, V, bias, metric)


WORLDS = ["plain", "cone", "near ties", "equal", "lengths", "bias", "images"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", WORLDS)
def test_exact_results(kind: str, metric: Metric) -> None:
    check_results(*world(kind, 300, 120, metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["near ties", "lengths", "bias"])
def test_little_memory(kind: str, metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time, and tables that do not fit, in blocks."""
    monkeypatch.setattr(memory, "workspace", lambda device: 20_000)
    monkeypatch.setattr(memory, "kept_bytes", lambda device: 30_000)
    check_results(*world(kind, 300, 60, metric))


def check_results(B: np.ndarray[Any, Any], tables: Tables) -> None:
    """Everything that is found is what the oracle finds."""
    for k in (1, 10, 400):
        for name in ("topk_per_code", "topk_per_query"):
            same(
                getattr(fast, name)(B, tables, k, device=DEVICE),
                getattr(reference, name)(B, tables, k),
            )
    everything = np.sort(fast.scores(B, tables, device=DEVICE), axis=None)
    np.testing.assert_array_equal(everything, np.sort(all_scores(B, tables), axis=None))
    for threshold in everything[[-1, -2000]]:
        for upper in (False, True):
            same(
                fast.range_search(B, tables, float(threshold), upper_triangle=upper, device=DEVICE),
                reference.range_search(B, tables, float(threshold), upper_triangle=upper),
            )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", WORLDS)
def test_classes_with_several_rows(
    kind: str, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    B, tables = world(kind, 200, 40, metric)
    owner = np.sort(np.random.default_rng(1).integers(0, 50, 200))
    owner = np.unique(owner, return_inverse=True)[1]
    q, squared = decode(B, tables.C), tables.squared_norms(B)
    score = all_scores(B, tables).T
    T = int(owner[-1]) + 1
    best = np.stack([score[:, owner == t].max(1) for t in range(T)], axis=1)
    order = np.argsort(-best, axis=1, kind="stable")[:, :7]
    expected = np.take_along_axis(best, order, 1), order
    sums = log_sum_exp(q, squared, tables, 2.0, owner=owner, device=DEVICE)
    for _ in range(2):
        same(fast.topk_of_classes(q, squared, tables, owner, 7, device=DEVICE), expected)
        again = log_sum_exp(q, squared, tables, 2.0, owner=owner, device=DEVICE)
        np.testing.assert_allclose(again, sums, rtol=1e-5, atol=1e-4)
        B, tables = world(kind, 200, 40, metric)  # the same, but not on the device yet
        monkeypatch.setattr(memory, "kept_bytes", lambda device: 15_000)


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("with_terms", [False, True])
def test_bounds_hold(precision: Precision, size: float, with_terms: bool) -> None:
    """The error of a rough score is within the bound, and the bound is of the error's order."""
    generator = torch.Generator().manual_seed(3)

    def side(n: int) -> torch.Tensor:
        factors = torch.exp(2 * torch.randn(n, 1, generator=generator))
        return (torch.randn(n, 300, generator=generator) * factors * size).to(DEVICE)

    x, w = side(50), side(60)
    x[0], w[0] = x[0].abs(), x[0].abs()  # the errors of a sum of one sign add up
    term = (x.double() @ w.double().T)[:, 0] if with_terms else None
    a = Operand.of(x, [] if term is None else [term], precision)
    b = Operand.of(w, [] if term is None else [None], precision)
    exact = x.double() @ w.double().T + (0 if term is None else term[:, None])
    rough = product(a, b).double()
    bound = error_of(a, b, 300, precision)[:, None] + 1.01 * precision.rounding * exact.abs()
    error = (rough - exact).abs()
    assert (error <= bound).all()
    if size >= 1e-15 and precision is BFLOAT16:
        assert (error / bound).max() > 0.01


def test_exhausted_memory_halves_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    B, tables = world("plain", 200, 300, "dot")
    expected = reference.topk_per_code(B, tables, 5)
    seen: Counter[int] = Counter()
    exact = pairs.scores

    def small_memory(*args: Any) -> torch.Tensor:
        rows = len(args[0])
        seen[rows] += 1
        if rows > 80:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return exact(*args)

    monkeypatch.setattr(pairs, "scores", small_memory)
    monkeypatch.setattr(memory, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(memory, "workspace", lambda device: 300 * (4 * 200 + 12 * D))
    with pytest.warns(RuntimeWarning, match="exhausted .CUDA out of memory.* halved"):
        found = fast.topk_per_code(B, tables, 5, device=DEVICE)
    same(found, expected)
    same(fast.topk_per_code(B, tables, 5, device=DEVICE), expected)  # without another warning
    assert max(seen) == 300
    # Each size is tried twice, since others may free memory; the second call begins with what fits.
    assert {rows: count for rows, count in seen.items() if rows > 80} == {300: 2, 150: 2}


def test_batches_grow_again() -> None:
    """A shortage that passes costs a few smaller parts; what others hold may be free again."""
    sizes: list[int] = []

    def work(part: slice) -> None:
        sizes.append(part.stop - part.start)
        if len(sizes) <= 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(RuntimeWarning, match="halved"):
        memory.in_parts(4000, 100, DEVICE, work)
    assert sizes[:5] == [100, 100, 50, 50, 25]
    assert sizes[-1] == 100
    assert sum(sizes) == 4000 + sum(sizes[:4])


def test_parts_within_parts_are_halved_once() -> None:
    sizes: list[tuple[int, int]] = []

    def outer(part: slice) -> None:
        n = part.stop - part.start

        def inner(rows: slice) -> None:
            sizes.append((n, rows.stop - rows.start))
            if rows.stop - rows.start > 6:
                raise torch.OutOfMemoryError("CUDA out of memory")

        memory.in_parts(n, 10, DEVICE, inner)

    with pytest.warns(RuntimeWarning):
        memory.in_parts(40, 20, DEVICE, outer)
    assert {inner for n, inner in sizes if n == 5} == {5}


def test_no_memory_for_one_row() -> None:
    def no_memory(part: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError):
        memory.in_parts(4, 4, DEVICE, no_memory)


def test_one_long_class_does_not_make_all_of_them_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    B, tables = world("plain", 2000, 50, "dot")
    V = tables.W.copy()
    V[7] *= 1e4
    tables = build_tables(tables.C, V, None, "dot")
    exact, rescored = pairs.scores, 0

    def counted(*args: Any) -> torch.Tensor:
        nonlocal rescored
        rescored += len(args[2])
        return exact(*args)

    monkeypatch.setattr(pairs, "scores", counted)
    same(fast.topk_per_code(B, tables, 5, device=DEVICE), reference.topk_per_code(B, tables, 5))
    assert rescored < 50 * 40


def test_codes_in_mixed_precision() -> None:
    """Networks encode within autocast; assignment is of float32 all the same."""
    rng = np.random.default_rng(0)
    C = rng.standard_normal((4, 256, 70), dtype=np.float32)
    U = rng.standard_normal((500, 280), dtype=np.float32)
    device = torch.device(DEVICE)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        codes = fast.Codebooks.on(DEVICE, C).assign(torch.from_numpy(U).to(device))
    np.testing.assert_array_equal(codes.cpu().numpy(), reference.encode(U, C))


@pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="a setting of CUDA")
def test_products_have_the_precision_of_their_operands() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True  # as an environment may have it
    test_exact_results("near ties", "dot")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_threads_share_one_copy_of_the_tables() -> None:
    B, tables = world("plain", 300, 40, "l2")
    expected = reference.topk_per_code(B, tables, 5)
    made: list[int] = []
    operand = Operand.of

    class Counted(Operand):
        @classmethod
        def of(cls, x: torch.Tensor, *args: Any) -> Operand:
            made.append(len(x))
            return operand(x, *args)

    from raypq.kernels.torch import sides

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as threads:
        patch.setattr(sides, "Operand", Counted)
        calls = [threads.submit(fast.topk_per_code, B, tables, 5, device=DEVICE) for _ in range(12)]
        for call in calls:
            same(call.result(), expected)
    assert made.count(300) <= len(sides.filters(DEVICE))


def test_tables_leave_the_device_with_their_last_user() -> None:
    import gc

    from raypq.kernels.torch import sides

    B, tables = world("plain", 200, 30, "l2")
    fast.topk_per_code(B, tables, 5, device=DEVICE)
    assert tables in sides._resident
    before = len(sides._resident)
    del tables
    gc.collect()
    assert len(sides._resident) == before - 1


@pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="Triton compiles for GPUs")
def test_triton_kernels_are_used() -> None:
    x, i = torch.eye(9, device=DEVICE), torch.arange(9, device=DEVICE)
    assert fused.two_nearest(
        x, torch.zeros(3, 4, 3, device=DEVICE), torch.zeros(3, 4, device=DEVICE)
    )
    assert fused.pair_sums(x, x, i, i) is not None


_INTERPRETED = """
import numpy as np, torch
from raypq.kernels import reference
from raypq.kernels.torch import Codebooks, fused

from raypq.kernels.torch import _triton

fused._kernels = lambda _: _triton
rng = np.random.default_rng(0)
for M, K, d, n in [(3, 256, 20, 130), (2, 5, 1, 7), (1, 100, 64, 65), (4, 17, 3, 1)]:
    C = rng.standard_normal((M, K, d), dtype=np.float32)
    U = rng.standard_normal((n, M * d), dtype=np.float32)
    codes = Codebooks.on("cpu:0", C).assign(torch.from_numpy(U)).numpy()
    np.testing.assert_array_equal(codes, reference.encode(U, C))
for n, m, D, p in [(10, 20, 37, 100), (3, 5, 8, 1), (5, 6, 3, 33)]:
    x = torch.from_numpy(rng.standard_normal((n, D + 2), dtype=np.float32))[:, :D]
    w = torch.from_numpy(rng.standard_normal((m, D), dtype=np.float32))
    i, j = (torch.from_numpy(rng.integers(0, count, p)) for count in (n, m))
    sums = reference.add_accumulators(fused.pair_sums(x, w, i, j).numpy())
    expected = reference.dot(x.numpy(), w.numpy())[i.numpy(), j.numpy()]
    np.testing.assert_array_equal(sums, expected)
"""


def test_triton_kernels_in_its_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is installed with torch for CUDA")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", _INTERPRETED], env=environment, check=True)


def all_scores(B: np.ndarray[Any, Any], tables: Tables) -> np.ndarray[Any, Any]:
    rows = reference.scores(decode(B, tables.C), tables.squared_norms(B), tables)
    return np.asarray(rows.T)


def same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for ours, oracle in zip(found, expected, strict=True):
        assert ours.dtype == oracle.dtype
        np.testing.assert_array_equal(ours, oracle)
