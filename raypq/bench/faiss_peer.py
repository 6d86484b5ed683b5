"""FAISS as a peer: its threads, and the instructions at which it is fastest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from raypq.bench.harness import Contender
from raypq.errors import ConfigError
from raypq.optional_packages import require

_TURNS = 2  # at each level, after one to warm up


def faiss_for(peer: str, threads: int, absent: list[str]) -> Any:
    """FAISS with this number of threads; None where it is not installed, and ``peer`` is absent."""
    try:
        faiss = require("faiss", extra="bench")
    except ConfigError:
        absent.append(f"{peer} (faiss-cpu is not installed)")
        return None
    faiss.omp_set_num_threads(threads)
    return faiss


def contender(
    faiss: Any, *, name: str, run: Callable[[], object], work: float, checks: dict[str, Any]
) -> Contender:
    """FAISS at the level of instructions at which it is fastest, which is noted in ``checks``."""
    fastest_run, level = fastest(faiss, run)
    checks[f"SIMD level of {name}"] = level
    return Contender(name=name, run=fastest_run, work=work)


def runtime_info() -> dict[str, Any] | None:
    """FAISS's level by its own choice, the levels that this machine and build have, and how it was
    compiled; None without FAISS."""
    try:
        faiss = require("faiss", extra="bench")
    except ConfigError:
        return None
    return {
        "simd": _level(faiss),
        "levels": levels(faiss),
        "compiled": faiss.get_compile_options().split(),
    }


def levels(faiss: Any) -> list[str]:
    """The levels that this build can switch to on this machine; empty where it cannot switch."""
    config = getattr(faiss, "SIMDConfig", None)  # since 1.15
    if config is None or not config.has_dynamic_dispatch():
        return []
    prefix = "SIMDLevel_"
    return [
        name.removeprefix(prefix)
        for name in dir(faiss)
        if name.startswith(prefix)
        and name != f"{prefix}COUNT"
        and config.is_simd_level_available(getattr(faiss, name))
    ]


def fastest(faiss: Any, run: Callable[[], object]) -> tuple[Callable[[], object], str]:
    """The work at the level at which it is fastest, and that level.

    The newest instructions are not always the fastest.
    """
    choice = [name for name in levels(faiss) if name != "NONE"]
    if len(choice) < 2:
        return run, _level(faiss)

    def at(level: str) -> None:
        faiss.SIMDConfig.set_level(getattr(faiss, f"SIMDLevel_{level}"))
        run()

    best = min(choice, key=lambda level: _seconds(lambda: at(level)))
    return (lambda: at(best)), best


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for turn in range(_TURNS + 1):
        start = time.perf_counter()
        run()
        if turn:
            times.append(time.perf_counter() - start)
    return min(times)


def _level(faiss: Any) -> str:
    """The level in use; of a build without levels, the module that its loader chose."""
    config = getattr(faiss, "SIMDConfig", None)
    if config is not None:
        return str(config.get_level_name())
    return str(getattr(faiss, "swigfaiss", faiss).__name__).rpartition(".")[2]
