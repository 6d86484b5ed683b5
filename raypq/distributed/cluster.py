"""The Ray executor: a local Ray, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any, TypeVar

import ray
from ray.exceptions import AuthenticationError

from raypq import console, machine
from raypq.config import ClusterSettings
from raypq.distributed.errors import ClusterError, described, reason_of
from raypq.distributed.head import (
    authentication_restored,
    check_address,
    no_token,
    unreachable,
)
from raypq.distributed.worker_actor import WorkerActor
from raypq.distributed.worker_pool import RayWorkerPool
from raypq.errors import ConfigError
from raypq.execution.executor import Rank, Report, WorkerPool

__all__ = ["ClusterError", "RayExecutor", "connect"]

W = TypeVar("W")

_VERSION = metadata.version("raypq")
_MEMORY = 0.95  # of what a node tells that it has: it may be counted a little otherwise
# Bytes of the folder: below it comes ray/session_<date>_<time>_<µs>_<pid>/sockets/plasma_store.0,
# and a socket's path has 107 in all.
_LONGEST = 107 - 70
_SHORT = "/tmp"  # noqa: S108 - what Ray itself falls back on
# Ray tells both sides' versions in its error, and in no other way before a connection stands.
_VERSIONS = re.compile(
    r"Version mismatch.*?Ray: (\S+)\s+Python: (\S+).*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL
)


class RayExecutor:
    """Starts pools of Ray actors."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.n_workers = settings.workers
        self._settings = settings

    @contextmanager
    def start_workers(
        self, make: Callable[..., W], *args: Any, stage: str, cache: int = 0
    ) -> Iterator[WorkerPool[W]]:
        """Starts the actors; each makes its worker by ``make(*args)``.

        Raises:
            ClusterError: no node could ever hold such a worker.
        """
        settings = self._settings
        requested = check_resources(settings)
        if memory := self._memory(cache):
            requested["memory"] = memory
        actor = ray.remote(
            num_cpus=settings.threads,
            num_gpus=settings.gpus_per_worker,
            memory=memory,
            max_restarts=0,
            max_task_retries=0,
        )(WorkerActor)
        # Models and class tables go to the object store once, not once a worker.
        refs = [ray.put(arg) for arg in args]
        pool: RayWorkerPool[W] = RayWorkerPool(
            lambda: actor.remote(_VERSION, settings.threads, settings.device, make, *refs),
            settings.workers,
            stage,
            start_timeout=settings.start_timeout,
            requested=described(requested),
        )
        try:
            yield pool
        finally:
            pool.close()

    def run_spmd(
        self,
        run: Callable[[Rank, Report], None],
        *,
        report: Report,
        device: str,
        scratch: str,
        memory: int,
    ) -> None:
        """Runs the function on Ray Train.

        Raises:
            ClusterError: no node could ever hold such a worker, or workers keep dying.
        """
        from raypq.distributed import ray_train

        settings = self._settings
        if settings.device == "cuda" and not settings.gpus_per_worker:
            settings = settings.model_copy(update={"gpus_per_worker": 1.0})  # Ray Train would
        resources = check_resources(settings)
        if reserved := self._memory(memory):
            resources["memory"] = reserved
        ray_train.run_spmd(
            run,
            settings=settings,
            resources=resources,
            report=report,
            device=device,
            scratch=scratch,
        )

    @property
    def worker_memory(self) -> int:
        """Bytes that Ray keeps for a worker; 0 where the nodes do not tell what they have."""
        return self._memory(0)

    def _memory(self, cache: int) -> int:
        """As ``worker_memory``, where a worker keeps so many bytes beside what it needs.

        By default no more than the worker's part of the smallest node, so that memory never has a
        node hold fewer workers than its CPUs would; but a cache that was asked for is given its
        room, by fewer workers if need be.
        """
        settings = self._settings
        if settings.memory_per_worker is not None:
            return int(settings.memory_per_worker * machine.GIB)
        fitting = [node for node in _nodes() if _fits(node, _asked(settings))]
        if not fitting or any(not node.get("memory") for node in fitting):
            return 0  # kinds of node that an autoscaler may add, whose memory nobody has told it
        part = min(
            int(_MEMORY * node["memory"] * settings.threads / node["CPU"]) for node in fitting
        )
        usual = min(part, machine.memory_for(machine.CACHE))
        wanted = max(usual, machine.memory_for(cache) if cache else 0)
        # All workers of a local Ray shall start: there, a part is all that one may have.
        most = (
            part
            if settings.cluster == "local"
            else min(int(_MEMORY * node["memory"]) for node in fitting)
        )
        if wanted > most:
            console.warn(
                f"a worker that keeps {cache / machine.GIB:.3g} GiB would need "
                f"{wanted / machine.GIB:.3g} GiB of memory, and {most / machine.GIB:.3g} are there "
                "for it; it may run out of memory (fewer --workers, or less --cache-gb; workers "
                "and cache_bytes in a config)"
            )
        return min(wanted, most)


def _asked(settings: ClusterSettings) -> dict[str, float]:
    """What Ray is asked for by every worker, and not by default."""
    wanted = {"CPU": float(settings.threads), "GPU": settings.gpus_per_worker}
    if settings.memory_per_worker is not None:
        wanted["memory"] = settings.memory_per_worker * machine.GIB
    return {name: count for name, count in wanted.items() if count}


def _fits(node: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= count for name, count in wanted.items())


