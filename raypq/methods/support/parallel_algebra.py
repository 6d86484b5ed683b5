"""Float64 matrix algebra on the threads of native kernels (``kernels.threads``).

The last bits of a library's product depend on the number of its threads, and that on the workers of
a job. Here each call of the library computes a part of fixed size, as the process is set up, and
several parts run at once: results are the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raypq import kernels

R = TypeVar("R")
_COLUMNS = 256  # of the right matrix, in one part of a product


def product(A: NDArray[Any], B: NDArray[Any]) -> NDArray[Any]:
    """A B [a, b] for A [a, n] and B [n, b]."""
    result = np.empty((A.shape[0], B.shape[1]), np.result_type(A, B))

    def part(start: int) -> None:
        columns = slice(start, start + _COLUMNS)
        result[:, columns] = A @ B[:, columns]

    _all([partial(part, start) for start in range(0, B.shape[1], _COLUMNS)])
    return result


def concurrently(*calls: Callable[[], R]) -> list[R]:
    """The results of several calls; the first error of one is raised."""
    return _all(calls)


def _all(calls: Sequence[Callable[[], R]]) -> list[R]:
    workers = min(kernels.threads(), len(calls))
    if workers < 2:
        return [call() for call in calls]
    with ThreadPoolExecutor(workers, "raypq", kernels.apply_thread_limit) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]
