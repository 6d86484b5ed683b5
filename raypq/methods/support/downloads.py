"""Downloads of weights by libraries: without a network, an error within seconds.

The libraries retry each file for minutes, with a warning each time. So the host is tried first; if
it cannot be reached, they read their caches alone.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from raypq.errors import ConfigError

_HUB, _TORCH = "https://huggingface.co", "https://download.pytorch.org"
_SECONDS = 5.0  # for the host's name and a connection
_OFFLINE = "HF_HUB_OFFLINE"  # the switch of Hugging Face's libraries: read the cache alone


@contextmanager
def downloads(name: str, *, key: str = "backbone") -> Iterator[None]:
    """A library loads the network ``name`` and may download its weights.

    Args:
        key: setting that names the network.

    Raises:
        ConfigError: the weights are not in the library's cache and cannot be downloaded.
    """
    library = name.partition(":")[0]
    problem = _problem(library)
    try:
        with _cache_alone(problem is not None):
            yield
    except OSError as error:
        raise ConfigError(_message(name, library, key, problem, error)) from None


def _problem(library: str) -> str | None:
    """Why the host of a library's weights is not reached; None where it is."""
    if library != "torchvision" and _is_offline():
        return f"{_OFFLINE} is set"
    url = _TORCH if library == "torchvision" else _endpoint()
    reason = unreachable(url)
    return reason and f"{urlsplit(url).hostname} cannot be reached: {reason}"


def unreachable(url: str, seconds: float = _SECONDS) -> str | None:
    """Why no connection to the host of a URL, or to its proxy, can be made; None if one can."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    found = [f"no answer within {seconds:g} s"]

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            found.append("")
        except OSError as error:
            found.append(error.strerror or str(error))

    thread = threading.Thread(target=connect, daemon=True)  # resolving a name has no time limit
    thread.start()
    thread.join(seconds)
    return found[-1] or None


def _constants() -> Any:
    """The settings of Hugging Face's hub, which they read from the environment when imported."""
    return sys.modules.get("huggingface_hub.constants")


def _endpoint() -> str:
    constants = _constants()
    return str(constants.ENDPOINT if constants else os.environ.get("HF_ENDPOINT") or _HUB)


def _is_offline() -> bool:
    constants = _constants()
    if constants:
        return bool(constants.HF_HUB_OFFLINE)
    return os.environ.get(_OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def _cache_alone(offline: bool) -> Iterator[None]:
    """With ``offline``, libraries read their caches alone; other downloads end within seconds."""
    if not offline:
        yield
        return
    before, timeout = os.environ.get(_OFFLINE), socket.getdefaulttimeout()
    os.environ[_OFFLINE] = "1"  # where the library is imported later
    constants = _constants()
    known = getattr(constants, _OFFLINE, False)
    if constants:
        constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        if before is None:
            del os.environ[_OFFLINE]
        else:
            os.environ[_OFFLINE] = before
        if later := _constants():
            later.HF_HUB_OFFLINE = known


def _message(name: str, library: str, key: str, problem: str | None, error: OSError) -> str:
    reason = problem or (str(error).strip().splitlines() or [type(error).__name__])[0]
    cache = "TORCH_HOME" if library == "torchvision" else "HF_HOME"
    remedy = "name the file (--weights, network.weights; in training, set pretrained=false)"
    if key == "encoder":
        remedy = f"name a local folder (--encoder, encoder: {library}:FOLDER)"
    if library == "open_clip":
        remedy = "name the file (--weights, network.weights)"
    return (
        f"{key}: the weights of {name} are not in the library's cache and cannot be downloaded "
        f"({reason}). Download them where there is a network, and bring the cache ({cache} names "
        f"its folder) or {remedy}"
    )
