"""What runs in a worker process."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import ray

from raypq import kernels, meter
from raypq.errors import ConfigError, RaypqError
from raypq.meter import Reading
from raypq.stages.crew import Task, Worker, attempt
from raypq.stages.retries import may_pass


@dataclass(frozen=True)
class Refusal:
    """Why a worker could not be made.

    Attributes:
        final: it would be the same on every machine. lasting: another try on this machine would
            find the same.
    """

    reason: str
    final: bool = False
    lasting: bool = False


@dataclass(frozen=True)
class Answer:
    """The result of one call, the seconds that it took and what it read."""

    result: Any
    seconds: float
    read: Reading


class Seat:
    """The actor: runs in a worker process, makes the worker once, then calls it."""

    def __init__(
        self, version: str, threads: int, device: str, make: Callable[..., Worker], *args: Any
    ) -> None:
        self._version, self._threads, self._device = version, threads, device
        self._make, self._args = make, args
        self._worker: Worker | None = None
        self._shared_key: bytes | None = None
        self._shared: Any = None

    def ready(self) -> Refusal | None:
        """Makes the worker. An error is an answer, or Ray would only report a dead actor."""
        if self._worker is None:
            if (here := metadata.version("raypq")) != self._version:
                return Refusal(
                    f"raypq {self._version} asks, and the nodes have raypq {here}; install one "
                    "version everywhere (an image, or setup_commands)",
                    final=True,
                )
            if problem := device_problem(self._device):
                return Refusal(problem, final=True)
            try:
                kernels.set_threads(self._threads)
                self._worker = self._make(*self._args)
            except RaypqError as error:
                return Refusal(str(error), final=True)
            except Exception as error:  # perhaps this machine only
                reason = f"{type(error).__name__}: {error}"
                return Refusal(reason, lasting=not may_pass(error))
            self._args = ()
        return None

    def call(self, task: Task, shared: list[Any]) -> Answer:
        """Does one task."""
        assert self._worker is not None, "called before it was ready"
        start, before = time.monotonic(), meter.read()
        # The reference travels in a list, or Ray would fetch the value anew for every call.
        key = shared[0].binary() if shared else None
        if key != self._shared_key:
            self._shared = ray.get(shared[0]) if shared else None
            self._shared_key = key
        result = attempt(self._worker, task, self._shared)
        return Answer(result, time.monotonic() - start, meter.read().since(before))


def device_problem(device: str) -> str | None:
    """Why a worker cannot compute on a device here, and what to do; None if it can."""
    try:
        kernels.check_device(device)
    except ConfigError as error:
        return (
            f"{error} (node {socket.gethostname()}; --gpus-per-worker 1 (gpus_per_worker: 1), or a "
            "part of one, has Ray put workers on nodes with GPUs)"
        )
    return None
