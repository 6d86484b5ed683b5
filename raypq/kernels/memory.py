"""Memory of torch devices: what intermediate arrays and kept tables may take, and smaller parts
where it is exhausted."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from raypq import kernels

_WORKSPACE = 128 << 20  # bytes of one intermediate array on the CPU
_LARGEST_WORKSPACE = 1 << 30  # and on a GPU, where larger products are no faster
_KEPT_ON_CPU = 1 << 30  # bytes of copies of tables
_KNOWN_SECONDS = 1.0  # for which the free memory of a GPU is not asked again
_PAUSE_SECONDS = 0.1  # before a part is tried again: others may free memory
_GOOD_PARTS = 16  # after which parts are doubled again

_share = 1.0  # of a GPU that this process may use
_known: dict[str, tuple[float, int]] = {}  # by device: when and how much was available
_lock = threading.Lock()
_outer = threading.local()  # .running: whether ``in_parts`` is at work in this thread


@dataclass
class _Pressure:
    """How parts of the work of one kind of device are reduced.

    Attributes:
        halved: how often. good: parts that were done since. warned: whether the user knows.
    """

    halved: int = 0
    good: int = 0
    warned: bool = False


_pressure: dict[str, _Pressure] = {}  # by the type of the device: a process uses one of each


def workspace(device: str) -> int:
    """Bytes of one intermediate array on a device."""
    if not _on_cuda(device):
        return _WORKSPACE
    return max(_WORKSPACE, min(_LARGEST_WORKSPACE, _available(device) // 8))


def kept_bytes(device: str) -> int:
    """Bytes of tables that stay on a device between calls."""
    return _available(device, now=True) // 2 if _on_cuda(device) else _KEPT_ON_CPU


def limit_share(share: float) -> None:
    """Limits this process to a share of the memory of its GPU, which other workers use, too."""
    global _share
    _share = share
    if share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def in_parts(n: int, rows: int, device: str, work: Callable[[slice], None]) -> None:
    """Does work on n rows, in order, on parts of at most ``rows``.

    Where the memory of the device is exhausted, the part is done again, then in halves, and so are
    the next ones; a warning says so, once. Within the work of another call, that one does it.

    Raises:
        torch.OutOfMemoryError: there is not enough for a single row.
    """
    kernels.apply_thread_limit()  # this may be the first use of torch in this thread
    if getattr(_outer, "running", False):
        for start in range(0, n, rows):
            work(slice(start, min(n, start + rows)))
        return
    _outer.running = True
    try:
        _in_parts(n, rows, device, work)
    finally:
        _outer.running = False


def _in_parts(n: int, rows: int, device: str, work: Callable[[slice], None]) -> None:
    pressure = _pressure.setdefault(torch.device(device).type, _Pressure())
    start, again = 0, False
    while start < n:
        size = max(1, rows >> pressure.halved)
        part = slice(start, min(n, start + size))
        try:
            work(part)
        except torch.OutOfMemoryError as error:
            if again and part.stop - part.start == 1:
                pressure.halved = 0
                raise
            reason = str(error).split(".")[0]
        else:
            start, again = part.stop, False
            with _lock:
                pressure.good += 1
                if pressure.halved and pressure.good >= _GOOD_PARTS:
                    pressure.halved, pressure.good = pressure.halved - 1, 0
            continue
        # Here the error no longer holds the tensors of the failed part.
        _free(device)
        if again:
            _halve(pressure, device, reason)
        again = not again


def _halve(pressure: _Pressure, device: str, reason: str) -> None:
    with _lock:
        pressure.halved, pressure.good = pressure.halved + 1, 0
        warned, pressure.warned = pressure.warned, True
    if not warned:
        warnings.warn(
            f"the memory of {device} is exhausted ({reason}); batches are halved until there is "
            "more, with equal results, but more slowly. Fewer workers on each GPU have more memory",
            RuntimeWarning,
            stacklevel=4,
        )


def _free(device: str) -> None:
    """Gives unused memory back, and waits a moment for that of others."""
    if _on_cuda(device):
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    _known.clear()
    time.sleep(_PAUSE_SECONDS)


def parts(n: int, row_bytes: int, device: str) -> Iterator[slice]:
    """Slices of n rows whose intermediate arrays of ``row_bytes`` a row fit the workspace."""
    step = rows_of(row_bytes, device)
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def rows_of(row_bytes: int, device: str) -> int:
    """Rows, at least 1, whose intermediate arrays of ``row_bytes`` a row fit the workspace."""
    return max(1, workspace(device) // max(1, row_bytes))


def _on_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _available(device: str, *, now: bool = False) -> int:
    """Bytes of a GPU that are free for this process, its own cache included."""
    asked, available = _known.get(device, (-_KNOWN_SECONDS, 0))
    if now or time.monotonic() - asked >= _KNOWN_SECONDS:
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        own = torch.cuda.memory_reserved(device) - allocated
        available = max(0, min(free + own, int(total * _share) - allocated))
        _known[device] = time.monotonic(), available
    return available
