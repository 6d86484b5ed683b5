"""The Ray executor: a local Ray, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import ray
from ray.exceptions import AuthenticationError

from raypq import console, heartbeat, machine
from raypq._version import __version__
from raypq.config import ClusterSettings
from raypq.distributed.errors import ClusterError, described, reason_of
from raypq.distributed.head import (
    authentication_restored,
    check_address,
    new_token_private,
    no_token,
    unreachable,
)
from raypq.distributed.local_ray import without_unused_processes
from raypq.distributed.resources import check_resources, nodes_that_fit, warn_of_room
from raypq.distributed.worker_actor import WorkerActor
from raypq.distributed.worker_pool import RayWorkerPool
from raypq.errors import ConfigError
from raypq.execution.executor import SpmdJob, WorkerPool

__all__ = ["ClusterError", "RayExecutor", "connect"]

W = TypeVar("W")

_MEMORY_FRACTION = 0.95  # of a node's reported memory: what Ray can reserve may be a little less
# Most bytes of Ray's folder: the path of a socket may have 107, and Ray appends
# ray/session_<date>_<time>_<µs>_<pid>/sockets/plasma_store.0.
_MAX_FOLDER_BYTES = 107 - 70
_DEFAULT_FOLDER = "/tmp"  # noqa: S108 - Ray's own default
# Without a connection, the versions of both sides are known from Ray's error alone.
_VERSIONS = re.compile(
    r"Version mismatch.*?Ray: (\S+)\s+Python: (\S+).*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL
)


class RayExecutor:
    """Starts pools of Ray actors."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.n_workers = self.processes = settings.workers
        self._settings = settings

    @contextmanager
    def start_workers(
        self, make: Callable[..., W], *args: Any, stage: str, cache: int = 0
    ) -> Iterator[WorkerPool[W]]:
        """Starts the actors; each makes its worker by ``make(*args)``.

        Raises:
            ClusterError: no node has the resources of a worker.
        """
        settings = self._settings
        resources = check_resources(settings)
        if memory := self._memory(cache):
            resources["memory"] = memory
        warn_of_room(settings.workers, resources)
        actor = ray.remote(
            num_cpus=settings.threads,
            num_gpus=settings.gpus_per_worker,
            memory=memory,
            max_restarts=0,
            max_task_retries=0,
        )(WorkerActor)
        # Models and class tables go to the object store once, not once for each worker.
        refs = [ray.put(arg) for arg in args]
        pool: RayWorkerPool[W] = RayWorkerPool(
            lambda: actor.remote(__version__, settings.threads, settings.device, make, *refs),
            settings.workers,
            stage,
            start_timeout=settings.start_timeout,
            resources=described(resources),
        )
        try:
            yield pool
        finally:
            pool.close()

    def run_spmd(self, job: SpmdJob) -> None:
        """Runs the function on Ray Train.

        Raises:
            ClusterError: no node has the resources of a worker, or workers keep dying.
        """
        from raypq.distributed import ray_train

        settings = self._settings
        resources = check_resources(settings)
        if reserved := self._memory(job.memory):
            resources["memory"] = reserved
        ray_train.run_spmd(job, settings, resources)

    @property
    def worker_memory(self) -> int:
        """Bytes that Ray reserves for a worker; 0 where the memory of nodes is not known."""
        return self._memory(0)

    def _memory(self, cache: int) -> int:
        """Bytes to reserve for a worker with a cache of this size.

        By default at most the worker's share of the smallest node, so that the number of workers
        on a node is set by its CPUs alone. A cache that a user asked for gets its memory, even if
        fewer workers fit.
        """
        settings = self._settings
        if settings.memory_per_worker is not None:
            return int(settings.memory_per_worker * machine.GIB)
        nodes = nodes_that_fit(settings)
        if not nodes or any(not node.get("memory") for node in nodes):
            return 0  # node groups of an autoscaler need not state their memory
        share = min(
            int(_MEMORY_FRACTION * node["memory"] * settings.threads / node["CPU"])
            for node in nodes
        )
        default = min(share, machine.memory_for(machine.CACHE))
        needed = max(default, machine.memory_for(cache) if cache else 0)
        # All workers of a local Ray must start, so none may take more than its share.
        available = (
            share
            if settings.cluster == "local"
            else min(int(_MEMORY_FRACTION * node["memory"]) for node in nodes)
        )
        if needed > available:
            console.warn(
                f"a worker with a cache of {cache / machine.GIB:.3g} GiB needs "
                f"{needed / machine.GIB:.3g} GiB of memory, but only {available / machine.GIB:.3g} "
                "GiB are available; it may run out of memory (fewer --workers, or less --cache-gb; "
                "workers and cache_bytes in a config)"
            )
        return min(needed, available)


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[RayExecutor]:
    """An executor on a local Ray or on the cluster at an address.

    A Ray that was connected before stays so; otherwise the connection ends with the context.

    Raises:
        ClusterError: the cluster does not answer, or no Ray can be started here.
    """
    if settings.cluster == "none":
        raise ConfigError("cluster 'none' means no Ray")
    if ray.is_initialized():
        yield RayExecutor(settings)
        return
    with authentication_restored():
        _init(settings)
        try:
            yield RayExecutor(settings)
        finally:
            ray.shutdown()


