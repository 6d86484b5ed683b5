"""How busy other processes kept the machine while a bench ran."""

from __future__ import annotations

import os
import time
from pathlib import Path

from raypq.bench.harness import processor_seconds

# Below it a measurement is quiet: half of it is what an idle system's own services take.
QUIET_SHARE = 0.05


class OtherLoad:
    """Share of the machine's processor time that is not of this process and its descendants.

    Time that a hypervisor gave to other machines counts too.
    """

    def __init__(self) -> None:
        self._mark = _now()

    def share(self) -> float | None:
        """The share since the last call, from 0 to 1; None where the system does not tell."""
        before, self._mark = self._mark, _now()
        if before is None or self._mark is None:
            return None
        wall, busy, own = (now - then for now, then in zip(self._mark, before, strict=True))
        capacity = wall * (os.cpu_count() or 1)
        return min(max((busy - own) / capacity, 0.0), 1.0) if capacity > 0 else None


def _now() -> tuple[float, float, float] | None:
    """Wall seconds, processor seconds of the machine, and of this process and its descendants."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, stolen = map(int, line.split()[1:9])
    busy = (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, processor_seconds()
