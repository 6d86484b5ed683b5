"""What a process may use: limits of control groups, of both versions, in made-up trees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raypq import machine
from raypq.config import ClusterSettings
from raypq.errors import ConfigError

GIB = machine.GIB
HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tree(root: Path, files: dict[str, str | int]) -> machine.Machine:
    """A machine of 64 GiB with these files."""
    for name, text in {
        "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\n",
        **files,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return machine.usable(str(root))


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
UNLIMITED = 9223372036854771712  # as version 1 writes it


S, LIMIT = {"proc/self/cgroup": "9:memory:/s"}, "memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("files", "gib", "told"),
    [
        ({}, 64, "meminfo"),
        # Version 2: the group itself, one above it, in a container of its own name space.
        ({"proc/self/cgroup": "0::/a/b", f"{V2}/a/b/memory.max": 8 * GIB}, 8, "a/b/memory.max"),
        ({"proc/self/cgroup": "0::/a/b", f"{V2}/a/memory.max": 4 * GIB}, 4, "a/memory.max"),
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": 2 * GIB}, 2, "cgroup/memory.max"),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/memory.max": "max"}, 64, "meminfo"),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/memory.high": 3 * GIB}, 3, "memory.high"),
        # The host's path is told, but only the container's group is mounted.
        ({"proc/self/cgroup": "0::/kubepods/pod1/c", f"{V2}/memory.max": 6 * GIB}, 6, "memory.max"),
        ({"proc/self/cgroup": "0::/../../x", f"{V2}/memory.max": 6 * GIB}, 6, "memory.max"),
        # Version 1, bare and in a container; both versions at once.
        ({**S, f"{V1}/s/{LIMIT}": 5 * GIB}, 5, LIMIT),
        ({**S, f"{V1}/{LIMIT}": 5 * GIB}, 5, LIMIT),
        ({**S, f"{V1}/s/{LIMIT}": UNLIMITED}, 64, "meminfo"),
        (
            {
                "proc/self/cgroup": "9:memory:/s\n0::/s",
                f"{V1}/s/memory.limit_in_bytes": 7 * GIB,
                f"{V2}/unified/s/cgroup.procs": "1",
            },
            7,
            "limit_in",
        ),
        # What cannot be understood limits nothing.
        ({"proc/self/cgroup": "nonsense\n::", f"{V2}/memory.max": "-5"}, 64, "meminfo"),
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": 0}, 64, "meminfo"),
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": 500 * GIB}, 64, "meminfo"),
    ],
)  # fmt: skip
def test_memory(tmp_path: Path, files: dict[str, str | int], gib: int, told: str) -> None:
    found = tree(tmp_path, files)
    assert found.memory == gib * GIB
    assert told in found.memory_from


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, HERE),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a", f"{V2}/cpu.max": "50000 100000", f"{V2}/a/x": 1}, 1),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "max 100000"}, HERE),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "99900000 100000"}, HERE),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/d",
                "sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_quota_us": 100000,
                "sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_period_us": 100000,
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/d",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
            },
            HERE,
        ),
    ],
)
def test_cpus(tmp_path: Path, files: dict[str, str | int], cpus: int) -> None:
    assert tree(tmp_path, files).cpus == cpus


def test_a_part_of_a_cpu_counts_as_one(tmp_path: Path) -> None:
    found = tree(tmp_path, {"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "150000 100000"})
    assert found.cpus == min(HERE, 2)
    assert "cpu.max" in found.cpus_from or HERE == 1


def test_defaults_that_follow() -> None:
    def of(cpus: int, gib: float) -> machine.Machine:
        return machine.Machine(cpus, "", int(gib * GIB), "")

    assert of(16, 64).workers() == 16
    assert of(16, 64).workers(threads=4) == 4
    assert of(2, 64).workers(threads=8) == 1
    assert of(64, 8).workers() == 8, "a worker needs a GiB"
    assert of(8, 0.2).workers() == 1
    for cpus, gib in ((2, 24), (64, 8), (8, 0.2), (16, 64)):
        here = of(cpus, gib)
        each = here.worker_memory(here.workers())
        cache = machine.cache_bytes(each)
        assert 0 < cache <= 4 * GIB
        assert here.workers() * cache < 0.6 * here.memory
    assert machine.cache_bytes(100 * GIB) == machine.cache_bytes(0) == 4 * GIB


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_affinity_counts() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from raypq.config import ClusterSettings; from raypq import kernels; "
        "print(ClusterSettings().workers, kernels.threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_the_default_number_of_workers() -> None:
    here = machine.usable()
    assert ClusterSettings().workers == here.workers()
    assert ClusterSettings(threads=2).workers == here.workers(2)
    assert ClusterSettings(threads=2, workers=9).workers == 9


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("gpus_per_worker", 1.0, "leave it out and name the device"),
        ("start_timeout", 600.0, "leave it out"),
    ],
)
def test_what_only_ray_would_heed_is_refused_without_it(key: str, value: float, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}.*'none'.*{told}.*--cluster local"):
        ClusterSettings.parse({"cluster": "none", key: value})
    ClusterSettings.parse({"cluster": "local", key: value})
    ClusterSettings.parse({key: value, "cluster": "auto"})
    default = ClusterSettings.model_fields[key].default
    ClusterSettings.parse({"cluster": "none", key: default})
