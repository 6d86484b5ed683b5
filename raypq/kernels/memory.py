"""Memory of torch devices: what intermediate arrays and kept tables may take, and smaller parts
where it is exhausted."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch

_WORKSPACE = 128 << 20  # bytes of one intermediate array on the CPU
_LARGEST_WORKSPACE = 1 << 30  # and on a GPU, where larger products are no faster
_KEPT_ON_CPU = 1 << 30  # bytes of copies of tables

_halved: Counter[str] = Counter()  # how often parts of the work of a device were halved
_share: dict[str, float] = {}  # of "cuda" that this process may use
_lock = threading.Lock()


def workspace(device: str) -> int:
    """Bytes of one intermediate array on a device."""
    if not _on_cuda(device):
        return _WORKSPACE
    return max(_WORKSPACE, min(_LARGEST_WORKSPACE, _available(device) // 8))


def kept_bytes(device: str) -> int:
    """Bytes of tables that stay on a device between calls."""
    return _available(device) // 2 if _on_cuda(device) else _KEPT_ON_CPU


def limit_share(share: float) -> None:
    """Limits this process to a share of the memory of its GPU, which other workers use, too."""
    _share["cuda"] = share
    if share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def in_parts(n: int, rows: int, device: str, work: Callable[[slice], None]) -> None:
    """Does work on n rows, in order, on parts of at most ``rows``.

    Where the memory of the device is exhausted, the part is done again in halves, and so is all
    that follows; a warning says so, once.

    Raises:
        torch.OutOfMemoryError: there is not enough for a single row.
    """
    start = 0
    while start < n:
        step = max(1, rows >> _halved[device])
        part = slice(start, min(n, start + step))
        if _fits(work, part, device):
            start = part.stop


def parts(n: int, row_bytes: int, device: str) -> Iterator[slice]:
    """Slices of n rows whose intermediate arrays of ``row_bytes`` a row fit the workspace, less
    where memory was exhausted before."""
    step = max(1, rows_of(row_bytes, device) >> _halved[device])
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def rows_of(row_bytes: int, device: str) -> int:
    """Rows, at least 1, whose intermediate arrays of ``row_bytes`` a row fit the workspace; for
    ``in_parts``."""
    return max(1, workspace(device) // max(1, row_bytes))


def _fits(work: Callable[[slice], None], part: slice, device: str) -> bool:
    """Whether the work was done; if not, the next part is half as large."""
    halved = _halved[device]
    try:
        work(part)
    except torch.OutOfMemoryError as error:
        if part.stop - part.start <= 1:
            raise
        reason = str(error).split(".")[0]
    else:
        return True
    # Here the error no longer holds the tensors of the failed part.
    if _on_cuda(device):
        torch.cuda.empty_cache()
    with _lock:
        first = not _halved[device]
        if _halved[device] == halved:  # not by another thread meanwhile
            _halved[device] += 1
    if first:
        warnings.warn(
            f"the memory of {device} is exhausted ({reason}); batches are halved from here on, "
            "with equal results, but more slowly. Fewer workers on each GPU have more memory",
            RuntimeWarning,
            stacklevel=3,
        )
    return False


def _on_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _available(device: str) -> int:
    """Bytes of a GPU that are free for this process, its own cache included."""
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    allowed = int(total * _share.get("cuda", 1.0)) - torch.cuda.memory_allocated(device)
    return max(0, min(free + own, allowed))
