"""A Ray that cannot be started here: one clear error with what to try, whatever Ray raised."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def encode(home: Any, *words: str, memory: int | None = None, **environment: str) -> str:
    """stderr of an encode on a local Ray that does not start."""
    done = run(home, *words, memory=memory, **environment)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def run(
    home: Any, *words: str, memory: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """An encode on a local Ray."""
    return subprocess.run(
        [
            sys.executable, "-m", "raypq", "encode", "--model", home("old"), "--features",
            home("features"), "--output", home("codes"), "--workers", "1", *words,
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        preexec_fn=None if memory is None else lambda: limit(memory),
    )  # fmt: skip


def limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def told(said: str) -> str:
    """The message, which fits the screen and is no traceback."""
    assert "Traceback" not in said
    assert "unexpected" not in said
    assert len(said.strip().splitlines()) <= 4
    assert "cannot start a local Ray: " in said
    return said


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_a_folder_that_cannot_be_written_to(home: Any, short: Path) -> None:
    (short / "file").write_text("")
    folder = str(short / "file")
    said = told(encode(home, RAY_TMPDIR=folder))
    assert f"Check that {folder} can be written to" in said
    assert "--cluster none (cluster: none) does the same without Ray" in said
    whole = encode(home, "--debug", RAY_TMPDIR=folder)
    assert "Traceback" in whole
    assert "ray.init(" in whole, "what Ray was at is not lost"


def test_a_path_that_is_too_long(home: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / ("long" * 20))
    said = told(encode(home, RAY_TMPDIR=folder))
    assert "path must be short" in said
    assert f"RAY_TMPDIR={folder} has {len(folder)} bytes" in said
    assert "such as RAY_TMPDIR=/tmp" in said


def test_a_long_tmpdir_is_no_obstacle(home: Any, tmp_path: Path) -> None:
    """It is long on clusters with a folder for each job, and macOS; a socket has 107 bytes."""
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    done = run(home, TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert "its files go to /tmp/ray" in done.stderr


def test_a_token_that_is_not_there(home: Any, tmp_path: Path) -> None:
    place = str(tmp_path / "token")
    said = told(encode(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=place, RAY_AUTH_TOKEN=""))
    assert place in said
    assert "RAY_AUTH_MODE=disabled" in said


@pytest.mark.slow
def test_an_object_store_larger_than_memory(home: Any) -> None:
    said = told(encode(home, RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION="50"))
    assert "that memory is free (fewer --workers, workers in a config)" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is the system's")
def test_too_little_memory_for_its_processes(home: Any) -> None:
    """Ray gives up with a bare Exception."""
    told(encode(home, memory=3 << 30, RAY_raylet_start_wait_time_s="10"))


def test_it_starts_no_process_that_jobs_do_not_use(short: Path) -> None:
    """A new Ray may start them in another way: then this test fails, and jobs start later."""
    code = """
from pathlib import Path

from raypq.config import ClusterSettings
from raypq.distributed.cluster import connect

with connect(ClusterSettings(cluster="local", workers=1)):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            print(path.read_text().replace(chr(0), " "))
        except OSError:  # it has ended
            pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_TMPDIR": str(short)},
        capture_output=True,
        text=True,
        check=True,
    )
    own = "\n".join(line for line in done.stdout.splitlines() if str(short) in line)
    assert "raylet" in own
    for name in ("dashboard/dashboard.py", "autoscaler/", "log_monitor.py"):
        assert name not in own
