"""The head node of a cluster: whether it answers, and whether it requires a token."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

_CONNECT_TIMEOUT = 4.0  # seconds to accept a connection
_RPC_TIMEOUT = 9.0  # seconds to answer a call
_CLIENT_PORT = 10001  # of ray://
_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@contextmanager
def authentication_restored() -> Iterator[None]:
    """Takes Ray's authentication mode from the environment as it is now; restores it at the end.

    Ray reads it once per process, and sets ``RAY_AUTH_MODE`` itself where it starts a local cluster
    (2.60); the next cluster that this process joins may be another one.
    """
    before = os.environ.get(AUTH_MODE_ENV_VAR)
    _set_mode(before)
    try:
        yield
    finally:
        _set_mode(before)


def token_file() -> Path:
    """The file that Ray reads the token from, and makes one in where a local Ray has none."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


@contextmanager
def new_token_private() -> Iterator[None]:
    """Makes a token that Ray writes within the context readable to its owner alone: Ray 2.60 leaves
    it readable to all."""
    file = token_file()
    existed = file.exists()
    try:
        yield
    finally:  # Ray writes it before it starts, which may fail
        if not existed and file.exists():
            file.chmod(0o600)


def check_address(address: str) -> None:
    """Checks within seconds that a Ray head is at ``host:port``, and agrees with it on tokens.

    ``ray.init`` itself tries for 81 seconds and then ends the process (Ray 2.60). It also decides
    from the files of this machine whether tokens are required: a client with a token on a cluster
    without one refuses the cluster's own messages, so every actor seems to die at its start.

    Raises:
        ClusterError: the head cannot be reached; names the address and the remedy.
    """
    if address == "auto":
        running = services.canonicalize_bootstrap_address(address)
        if not running:
            return  # ray.init fails at once
        address = running
    scheme, separator, location = address.rpartition("://")
    host, colon, port = location.rpartition(":")
    if not colon and scheme == "ray":
        host, port = location, str(_CLIENT_PORT)
    if not host or not port.isdigit():
        return  # ray.init fails at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()
    except OSError as error:
        raise unreachable(address, error.strerror or str(error)) from None
    if not separator:
        _agree_on_tokens(address)


def _agree_on_tokens(address: str) -> None:
    """Uses a token where the head requires one, and none where it does not.

    Raises:
        ClusterError: the token is missing or wrong, or the user's mode contradicts the cluster's.
    """
    with authentication_restored():
        _set_mode("disabled")
        requires_token = not _accepts(address)
    if requires_token:
        # Where the user chose no mode; one that was chosen stays.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        if not is_token_auth_enabled() or not _accepts(address):
            raise no_token(address)
    elif is_token_auth_enabled():
        raise ClusterError(
            f"the Ray cluster at {address!r} runs without tokens, and {AUTH_MODE_ENV_VAR}="
            f"{os.environ[AUTH_MODE_ENV_VAR]} has this client refuse messages without one: unset "
            f"{AUTH_MODE_ENV_VAR}, or start the cluster with {AUTH_MODE_ENV_VAR}=token"
        )
    else:
        _set_mode("disabled")  # for address auto, ray.init would take a token that lies here


def _accepts(address: str) -> bool:
    """Whether the head accepts calls of this process, with its token if it uses tokens.

    Raises:
        ClusterError: no Ray head answers.
    """
    with init_grpc_channel(address) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            request = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]  # generated
            head.CheckAlive(request, timeout=_RPC_TIMEOUT)
        except grpc.RpcError as error:
            if error.code() in _REFUSED:
                return False
            reason = f"a server listens there, but it is not a Ray head ({error.code().name})"
            raise unreachable(address, reason) from None
    return True


def _set_mode(mode: str | None) -> None:
    if mode is None:
        os.environ.pop(AUTH_MODE_ENV_VAR, None)
    else:
        os.environ[AUTH_MODE_ENV_VAR] = mode
    # With a token still loaded, Ray would require one of the cluster.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def no_token(address: str) -> ClusterError:
    """The error where a cluster requires a token that this client does not have."""
    return ClusterError(
        f"the Ray cluster at {address!r} refused this client: its token is missing or wrong. Set "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of the cluster"
    )


def unreachable(address: str, reason: str) -> ClusterError:
    """The error where no Ray head answers at an address."""
    return ClusterError(
        f"cannot reach the Ray cluster at {address!r}: {reason}; check the address and port of the "
        f"head node (usually 6379) and that `ray status --address {address}` works from here"
    )
