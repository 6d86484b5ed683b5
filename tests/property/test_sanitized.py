"""The property tests again, on kernels built with AddressSanitizer and UBSan.

Accesses beyond a buffer, and numbers that do not fit their type, end the process with a report; the
tests alone would notice them only by chance.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "c++")

# pytest, with the module at argv[1] instead of the installed kernels.
LAUNCHER = """
import importlib.util, sys
name, place = "raypq.kernels._native", sys.argv[1]
spec = importlib.util.spec_from_file_location(name, place)
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
from raypq.kernels import native
assert native._native.__file__ == place, native._native.__file__
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which(CXX) is None, reason="no C++ compiler here"),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled module, built as an install would build it, with RAYPQ_SANITIZE."""
    place = tmp_path_factory.mktemp("sanitized")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place]
    command += ["--config-settings=cmake.define.RAYPQ_SANITIZE=ON"]
    command += [f"--config-settings=build-dir={place / 'build'}"]
    built = subprocess.run([*command, ROOT], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if Path(name).name.startswith("_native.")]
        found = [name for name in names if name.endswith(".so")]
        assert len(found) == 1, "the wheel has no compiled kernels: the build failed"
        return Path(file.extract(found[0], place))


def run(kernels: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    library = subprocess.run(
        [CXX, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": library,  # Python itself is built without
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
        "PYTHONMALLOC": "malloc",  # so that arrays of NumPy end where they end
        "RAYPQ_EXAMPLES": "10",
    }
    return subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(kernels), *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
    )


def test_no_kernel_leaves_its_buffers(kernels: Path) -> None:
    """Every property test of every instruction set that this CPU has."""
    tests = ["tests/property/test_kernels.py", "tests/property/test_nearest_codes.py"]
    # Uncaptured (-s): a report goes to the real stderr, and the process ends at once.
    options = [
        "-x",
        "-q",
        "-s",
        "-k",
        "not torch and not million",
        "-o",
        "timeout=0",
        "-p",
        "no:cacheprovider",
    ]
    found = run(kernels, *options, *tests)
    report = found.stdout[-5000:] + found.stderr[-5000:]
    assert found.returncode == 0, report
    for sign in ("AddressSanitizer", "runtime error:"):
        assert sign not in found.stdout + found.stderr, report
    assert " passed" in found.stdout, report