def _init(settings: ClusterSettings) -> None:
    """Starts a local Ray, or connects to the cluster at an address."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    folder: str | None = None
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    processes: AbstractContextManager[None] = nullcontext()
    if settings.cluster == "local":
        processes = without_unused_processes()
        folder = _short_folder()
        options |= {
            "address": "local",
            "num_cpus": settings.workers * settings.threads,
            "include_dashboard": False,
            **({"_temp_dir": f"{folder}/ray"} if folder else {}),
        }
    else:
        check_address(settings.cluster)
        options["address"] = settings.cluster
    beginning = "starting Ray" if settings.cluster == "local" else "connecting to Ray"
    try:
        with processes, heartbeat.phase(beginning), _own_sigterm(), new_token_private():
            ray.init(**options)
    except Exception as error:  # Ray 2.60 raises plain ``Exception`` too
        if settings.cluster == "local":
            raise _start_error(error, folder) from error
        raise _connect_error(settings.cluster, error) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps this process's handler of SIGTERM, which ``ray.init`` replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _version_mismatch(address: str, versions: re.Match[str]) -> str:
    cluster_ray, cluster_python, client_ray, client_python = versions.groups()
    return (
        f"the Ray cluster at {address!r} runs Ray {cluster_ray} on Python {cluster_python}, this "
        f"client Ray {client_ray} on Python {client_python}; install the cluster's versions here, "
        "or submit a job, which runs with the cluster's versions (ray job submit, "
        "docs/operations.md)"
    )


def _start_error(error: Exception, folder: str | None) -> ClusterError:
    """Why a local Ray could not be started, and the remedy."""
    if isinstance(error, AuthenticationError):
        return ClusterError(
            f"cannot start a local Ray: {str(error).partition('. ')[0]}; RAY_AUTH_MODE=token asks "
            "for a token: make one (ray get-auth-token --generate) and name it by RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH, or set RAY_AUTH_MODE=disabled"
        )
    folder = folder or _default_folder()
    return ClusterError(
        f"cannot start a local Ray: {reason_of(error)}\n"
        f"Check that {folder} can be written to and has room (RAY_TMPDIR names another one, whose "
        "path must be short), and that memory is free (fewer --workers, workers in a config). "
        f"Ray's own logs are in {folder}/ray/session_latest/logs. --cluster none (cluster: none) "
        "does the same without Ray"
    )


def _default_folder() -> str:
    """The folder that Ray 2.60 chooses for its files."""
    names = ["RAY_TMPDIR", *(["TMPDIR"] if sys.platform.startswith("linux") else [])]
    return next((os.environ[name] for name in names if name in os.environ), _DEFAULT_FOLDER)


def _short_folder() -> str | None:
    """A folder for Ray's files where Ray's own choice has too long a path for sockets, else None.

    A too long ``TMPDIR``, which is set for all programs, is replaced by /tmp; a too long
    ``RAY_TMPDIR``, which is set for Ray, is an error.

    Raises:
        ClusterError: RAY_TMPDIR is too long.
    """
    folder = _default_folder()
    length = len(os.fsencode(os.path.abspath(folder)))
    if length <= _MAX_FOLDER_BYTES:
        return None
    if "RAY_TMPDIR" in os.environ:
        raise ClusterError(
            f"cannot start a local Ray: RAY_TMPDIR={folder} has {length} bytes; its path must be "
            f"short, at most {_MAX_FOLDER_BYTES}, for the names of Ray's sockets. Name another "
            f"folder, such as RAY_TMPDIR={_DEFAULT_FOLDER}. --cluster none (cluster: none) does "
            "the same without Ray"
        )
    console.say(
        f"TMPDIR has {length} bytes, too many for the names of Ray's sockets: its files go to "
        f"{_DEFAULT_FOLDER}/ray (RAY_TMPDIR names another folder)"
    )
    return _DEFAULT_FOLDER


def _connect_error(address: str, error: Exception) -> ClusterError:
    """Why the cluster at an address could not be reached, and the remedy."""
    if isinstance(error, AuthenticationError):
        return no_token(address)
    if versions := _VERSIONS.search(str(error)):
        return ClusterError(_version_mismatch(address, versions))
    return unreachable(address, reason_of(error))
