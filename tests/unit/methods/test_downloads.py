"""Weights that cannot be downloaded: one message within seconds, and the cache is still read."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest
import torchvision_ops

from raypq.config import NetworkSettings
from raypq.errors import ConfigError
from raypq.methods.support import downloads as module
from raypq.methods.support.downloads import downloads, unreachable


@pytest.fixture
def closed() -> Iterator[str]:
    """The URL of a port at which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def _no_network(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_endpoint", lambda: closed)
    monkeypatch.setattr(module, "_TORCH", closed)


def failed(name: str, key: str, *, offline: str | None) -> str:
    """The message of a download that fails, and the switch of the hub meanwhile."""

    def download() -> None:
        with downloads(name, key=key):
            assert os.environ.get("HF_HUB_OFFLINE") == offline
            raise OSError("no space left")

    with pytest.raises(ConfigError) as caught:
        download()
    return str(caught.value)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("name", "key", "remedies"),
    [
        ("timm:x", "backbone", ("HF_HOME", "--weights")),
        ("torchvision:x", "backbone", ("TORCH_HOME", "--weights")),
        ("open_clip:x/openai", "encoder", ("HF_HOME", "--weights")),
        ("transformers:x", "encoder", ("HF_HOME", "encoder: transformers:FOLDER")),
    ],
)
def test_the_message_names_host_cache_and_file(
    name: str, key: str, remedies: tuple[str, ...]
) -> None:
    text = failed(name, key, offline="1")
    assert text.startswith(f"{key}: the weights of {name} are not in the library's cache")
    assert "127.0.0.1 cannot be reached: Connection refused" in text
    assert all(remedy in text for remedy in remedies)
    assert "\n" not in text
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.usefixtures("_no_network")
def test_a_cached_network_is_loaded_without_one() -> None:
    with downloads("timm:x"):
        pass
    assert socket.getdefaulttimeout() is None


def test_a_reachable_host_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(module, "unreachable", lambda _: None)
    assert "(no space left)" in failed("torchvision:x", "backbone", offline=None)


def test_a_name_that_is_not_resolved_is_given_up(
    closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> socket.socket:
        time.sleep(5)
        raise OSError

    monkeypatch.setattr(module.urllib.request, "getproxies", dict)
    assert unreachable(closed) == "Connection refused"
    monkeypatch.setattr(module.socket, "create_connection", slow)
    start = time.monotonic()
    assert unreachable(closed, 0.1) == "no answer within 0.1 s"
    assert time.monotonic() - start < 4


@pytest.mark.usefixtures("_no_network")
def test_a_network_of_a_hub_fails_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """timm retries for minutes, with a warning each time."""
    torchvision_ops.require()
    pytest.importorskip("timm")
    from raypq.backbones import load_backbone

    start = time.monotonic()
    with pytest.raises(ConfigError, match="are not in the library's cache"):
        load_backbone("timm:test_vit", NetworkSettings(), size=None, device="cpu")
    assert time.monotonic() - start < 60
    assert "etry" not in capfd.readouterr().err
