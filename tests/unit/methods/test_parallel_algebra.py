"""Products and calls on several threads give the bits of one thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from raypq import kernels
from raypq.methods.support.parallel_algebra import concurrently, product


@pytest.mark.parametrize(
    "shapes", [((3, 5), (5, 1)), ((700, 300), (300, 1025)), ((4, 0), (0, 3)), ((0, 4), (4, 600))]
)
def test_products_do_not_hang_on_threads(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal(shape) for shape in shapes)
    found = []
    for threads in (1, 2, 5):
        with kernels.native_threads(threads):
            found.append((product(A, B), product(B.T, A.T)))
    np.testing.assert_allclose(found[0][0], A @ B, rtol=1e-9, atol=1e-9)
    for one, other in found[1:]:
        np.testing.assert_array_equal(one, found[0][0])
        np.testing.assert_array_equal(other, found[0][1])


def test_calls_run_at_once_and_answer_in_order() -> None:
    both = threading.Barrier(2, timeout=20)
    with kernels.native_threads(2):
        assert concurrently(lambda: both.wait() * 0 + 1, lambda: both.wait() * 0 + 2) == [1, 2]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised(threads: int) -> None:
    with kernels.native_threads(threads), pytest.raises(ZeroDivisionError):
        concurrently(lambda: 1, lambda: 1 // 0)
