"""Room for workers on nodes, and what is restored where Ray does not start."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from raypq.config import ClusterSettings
from raypq.distributed.cluster import connect
from raypq.distributed.errors import ClusterError
from raypq.distributed.head import new_token_private
from raypq.distributed.resources import room


@pytest.mark.parametrize(
    ("node", "needed", "workers"),
    [
        ({"CPU": 8.0, "GPU": 1.0}, {"CPU": 0.5, "GPU": 0.1}, 10),
        ({"CPU": 4.0}, {"CPU": 1.0}, 4),
        ({"CPU": 4.0, "memory": 10.0}, {"CPU": 1.0, "memory": 4.0}, 2),
        ({"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}, 0),
    ],
)
def test_workers_that_fit_on_a_node(
    node: dict[str, float], needed: dict[str, float], workers: int
) -> None:
    assert room(node, needed) == workers


def test_a_token_is_private_also_where_ray_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))

    def start() -> None:
        token.write_text("secret")
        token.chmod(0o644)
        raise RuntimeError

    with pytest.raises(RuntimeError), new_token_private():
        start()
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def own_handler() -> Iterator[signal.Handlers]:
    def own(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, own)
    yield own  # type: ignore[misc]  # a handler, as getsignal returns it
    signal.signal(signal.SIGTERM, before)


def test_the_handler_of_sigterm_is_restored_where_ray_does_not_start(
    monkeypatch: pytest.MonkeyPatch, own_handler: signal.Handlers
) -> None:
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise RuntimeError("no room")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError), connect(ClusterSettings(cluster="local", workers=1)):
        pass
    assert signal.getsignal(signal.SIGTERM) is own_handler
