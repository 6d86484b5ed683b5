"""The head node of a cluster: whether it answers, and whether it requires a token."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from ray._private import services
from ray._private.authentication.authentication_token_setup import (
    AUTH_MODE_ENV_VAR,
    maybe_enable_token_auth_if_token_available,
)
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # Cython
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from raypq.distributed.errors import ClusterError

_DIAL_TIMEOUT = 4.0  # seconds to accept a connection
_ANSWER_TIMEOUT = 9.0  # seconds to answer as Ray does
_CLIENT_PORT = 10001  # of ray://
_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@contextmanager
def authentication_restored() -> Iterator[None]:
    """Sets Ray's authentication mode of this process back at the end.

    Ray sets ``RAY_AUTH_MODE`` itself where it starts a local cluster (2.60), and the next cluster
    that this process joins may be another one.
    """
    before = os.environ.get(AUTH_MODE_ENV_VAR)
    try:
        yield
    finally:
        if os.environ.get(AUTH_MODE_ENV_VAR) != before:
            _set_mode(before)


def check_address(address: str) -> None:
    """Checks within seconds that a Ray head is at ``host:port``, and agrees with it on tokens.

    ``ray.init`` itself tries for 81 seconds and then ends the process (Ray 2.60). And it takes a
    token for required or not by what lies on this machine: a client with a token on a cluster
    without one refuses the cluster's own messages, so that every actor seems to die at its start.

    Raises:
        ClusterError: naming the address and what to try.
    """
    if address == "auto":
        found = services.canonicalize_bootstrap_address(address)
        if not found:
            return  # ray.init says at once that there is none
        address = found
    scheme, separator, place = address.rpartition("://")
    host, colon, port = place.rpartition(":")
    if not colon and scheme == "ray":
        host, port = place, str(_CLIENT_PORT)
    if not host or not port.isdigit():
        return  # ray.init answers at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), _DIAL_TIMEOUT).close()
    except OSError as error:
        raise unreachable(address, error.strerror or str(error)) from None
    if not separator:
        _agree_on_tokens(address)


def _agree_on_tokens(address: str) -> None:
    chosen = os.environ.get(AUTH_MODE_ENV_VAR)
    if chosen is None:
        _set_mode("disabled")
    if is_token_auth_enabled():
        if not _lets_in(address):
            raise no_token(address)
        with authentication_restored():
            _set_mode("disabled")
            open_to_all = _lets_in(address)
        if open_to_all:
            raise ClusterError(
                f"the Ray cluster at {address!r} runs without tokens, and {AUTH_MODE_ENV_VAR}="
                f"{chosen} has this client refuse messages without one: unset {AUTH_MODE_ENV_VAR}, "
                f"or start the cluster with {AUTH_MODE_ENV_VAR}=token"
            )
    elif not _lets_in(address):
        if chosen is not None:
            raise no_token(address)
        _set_mode(None)
        found = maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        if not found or not _lets_in(address):
            raise no_token(address)


def _lets_in(address: str) -> bool:
    """Asks the head whether it is alive, with a token if this process uses tokens.

    Raises:
        ClusterError: it does not answer as Ray does.
    """
    with init_grpc_channel(address) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            request = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]  # generated
            head.CheckAlive(request, timeout=_ANSWER_TIMEOUT)
        except grpc.RpcError as error:
            if error.code() in _REFUSED:
                return False
            why = f"something listens there, but it is not a Ray head ({error.code().name})"
            raise unreachable(address, why) from None
    return True


def _set_mode(mode: str | None) -> None:
    if mode is None:
        os.environ.pop(AUTH_MODE_ENV_VAR, None)
    else:
        os.environ[AUTH_MODE_ENV_VAR] = mode
    # Both are read once a process. A token that stays loaded would be required of the cluster.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def no_token(address: str) -> ClusterError:
    """The error of a cluster that requires a token which this client does not have."""
    return ClusterError(
        f"the Ray cluster at {address!r} does not let this client in: it wants a token, and the "
        "one here is missing or another. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
        "RAY_AUTH_TOKEN_PATH to that of the cluster"
    )


def unreachable(address: str, why: str) -> ClusterError:
    """The error of an address where no Ray head answers."""
    return ClusterError(
        f"cannot reach the Ray cluster at {address!r}: {why}; check the address and port of the "
        f"head node (usually 6379) and that `ray status --address {address}` works from here"
    )
