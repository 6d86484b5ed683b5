"""The `raypq plan` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq import console
from raypq.cli.job_command import job_command
from raypq.cli.options import show
from raypq.text_tables import markdown_table

if TYPE_CHECKING:
    from raypq.sizing import PlanSettings, Stage


@job_command("raypq.sizing:PlanSettings")
def plan(settings: PlanSettings) -> None:
    """Predict time, bytes, memory and cost of each stage, from measured rates.

    \b
    Example:
      raypq plan --images 14197114 --dims 2048 --classes 21841 --workers 32
    """
    from dataclasses import asdict

    from raypq import sizing
    from raypq.bench import rates_lookup

    rates, origin = rates_lookup.find(settings.rates_file)
    stages = sizing.plan(settings, rates)
    if settings.format == "json" or console.structured():
        show({"rates": origin, "stages": [asdict(item) for item in stages]})
    else:
        console.emit(_table([*stages, sizing.total(stages)], priced=stages[-1].cost > 0))
        uncounted = "" if rates.start is not None else "; the start of Ray was not measured"
        console.emit(f"\nRates: {origin}{uncounted}.")


def _table(stages: list[Stage], *, priced: bool) -> str:
    head = ["", "time", "read", "written", "memory of a worker"] + (["cost"] if priced else [])
    rows = []
    for item in stages:
        cells = [item.name, _time(item.seconds), *map(_bytes, (item.read, item.written))]
        rows.append([*cells, _bytes(item.memory), *([f"{item.cost:,.2f}"] if priced else [])])
    return markdown_table(head, rows)


def _time(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _bytes(size: float) -> str:
    for step, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
