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
    def wait_for(lines: int, beginning: str) -> None:
        end = time.monotonic() + 60
        while sum(text.startswith(beginning) for text in caplog.messages) < lines:
            assert time.monotonic() < end, caplog.messages
            time.sleep(0.02)

    with caplog.at_level("INFO", "raypq"), heartbeat.watched():
        with heartbeat.phase("outer"), heartbeat.phase("listing the source"):
            wait_for(2, "listing the source, for ")
        wait_for(1, "still running, for ")
    assert all(text.endswith(" s so far") for text in caplog.messages[:2])
    assert "outer" not in " ".join(caplog.messages)


def test_lines_put_it_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_SILENCE", 2.0)
    with caplog.at_level("INFO", "raypq"), heartbeat.watched(), heartbeat.phase("at it"):
        for _ in range(30):
            console.say("a line")
            time.sleep(0.1)
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
