"""Progress within a shard: the images that were read are shown before the shard is finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from raypq import console, io_counters
from raypq.execution.executor import completed
from raypq.execution.local import LocalExecutor


@dataclass(frozen=True)
class Shard:
    name: str = "one large shard"


class Worker:
    def read(self, _: Shard) -> int:
        for _ in range(60):
            io_counters.add(64, 0.0)
            time.sleep(0.01)
        return 60 * 64


def run() -> list[int]:
    with LocalExecutor().start_workers(Worker, stage="test") as pool:
        results = pool.map(Worker.read, [Shard()])
        return list(completed(results, total=1, label="encode", images=lambda rows: rows))


def test_images_of_one_large_shard_are_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 0.1)
    with caplog.at_level("INFO", logger="raypq"):
        assert run() == [3840]
    *within, last = caplog.records
    assert within, "lines before the shard is finished"
    assert all("encode: 0/1 shards, " in record.getMessage() for record in within)
    read = [record.fields["images_read"] for record in within]  # type: ignore[attr-defined]
    assert read == sorted(set(read)), "it advances"
    assert 0 < read[0] <= read[-1] <= 3840
    assert last.getMessage().startswith("encode: 1/1 shards")


def test_a_bar_shows_images_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def update(_: object, *__: object, rate: str = "", **___: object) -> None:
        shown.append(rate)

    from rich.progress import Progress

    monkeypatch.setattr(Progress, "update", update)
    monkeypatch.setattr(console, "_wants_bar", lambda: True)
    monkeypatch.setattr(console, "_BAR_SECONDS", 0.05)
    monkeypatch.setattr(console.log, "isEnabledFor", lambda _: True)
    run()
    assert any("images read" in rate for rate in shown[:-1])


@pytest.mark.parametrize("read", [None, lambda: 0])
def test_nothing_is_said_where_no_image_is_read(
    read: Callable[[], int] | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 0.02)
    with caplog.at_level("INFO", logger="raypq"), console.progress(1, "x", read=read):
        time.sleep(0.1)
    assert caplog.messages == []
