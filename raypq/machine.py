"""What this process may use of its machine: CPUs and memory, within the limits that it is under.

The machine's own numbers say too much in a container or under a batch system. Here the least of
what applies counts: CPU affinity, CPU quotas and memory limits of control groups (versions 1 and
2, of the group and those above it), the machine's memory, and the limit on address space.
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
CACHE = 4 * GIB  # bytes of features that a worker keeps at most, unless more is asked for
_SHARE = 0.6  # of the memory for workers: the rest is the driver's, Ray's and the system's
_UNLIMITED = 1 << 60  # version 1 has no word for it but a number near 2^63


@dataclass(frozen=True)
class Machine:
    """CPUs and bytes of memory that may be used, and what sets each limit."""

    cpus: int
    cpus_from: str
    memory: int
    memory_from: str

    def workers(self, threads: int = 1) -> int:
        """Workers of so many threads that fit, by CPUs and by memory; at least one."""
        return max(1, min(self.cpus // threads, self.memory // _WORKER))

    def worker_memory(self, workers: int) -> int:
        """Bytes that each of so many workers may use."""
        return int(_SHARE * self.memory) // workers


def cache_bytes(worker_memory: int) -> int:
    """Bytes of features that a worker with so much memory keeps (0: its memory is not known)."""
    if not worker_memory:
        return CACHE
    return min(CACHE, max(worker_memory - _WORKER, worker_memory // 2))


def memory_for(cache: int) -> int:
    """Bytes of memory of a worker that keeps so many bytes of features."""
    return cache + _WORKER


@cache
def usable(root: str = "/") -> Machine:
    """What this process may use.

    Args:
        root: where ``proc`` and ``sys/fs/cgroup`` are.
    """
    place = Path(root)
    groups = list(_groups(place))
    cpus = [(float(count), name) for count, name in [_affinity()]]
    cpus += [(quota, name) for folder in groups for quota, name in _quotas(folder)]
    memory = [_installed(place), *_address_space()]
    memory += [(limit, name) for folder in groups for limit, name in _limits(folder)]
    few, cpus_from = min(cpus, key=lambda one: one[0])
    least, memory_from = min(memory, key=lambda one: one[0])
    return Machine(max(1, math.ceil(few)), cpus_from, int(least), memory_from)


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
    return 4 * GIB, "a guess: the system does not tell"


def _address_space() -> Iterator[tuple[int, str]]:
    try:
        import resource
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 < limit < _UNLIMITED:
        yield limit, "RLIMIT_AS (ulimit -v)"


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of those above them.

    In a container the path that the kernel tells may be the host's, while only the container's own
    group is mounted: folders that are not there are passed over, up to the mount itself.
    """
    mount = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
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
    """CPUs that a group may use."""
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        yield int(quota) / int(period), str(folder / "cpu.max")
    quota = _text(folder / "cpu.cfs_quota_us").strip()
    period = _text(folder / "cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        yield int(quota) / int(period), str(folder / "cpu.cfs_quota_us")


def _limits(folder: Path) -> Iterator[tuple[int, str]]:
    """Bytes of memory that a group may use."""
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        text = _text(folder / name).strip()
        if text.isdigit() and 0 < int(text) < _UNLIMITED:
            yield int(text), str(folder / name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not there, or not to be read
        return ""
