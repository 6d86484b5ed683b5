"""Where Ray workers come from: a local Ray, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import grpc
import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from raypq.config import ClusterSettings
from raypq.distributed.errors import ClusterError, reason_of
from raypq.distributed.gang import RayGang
from raypq.distributed.seat import Seat
from raypq.errors import ConfigError
from raypq.stages.crew import Gang, Worker, stage_of

if TYPE_CHECKING:
    from raypq.stages.learner import Lesson

__all__ = ["ClusterError", "RayCrew", "connect"]

_VERSION = metadata.version("raypq")
_DIAL_TIMEOUT = 4.0  # seconds for the head node to accept a connection
_ANSWER_TIMEOUT = 9.0  # seconds for it to answer as Ray does
_CLIENT_PORT = 10001  # of ray://
# Ray tells both sides' versions in its error, and in no other way before a connection stands.
_VERSIONS = re.compile(
    r"Version mismatch.*?Ray: (\S+)\s+Python: (\S+).*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL
)
_LOCKED_OUT = (
    "does not let this client in: it wants a token, and the one here is missing or another. Set "
    "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster"
)


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
        gang = RayGang(
            lambda: actor.remote(_VERSION, settings.threads, make, *refs),
            settings.workers,
            stage_of(make),
        )
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
    nodes += _nodes_to_come()
    if any(all(node.get(name, 0.0) >= wanted[name] for name in wanted) for node in nodes):
        return
    asked = " and ".join(f"{count:g} {name}" for name, count in wanted.items() if count)
    there = "; ".join(
        sorted({", ".join(f"{node.get(name, 0.0):g} {name}" for name in wanted) for node in nodes})
    )
    raise ClusterError(
        f"a worker needs {asked}, but no node has that; the nodes have: {there}. Ask for less "
        "(--threads, --gpus-per-worker), or add nodes that have it"
    )


def _nodes_to_come() -> list[dict[str, float]]:
    """Resources of the kinds of node that the cluster's autoscaler may add.

    Ray has no public way to ask (2.60). Only autoscaler v2 tells, the default on KubeRay.
    """
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config else []
    return [dict(group.resources) for group in groups if group.max_count]


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[RayCrew]:
    """A crew on a local Ray or on the cluster at an address; leaves it as it was found.

    Raises:
        ClusterError: the cluster does not answer, or no Ray can be started here.
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
    except Exception as error:  # Ray 2.60 raises bare ones, too
        if settings.cluster == "local":
            raise _not_started(error) from error
        raise _not_joined(settings.cluster, error) from error
    try:
        yield RayCrew(settings)
    finally:
        ray.shutdown()


def _not_started(error: Exception) -> ClusterError:
    """Why no Ray could be started here, and what to try."""
    if isinstance(error, AuthenticationError):
        return ClusterError(
            f"cannot start a local Ray: {str(error).partition('. ')[0]}; RAY_AUTH_MODE=token asks "
            "for a token: make one (ray get-auth-token --generate) and name it by RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH, or set RAY_AUTH_MODE=disabled"
        )
    folder = os.environ.get("RAY_TMPDIR", "/tmp")  # noqa: S108 - what Ray itself falls back on
    return ClusterError(
        f"cannot start a local Ray: {reason_of(error)}\n"
        f"Check that {folder} can be written to and has room (RAY_TMPDIR names another one, whose "
        "path must be short), and that memory is free (fewer --workers). Ray's own logs "
        f"are in {folder}/ray/session_latest/logs. --cluster none does the same without Ray"
    )


def _not_joined(address: str, error: Exception) -> ClusterError:
    """Why the cluster at an address could not be joined, and what to try."""
    if isinstance(error, AuthenticationError):
        return ClusterError(f"the Ray cluster at {address!r} {_LOCKED_OUT}")
    if found := _VERSIONS.search(str(error)):
        return ClusterError(_mismatch(address, found))
    return _unreachable(address, reason_of(error))


def check_address(address: str) -> None:
    """Finds out within seconds whether a Ray head is at ``host:port``, and lets this client in.

    ``ray.init`` itself tries for 81 seconds and then ends the process (Ray 2.60), so whether
    anything listens is tried first, and then the head is asked whether it lives.

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
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init would
    with init_grpc_channel(address) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            asked = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]  # generated
            head.CheckAlive(asked, timeout=_ANSWER_TIMEOUT)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise ClusterError(f"the Ray cluster at {address!r} {_LOCKED_OUT}") from None
            why = f"something listens there, but it is not a Ray head ({error.code().name})"
            raise _unreachable(address, why) from None


def _mismatch(address: str, found: re.Match[str]) -> str:
    theirs, ours = found.group(1, 2), found.group(3, 4)
    return (
        f"the Ray cluster at {address!r} runs Ray {theirs[0]} on Python {theirs[1]}, this client "
        f"Ray {ours[0]} on Python {ours[1]}; install the cluster's versions here, or submit a job "
        "to it, which runs with the cluster's own (ray job submit, docs/operations.md)"
    )


def _unreachable(address: str, why: str) -> ClusterError:
    return ClusterError(
        f"cannot reach the Ray cluster at {address!r}: {why}; check the address and port of the "
        f"head node (usually 6379) and that `ray status --address {address}` works from here"
    )
