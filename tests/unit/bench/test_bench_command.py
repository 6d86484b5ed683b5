"""What the command names reaches the bench that it is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raypq.bench.harness import Result
from raypq.cli import main


@pytest.mark.parametrize(
    ("name", "option"),
    [("search", "--peer-python"), ("classify", "--classes"), ("pipeline", "--classes")],
)
def test_an_option_reaches_its_bench(
    name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = str(tmp_path / "given")
    calls: list[tuple[Any, ...]] = []

    def run(*args: Any) -> Iterator[Result]:
        calls.append(args)
        return iter(())

    monkeypatch.setattr(f"raypq.bench.{name}.run", run)
    done = CliRunner().invoke(main, ["bench", name, "--threads", "1", option, given])
    assert done.exit_code == 0, done.output
    assert calls == [(1, given)]
