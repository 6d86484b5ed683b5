"""The Ray actor that runs in a worker process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from raypq import io_counters, kernels
from raypq._version import __version__
from raypq.errors import ConfigError, RaypqError
from raypq.execution.executor import Task, run_task
from raypq.execution.retries import is_transient
from raypq.io_counters import Reading
from raypq.optional_packages import leave_out_pandas


@dataclass(frozen=True)
class StartupError:
    """Why a worker could not be made.

    Attributes:
        everywhere: it would fail on every machine.
        permanent: it would fail again on this machine.
    """

    reason: str
    everywhere: bool = False
    permanent: bool = False


@dataclass(frozen=True)
class Started:
    """Where a worker runs."""

    node: str
    process: int

    def __str__(self) -> str:
        return f"process {self.process} on node {self.node}"


@dataclass(frozen=True)
class TaskReply:
    """The value of one call, its seconds, and the images and bytes that it read."""

    value: Any
    seconds: float
    read: Reading


class WorkerActor:
    """Runs in a worker process: makes the worker once, then calls it."""

    def __init__(
        self, version: str, threads: int, device: str, make: Callable[..., Any], *args: Any
    ) -> None:
        self._version, self._threads, self._device = version, threads, device
        self._make, self._args = make, args
        self._worker: Any = None
        self._shared_key: bytes | None = None
        self._shared: tuple[Any, ...] = ()

    def ping(self) -> Started | StartupError:
        """Makes the worker. Errors are returned: of a raised one, Ray reports only a dead actor."""
        if self._worker is None:
            if __version__ != self._version:
                return StartupError(
                    f"the driver runs raypq {self._version}, but the workers have raypq "
                    f"{__version__}; install one version everywhere (an image, or setup_commands)",
                    everywhere=True,
                )
            if problem := device_problem(self._device):
                return StartupError(problem, everywhere=True)
            leave_out_pandas()
            try:
                kernels.set_threads(self._threads)
                if self._device == "cuda":
                    kernels.share_gpu(_gpu_share())
                self._worker = self._make(*self._args)
            except RaypqError as error:
                return StartupError(str(error), everywhere=True)
            except Exception as error:  # may concern this machine only
                reason = f"{type(error).__name__}: {error}"
                return StartupError(reason, permanent=not is_transient(error))
            self._args = ()
        return Started(f"{socket.gethostname()} ({ray.util.get_node_ip_address()})", os.getpid())

    def call(self, function: Callable[..., Any], task: Task, shared: list[Any]) -> TaskReply:
        """Calls ``function(worker, task, *shared)``.

        Args:
            shared: the reference of a tuple in the object store, or nothing. It is in a list
                because Ray would fetch a plain reference anew for every call.
        """
        if self._worker is None:
            raise RuntimeError("a task arrived before its worker was ready")
        start, before = time.monotonic(), io_counters.read()
        key = shared[0].binary() if shared else None
        if key != self._shared_key:
            self._shared = ray.get(shared[0]) if shared else ()
            self._shared_key = key
        value = run_task(function, self._worker, task, *self._shared)
        return TaskReply(value, time.monotonic() - start, io_counters.read().since(before))


PROCESS_TITLE = f"ray::{WorkerActor.__name__}"
"""Start of the process titles that Ray gives to workers."""


def _gpu_share() -> float:
    """The part of a GPU that Ray reserved for this worker; 1 for one or more."""
    reserved: float = ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0)
    return min(1.0, reserved)


def device_problem(device: str) -> str | None:
    """Why a worker on this node cannot use a device, and the remedy; None if it can."""
    try:
        kernels.check_device(device)
    except ConfigError as error:
        return (
            f"{error} (node {socket.gethostname()}; --gpus-per-worker 1 (gpus_per_worker: 1), or a "
            "part of one, has Ray put workers on nodes with GPUs)"
        )
    return None
