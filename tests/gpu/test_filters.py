"""Filters of low precision on a device: the bounds on their errors, and exact results of what they
leave, whatever memory there is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
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
    memory._halved.clear()


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

    monkeypatch.setattr("raypq.kernels.torch.best.pairs.scores", small_memory)
    monkeypatch.setattr(memory, "workspace", lambda device: 300 * (4 * 200 + 12 * D))
    with pytest.warns(RuntimeWarning, match="exhausted .CUDA out of memory.* halved"):
        found = fast.topk_per_code(B, tables, 5, device=DEVICE)
    same(found, expected)
    same(fast.topk_per_code(B, tables, 5, device=DEVICE), expected)  # without another warning
    assert max(seen) == 300
    assert {rows for rows in seen if rows > 80} == {300, 150}
    assert seen[300] == seen[150] == 1  # the second call begins with what fits


def test_no_memory_for_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(part: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError):
        memory.in_parts(10, 10, DEVICE, no_memory)


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
    book = torch.zeros(2, 4, 3, device=DEVICE)
    assert fused.assigns(book)
    assert fused.sums_pairs(book)


_INTERPRETED = """
import numpy as np, torch
from raypq.kernels import reference
from raypq.kernels.torch import Codebooks, fused

fused._usable = lambda *_: True
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
