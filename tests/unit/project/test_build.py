"""The build: without a compiler it has no native kernels, with one that fails it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CMAKE, NINJA = shutil.which("cmake"), shutil.which("ninja")

pytestmark = pytest.mark.skipif(not (CMAKE and NINJA), reason="no cmake or ninja here")


def configure(build: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs CMake with no compiler on PATH."""
    kept = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX", "PATH")}
    command = [str(CMAKE), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
    return subprocess.run(
        # Without the last one CMake looks into /usr/bin even if PATH does not have it.
        [*command, f"-DCMAKE_MAKE_PROGRAM={NINJA}", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"],
        env={**kept, "PATH": str(build), **environment},
        capture_output=True,
        text=True,
    )


def test_without_a_compiler_the_build_has_no_kernels(tmp_path: Path) -> None:
    done = configure(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "installed without native kernels" in done.stderr


def test_a_compiler_that_fails_fails_the_build(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    assert configure(tmp_path).returncode != 0


def test_a_compiler_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done = configure(tmp_path, CXX="/no/such/compiler")
    assert done.returncode != 0
    assert "/no/such/compiler" in done.stderr
