"""Contenders, rounds, medians, and the machine they ran on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One implementation to measure.

    Attributes:
        run: does the work once. work: its amount in the bench's unit (amounts may differ, since
            rates are compared). ours: True for raypq, False for a peer.
    """

    name: str
    run: Callable[[], object]
    work: float
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """Result of a contender: medians over the rounds."""

    name: str
    rate: float
    seconds: float
    ours: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A required ratio: the rate of ``ours`` over the rate of ``peer``."""

    ours: str
    peer: str
    at_least: float


@dataclass(kw_only=True)
class Result:
    """One table of a bench.

    Attributes:
        sizes: N, T, D, M, K of the case. rates: the rates for ``raypq plan``, if measured.
        other_load: share of the machine's processor time that other processes took meanwhile; None
            where it is not known.
    """

    bench: str
    case: str
    unit: str
    lines: list[Line]
    sizes: dict[str, int] = field(default_factory=dict)
    rates: dict[str, Any] | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    other_load: float | None = None

    def with_goals(self, goals: Sequence[Goal]) -> Result:
        """Adds the ratio of each goal; goals whose peer is absent are left out."""
        rates = {line.name: line.rate for line in self.lines}
        for goal in goals:
            if goal.ours in rates and goal.peer in rates:
                ratio = rates[goal.ours] / rates[goal.peer]
                self.goals.append(
                    {
                        "ours": goal.ours,
                        "peer": goal.peer,
                        "ratio": ratio,
                        "at_least": goal.at_least,
                        "reached": ratio >= goal.at_least,
                    }
                )
        return self


def rounds(contenders: Sequence[Contender], repeats: int = REPEATS) -> list[Line]:
    """Runs every contender once to warm up and then ``repeats`` times, in turns."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(repeats + 1):
        for contender in contenders:
            start = time.perf_counter()
            contender.run()
            if turn:
                times[contender.name].append(time.perf_counter() - start)
    lines = []
    for contender in contenders:
        seconds = statistics.median(times[contender.name])
        lines.append(
            Line(
                name=contender.name,
                rate=contender.work / seconds,
                seconds=seconds,
                ours=contender.ours,
            )
        )
    return lines


def processor_seconds() -> float:
    """Processor seconds of this process and its descendants, Ray's and those that have ended
    included (Linux).

    Unlike wall time it hardly depends on other load of the machine.
    """
    parent: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(entry.parent.name)
        # Of itself, and of the children that it has waited for.
        parent[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    total = 0
    for pid, spent in ticks.items():
        at = pid
        while at != os.getpid() and at in parent:
            at = parent[at]
        total += spent if at == os.getpid() else 0
    return total / os.sysconf("SC_CLK_TCK")


def machine(threads: int) -> dict[str, Any]:
    """Hardware, versions and date of a measurement."""
    from raypq import kernels

    packages = {}
    for name in ("raypq", "numpy", "torch", "faiss-cpu", "pyarrow", "ray"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": packages,
        "kernels": kernels.runtime_info(),
    }


def processor() -> str:
    """Model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