def check_resources(settings: ClusterSettings) -> dict[str, float]:
    """Says at once what no node could ever give, instead of waiting for it.

    Returns:
        What a worker was asked to have.

    Raises:
        ClusterError: naming what was asked for and what there is.
    """
    wanted = _asked(settings)
    nodes = _nodes()
    if any(_fits(node, wanted) for node in nodes):
        return wanted
    names = {"CPU": 0, "GPU": 0, **wanted}
    there = "; ".join(
        sorted({described({name: node.get(name, 0.0) for name in names}) for node in nodes})
    )
    raise ClusterError(
        f"a worker needs {described(wanted)}, but no node has that; the nodes have: {there}. Ask "
        "for less (--threads, --gpus-per-worker, --memory-per-worker; in a config threads, "
        "gpus_per_worker, memory_per_worker below where), or add nodes that have it"
    )


def _nodes() -> list[dict[str, float]]:
    """Resources of every node that is there, or that an autoscaler may add."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]] + _nodes_to_come()


def _nodes_to_come() -> list[dict[str, float]]:
    """Resources of the kinds of node that the cluster's autoscaler may add.

    Ray has no public way to ask (2.60). Only autoscaler v2 tells, the default on KubeRay.
    """
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config else []
    return [dict(group.resources) for group in groups if group.max_count]


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[RayExecutor]:
    """An executor on a local Ray or on the cluster at an address; leaves it as it was found.

    Raises:
        ClusterError: the cluster does not answer, or no Ray can be started here.
    """
    if settings.cluster == "none":
        raise ConfigError("cluster 'none' means no Ray")
    if ray.is_initialized():
        yield RayExecutor(settings)
        return
    with authentication_restored():
        _start_or_join(settings)
        try:
            yield RayExecutor(settings)
        finally:
            ray.shutdown()


def _start_or_join(settings: ClusterSettings) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    place: str | None = None
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if settings.cluster == "local":
        place = _folder()
        options |= {
            "address": "local",
            "num_cpus": settings.workers * settings.threads,
            "include_dashboard": False,
            **({"_temp_dir": f"{place}/ray"} if place else {}),
        }
    else:
        check_address(settings.cluster)
        options["address"] = settings.cluster
    try:
        ray.init(**options)
    except Exception as error:  # Ray 2.60 raises bare ones, too
        if settings.cluster == "local":
            raise _not_started(error, place) from error
        raise _not_joined(settings.cluster, error) from error


def _mismatch(address: str, found: re.Match[str]) -> str:
    theirs, ours = found.group(1, 2), found.group(3, 4)
    return (
        f"the Ray cluster at {address!r} runs Ray {theirs[0]} on Python {theirs[1]}, this client "
        f"Ray {ours[0]} on Python {ours[1]}; install the cluster's versions here, or submit a job "
        "to it, which runs with the cluster's own (ray job submit, docs/operations.md)"
    )


def _not_started(error: Exception, place: str | None) -> ClusterError:
    """Why no Ray could be started here, and what to try."""
    if isinstance(error, AuthenticationError):
        return ClusterError(
            f"cannot start a local Ray: {str(error).partition('. ')[0]}; RAY_AUTH_MODE=token asks "
            "for a token: make one (ray get-auth-token --generate) and name it by RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH, or set RAY_AUTH_MODE=disabled"
        )
    folder = place or _default_folder()
    return ClusterError(
        f"cannot start a local Ray: {reason_of(error)}\n"
        f"Check that {folder} can be written to and has room (RAY_TMPDIR names another one, whose "
        "path must be short), and that memory is free (fewer --workers, workers in a config). "
        f"Ray's own logs are in {folder}/ray/session_latest/logs. --cluster none (cluster: none) "
        "does the same without Ray"
    )


def _default_folder() -> str:
    """Below which folder Ray itself would put its files (2.60)."""
    names = ["RAY_TMPDIR", *(["TMPDIR"] if sys.platform.startswith("linux") else [])]
    return next((os.environ[name] for name in names if name in os.environ), _SHORT)


def _folder() -> str | None:
    """Where Ray puts its files if not where it would itself: in a folder whose path is short.

    The path of a socket has at most 107 bytes. ``TMPDIR`` was set for others, so its place is
    taken by /tmp; what ``RAY_TMPDIR`` names was meant.

    Raises:
        ClusterError: RAY_TMPDIR is too long.
    """
    folder = _default_folder()
    length = len(os.fsencode(os.path.abspath(folder)))
    if length <= _LONGEST:
        return None
    if "RAY_TMPDIR" in os.environ:
        raise ClusterError(
            f"cannot start a local Ray: RAY_TMPDIR={folder} has {length} bytes; its path must be "
            f"short, at most {_LONGEST}, for the names of Ray's sockets. Name another folder, such "
            f"as RAY_TMPDIR={_SHORT}. --cluster none (cluster: none) does the same without Ray"
        )
    console.say(
        f"TMPDIR has {length} bytes, too many for the names of Ray's sockets: its files go to "
        f"{_SHORT}/ray (RAY_TMPDIR names another folder)"
    )
    return _SHORT


def _not_joined(address: str, error: Exception) -> ClusterError:
    """Why the cluster at an address could not be joined, and what to try."""
    if isinstance(error, AuthenticationError):
        return no_token(address)
    if found := _VERSIONS.search(str(error)):
        return ClusterError(_mismatch(address, found))
    return unreachable(address, reason_of(error))
