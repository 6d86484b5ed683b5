"""Signs of life: a line with the phase where nothing was logged for a while."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from raypq import console, heartbeat
from raypq.execution.executor import TaskResult, completed
from raypq.kernels.neighbors import NeighborIndex


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_SILENCE", 0.2)
    monkeypatch.setattr(heartbeat, "_LATER", 0.4)
    monkeypatch.setattr(heartbeat, "_POLL", 0.02)


def test_a_silent_phase_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "raypq"), heartbeat.watched():
        with heartbeat.phase("outer"), heartbeat.phase("listing the source"):
            time.sleep(0.75)
        time.sleep(0.5)
    inner, again, outside = caplog.messages[:3]
    assert inner == "listing the source, for 0 s so far"
    assert again == "listing the source, for 1 s so far"  # 0.6 s
    assert outside.startswith("still running, for 1 s")


def test_lines_put_it_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "raypq"), heartbeat.watched(), heartbeat.phase("at it"):
        for _ in range(8):
            console.say("a line")
            time.sleep(0.08)
    assert set(caplog.messages) == {"a line"}


def test_a_pass_tells_its_shards(caplog: pytest.LogCaptureFixture) -> None:
    def results() -> object:
        yield TaskResult(0, 0)
        time.sleep(0.4)
        yield TaskResult(1, 1)

    with caplog.at_level("INFO", "raypq"), heartbeat.watched():
        assert list(completed(results(), total=2, label="encode")) == [0, 1]  # type: ignore[arg-type]
        assert caplog.messages[0] == "encode: 1/2 shards, for 0 s so far"
    assert heartbeat._phases == []


def test_a_search_for_all_neighbours_tells_its_share() -> None:
    rng = np.random.default_rng(0)
    B = rng.integers(0, 16, (60_000, 8)).astype(np.uint8)
    index = NeighborIndex(B, rng.standard_normal((8, 16, 4)).astype(np.float32))
    shares = {index.searched}
    thread = threading.Thread(target=index.search_all, args=(11,))
    thread.start()
    while thread.is_alive():
        shares.add(index.searched)
        time.sleep(0.001)
    assert {0.0, 1.0} <= shares | {index.searched}
    assert all(0 <= share <= 1 for share in shares)
    assert len(shares) > 4
