"""Runs benches by name, prints their tables, and writes their figures as JSON."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from raypq import console, kernels
from raypq.bench.harness import Line, Result, machine
from raypq.config import BenchSettings, read_mapping
from raypq.config.places import Place, Reads
from raypq.data import result_file
from raypq.data.store import overlap
from raypq.errors import ConfigError

NAMES = tuple(
    name for name in get_args(BenchSettings.model_fields["name"].annotation) if name != "all"
)


def run(
    names: list[str],
    *,
    threads: int,
    classes: str | None,
    json_file: str | None,
    processor_time: bool = False,
) -> bool:
    """Runs benches one after another; True if every goal was reached.

    Raises:
        ConfigError: the result file would be written over the class table.
    """
    read = Place(field="--classes", uri=classes, use=Reads("file")) if classes else None
    written = overlap.written_file("--json", json_file)
    overlap.refuse_places(place for place in (read, written) if place)
    kernels.set_threads(threads)
    printer = Console()
    found = machine(threads) | {"clock": "processor" if processor_time else "wall"}
    used = found["kernels"]
    printer.print(
        f"{found['date']}, {found['cpu']}, {threads} threads, "
        f"kernels {used['kernels']} ({used['isa']})"
    )
    results: list[dict[str, Any]] = []
    start = time.monotonic()
    reached = True
    for name in names:
        for result in _results(name, threads, classes, processor_time):
            kernels.set_threads(threads)
            printer.print(_table(result))
            one = asdict(result)
            found |= {"rates": rates} if (rates := one.pop("rates")) else {}
            results.append(one)
            reached &= all(goal["reached"] for goal in result.goals)
            if json_file:
                document = {**found, "seconds": time.monotonic() - start, "results": results}
                result_file.write(json_file, document)
    console.say(f"benches took {time.monotonic() - start:.0f} s")
    return reached


def write(path: str, results: list[Result], *, threads: int) -> None:
    """A result file of benches that ran already."""
    document = {**machine(threads), "results": [asdict(result) for result in results]}
    result_file.write(path, document)


def _results(
    name: str, threads: int, classes: str | None, processor_time: bool
) -> Iterator[Result]:
    bench = importlib.import_module(f"raypq.bench.{name}")
    if name == "rates":
        return bench.run(threads, time.process_time if processor_time else time.perf_counter)
    return bench.run(threads, classes) if name == "pipeline" else bench.run(threads)


def figure(value: float) -> str:
    """A rate as people read it; a very small one with its power of ten."""
    if value >= 1e9 or 0 < value < 0.005:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def markdown(name: str, path: str, *, goals: bool = False) -> str:
    """The results of a bench (or of ``all``) in a file, as Markdown tables; with ``goals`` as one,
    of what has a goal.

    Raises:
        ConfigError: not a result file, or one without that bench.
    """
    document = read_mapping(path)
    results = [
        Result(**{**item, "lines": [Line(**line) for line in item["lines"]]})
        for item in document.get("results", [])
        if name in ("all", item.get("bench"))
    ]
    if not results:
        raise ConfigError(f"{path}: expected results of {name}, found none")
    head = (
        f"{document['date']}, {document['cpu']}, {document['cores']} cores, "
        f"{document['threads']} threads, kernels {document['kernels']['isa']}; "
        + ", ".join(f"{key} {value}" for key, value in document["packages"].items())
    )
    tables = [_goals(results)] if goals else [_markdown(result) for result in results]
    return "\n\n".join([head, *tables])


def _goals(results: list[Result]) -> str:
    lines = ["| | against | raypq is | goal |", "|---|---|---:|---:|"]
    for result in results:
        work = f"{result.bench}: {result.case}"
        for goal in result.goals:
            asked = f"{goal['at_least']:g}× {'✓' if goal['reached'] else '✗'}"
            lines.append(f"| {work} | {goal['peer']} | {goal['ratio']:.2f}× | {asked} |")
            work = ""
    return "\n".join(lines)


def _markdown(result: Result) -> str:
    lines = [f"**{result.bench}**: {result.case}", "", f"| | {result.unit} | raypq is | goal |"]
    lines.append("|---|---:|---:|---:|")
    ours = next((line.rate for line in result.lines if line.ours), None)
    goals = {goal["peer"]: goal for goal in result.goals}
    for line in result.lines:
        ratio = "" if line.ours or ours is None else f"{ours / line.rate:.2f}×"
        goal = goals.get(line.name)
        asked = f"{goal['at_least']:g}× {'✓' if goal['reached'] else '✗'}" if goal else ""
        lines.append(f"| {line.name} | {figure(line.rate)} | {ratio} | {asked} |")
    for key, value in result.checks.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"| *{key}* | {shown} | | |")
    return "\n".join(lines)


def _table(result: Result) -> Table:
    table = Table(title=f"{result.bench}: {result.case}", title_justify="left")
    table.add_column("")
    table.add_column(result.unit, justify="right")
    table.add_column("raypq is", justify="right")
    ours = next((line.rate for line in result.lines if line.ours), None)
    for line in result.lines:
        ratio = "" if line.ours or ours is None else f"{ours / line.rate:.2f}×"
        table.add_row(line.name, figure(line.rate), ratio)
    for goal in result.goals:
        mark = "reached" if goal["reached"] else "NOT reached"
        table.add_row(f"goal against {goal['peer']}", f"{goal['at_least']:g}×", mark)
    for name, value in result.checks.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(f"[dim]{name}[/dim]", shown, "")
    for name in result.absent:
        table.add_row(f"[dim]absent: {name}[/dim]", "", "")
    return table
