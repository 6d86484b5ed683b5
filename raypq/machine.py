"""CPUs and memory that this process may use.

In a container or under a batch system this is less than the machine has. The smallest limit
counts: CPU affinity, CPU quotas and memory limits of control groups (versions 1 and 2, of the
group and its ancestors), the machine's memory, and the limit on address space.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

GIB = 1 << 30
_WORKER = GIB  # bytes that a worker needs at least: its process, a model, tables and a batch
CACHE = 4 * GIB  # bytes of features that a worker caches at most by default
_SHARE = 0.6  # of the memory for workers; the rest is for the driver, Ray and the system
_UNLIMITED = 1 << 60  # control groups of version 1 write a number near 2^63 for "no limit"


@dataclass(frozen=True)
class Machine:
    """CPUs and bytes of memory that may be used, and the origin of each limit."""

    cpus: int
    cpus_from: str
    memory: int
    memory_from: str

    def workers(self, threads: int = 1) -> int:
        """Number of workers with so many threads that fit, by CPUs and by memory; at least 1."""
        return max(1, min(self.cpus // threads, self.memory // _WORKER))

    def worker_memory(self, workers: int) -> int:
        """Bytes of memory for each of so many workers."""
        return int(_SHARE * self.memory) // workers


def cache_bytes(worker_memory: int) -> int:
    """Bytes of features that a worker with so much memory caches (0: its memory is not known)."""
    if not worker_memory:
        return CACHE
    return min(CACHE, max(worker_memory - _WORKER, worker_memory // 2))


def memory_for(cache: int) -> int:
    """Bytes of memory of a worker that caches so many bytes of features."""
    return cache + _WORKER


@cache
def usable(root: str = "/") -> Machine:
    """The CPUs and memory that this process may use.

    Args:
        root: the folder that ``proc`` and ``sys/fs/cgroup`` are in.
    """
    root_path = Path(root)
    groups = list(_groups(root_path))
    cpus = [(float(count), name) for count, name in [_affinity()]]
    cpus += [(quota, name) for folder in groups for quota, name in _quotas(folder)]
    memory = [_installed(root_path), *_address_space()]
    memory += [(limit, name) for folder in groups for limit, name in _limits(folder)]
    fewest_cpus, cpus_from = min(cpus, key=lambda limit: limit[0])
    least_memory, memory_from = min(memory, key=lambda limit: limit[0])
    return Machine(max(1, math.ceil(fewest_cpus)), cpus_from, int(least_memory), memory_from)


def _affinity() -> tuple[int, str]:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)), "CPU affinity"
    return os.cpu_count() or 1, "CPUs"


def _installed(root: Path) -> tuple[int, str]:
    for line in _text(root / "proc" / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal" and (words := rest.split()) and words[0].isdigit():
            return int(words[0]) << 10, "/proc/meminfo"
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "installed memory"
    return 4 * GIB, "a guess: the system does not report it"


def _address_space() -> Iterator[tuple[int, str]]:
    try:
        import resource
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 < limit < _UNLIMITED:
        yield limit, "RLIMIT_AS (ulimit -v)"


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of their ancestors.

    In a container the kernel may report the host's path, while only the container's own group is
    mounted: missing folders are skipped, up to the mount itself.
    """
    mount = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, _, entry = line.partition(":")
        controllers, colon, path = entry.partition(":")
        if not colon:
            continue
        if not controllers:
            bases = [mount, mount / "unified"]
        elif {"memory", "cpu"} & set(controllers.split(",")):
            bases = [mount / name for name in {controllers, *controllers.split(",")}]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for base in bases:
            for depth in range(len(parts), -1, -1):
                folder = base.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder


def _quotas(folder: Path) -> Iterator[tuple[float, str]]:
    """CPUs that a control group may use."""
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        yield int(quota) / int(period), str(folder / "cpu.max")
    quota = _text(folder / "cpu.cfs_quota_us").strip()
    period = _text(folder / "cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        yield int(quota) / int(period), str(folder / "cpu.cfs_quota_us")


def _limits(folder: Path) -> Iterator[tuple[int, str]]:
    """Bytes of memory that a control group may use."""
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        text = _text(folder / name).strip()
        if text.isdigit() and 0 < int(text) < _UNLIMITED:
            yield int(text), str(folder / name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # missing or unreadable
        return ""
