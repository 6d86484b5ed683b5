"""Where Ray workers come from: a local Ray, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from raypq.config import ClusterSettings
from raypq.distributed.errors import ClusterError, reason_of
from raypq.distributed.gang import RayGang
from raypq.distributed.seat import Seat
from raypq.errors import ConfigError
from raypq.stages.crew import Gang, Worker

if TYPE_CHECKING:
    from raypq.stages.learner import Lesson

__all__ = ["ClusterError", "RayCrew", "connect"]

_DIAL_TIMEOUT = 4.0  # seconds for the head node to accept a connection
_ANSWER_TIMEOUT = 9.0  # seconds for it to answer as Ray does
_CLIENT_PORT = 10001  # of ray://


class RayCrew:
    """Hires gangs of Ray actors."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.workers = settings.workers
        self._settings = settings

    @contextmanager
    def hire(self, make: Callable[..., Worker], *args: Any) -> Iterator[Gang]:
        """Starts the actors, each makes its worker by ``make(*args)``.

        Raises:
            ClusterError: no node could ever hold such a worker.
        """
        settings = self._settings
        check_resources(settings)
        actor = ray.remote(
            num_cpus=settings.threads,
            num_gpus=settings.gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
        )(Seat)
        # Models and class tables go to the object store once, not once a worker.
        refs = [ray.put(arg) for arg in args]
        gang = RayGang(lambda: actor.remote(settings.threads, make, *refs), settings.workers)
        try:
            yield gang
        finally:
            gang.close()

    def learn(self, lesson: Lesson, tell: Callable[[Mapping[str, Any]], None]) -> None:
        """Trains by gradient with Ray Train.

        Raises:
            ClusterError: no node could ever hold such a worker, or workers keep dying.
        """
        from raypq.distributed import trainer

        check_resources(self._settings)
        trainer.learn(lesson, self._settings, tell)


def check_resources(settings: ClusterSettings) -> None:
    """Says at once what no node could ever give, instead of waiting for it.

    Raises:
        ClusterError: naming what was asked for and what there is.
    """
    wanted = {"CPU": float(settings.threads), "GPU": settings.gpus_per_worker}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0.0) >= wanted[name] for name in wanted) for node in nodes):
        return
    asked = " and ".join(f"{count:g} {name}" for name, count in wanted.items() if count)
    there = "; ".join(
        sorted({", ".join(f"{node.get(name, 0.0):g} {name}" for name in wanted) for node in nodes})
    )
    raise ClusterError(f"a worker needs {asked}, but no node has that; the nodes have: {there}")


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[RayCrew]:
    """A crew on a local Ray or on the cluster at an address; leaves it as it was found.

    Raises:
        ClusterError: the cluster does not answer.
    """
    if settings.cluster == "none":
        raise ConfigError("cluster 'none' means no Ray")
    if ray.is_initialized():
        yield RayCrew(settings)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if settings.cluster == "local":
        options |= {
            "address": "local",
            "num_cpus": settings.workers * settings.threads,
            "include_dashboard": False,
        }
    else:
        check_address(settings.cluster)
        options["address"] = settings.cluster
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(settings.cluster, reason_of(error)) from None
    try:
        yield RayCrew(settings)
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Finds out within seconds whether a Ray head is at ``host:port``.

    ``ray.init`` itself tries for 81 seconds and then ends the process (Ray 2.60), so whether
    anything listens is tried first, and whether it is Ray is asked in a process of its own.

    Raises:
        ClusterError: naming the address and what to try.
    """
    scheme, found, place = address.rpartition("://")
    host, colon, port = place.rpartition(":")
    if not colon and scheme == "ray":
        host, port = place, str(_CLIENT_PORT)
    if not host or not port.isdigit():
        return  # "auto" and the like: ray.init answers at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), _DIAL_TIMEOUT).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None
    if found:
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check"]
    try:
        done = subprocess.run(  # noqa: S603 - the address is one argument, no shell reads it
            [*command, "--address", address], capture_output=True, timeout=_ANSWER_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise _unreachable(address, "something listens there, but it is not a Ray head") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _unreachable(address, lines[-1] if lines else "it is not healthy")


def _unreachable(address: str, why: str) -> ClusterError:
    return ClusterError(
        f"cannot reach the Ray cluster at {address!r}: {why}; check the address and port of the "
        f"head node (usually 6379) and that `ray status --address {address}` works from here"
    )
