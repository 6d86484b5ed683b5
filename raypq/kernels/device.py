"""Copies to a torch device, and streams on which copies and computations of batches overlap."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

REHEARSAL = "cpu:0"
"""The CPU as a torch device like a GPU, without the native kernels: for tests and rehearsals."""

BATCHES_IN_FLIGHT = 3  # one copied, one computed, one whose results come back
_streams = threading.local()  # .of: the stream of this thread on each CUDA device


@contextmanager
def own_stream(device: str) -> Iterator[None]:
    """Context in which this thread's work on a CUDA device runs on a stream of its own; at its end
    that work is done. On other devices it does nothing."""
    if torch.device(device).type != "cuda":
        yield
        return
    streams = _streams.__dict__.setdefault("of", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(streams[device]):
        try:
            yield
        finally:
            streams[device].synchronize()


def exact_float32(device: str) -> None:
    """Has products on CUDA devices compute in the precision of their operands, whatever the
    environment allows: float32 without TF32, and sums of bfloat16 products in float32."""
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def synchronise(device: str) -> None:
    """Waits for this thread's current stream, so that tensors of others may be freed."""
    if torch.device(device).type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def on_device(X: NDArray[Any], device: str) -> torch.Tensor:
    """A copy of X on a device; on CUDA through page-locked memory, on the current stream."""
    x = torch.from_numpy(np.require(X, requirements=["C", "W"]))
    if torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
