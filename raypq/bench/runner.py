"""Runs benches by name, prints their tables, and writes their figures as JSON."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_args

from raypq import console, kernels
from raypq.bench import faiss_peer, many_classes, whole_training
from raypq.bench.harness import Line, Result, machine
from raypq.bench.other_load import OtherLoad
from raypq.config import BenchSettings, read_mapping
from raypq.config.places import Place, Reads
from raypq.data import result_file
from raypq.data.store import overlap
from raypq.errors import ConfigError
from raypq.text_tables import markdown_table, plain_table

NAMES = tuple(
    name for name in get_args(BenchSettings.model_fields["name"].annotation) if name != "all"
)


def run(
    names: list[str],
    *,
    threads: int,
    classes: str | None,
    json_file: str | None,
    peer_python: str | None = None,
    children: int | None = None,
    rows: int | None = None,
    processor_time: bool = False,
) -> bool:
    """Runs benches one after another; True if every goal was reached.

    Args:
        classes: class table of pipeline and classify. peer_python: the Python in which the peers
            of search are installed.

    Raises:
        ConfigError: the result file would be written over the class table.
    """
    read = Place(field="--classes", uri=classes, use=Reads("file")) if classes else None
    written = overlap.written_file("--json", json_file)
    overlap.refuse_places(place for place in (read, written) if place)
    kernels.set_threads(threads)
    clock = {"clock": "processor" if processor_time else "wall"}
    document = machine(threads) | {"faiss": faiss_peer.runtime_info()} | clock
    built = document["kernels"]
    console.emit_text(
        f"{document['date']}, {document['cpu']}, {threads} threads, "
        f"kernels {built['kernels']} ({built['isa']})"
    )
    results: list[dict[str, Any]] = []
    start = time.monotonic()
    load = OtherLoad()
    reached = True
    for name in names:
        for result in _results(name, threads, classes, peer_python, children, rows, processor_time):
            result.other_load = load.share()
            kernels.set_threads(threads)
            console.emit_text(f"\n{_table(result)}")
            values = asdict(result)
            document |= {"rates": rates} if (rates := values.pop("rates")) else {}
            results.append(values)
            reached &= all(goal["reached"] for goal in result.goals)
            if json_file:
                seconds = time.monotonic() - start
                result_file.write(json_file, {**document, "seconds": seconds, "results": results})
    console.say(f"benches took {time.monotonic() - start:.0f} s")
    return reached


def write(path: str, results: list[Result], *, threads: int) -> None:
    """Writes a result file of benches that have run."""
    document = {**machine(threads), "results": [asdict(result) for result in results]}
    result_file.write(path, document)


def _results(
    name: str,
    threads: int,
    classes: str | None,
    peer_python: str | None,
    children: int | None,
    rows: int | None,
    processor_time: bool,
) -> Iterator[Result]:
    if children:
        return many_classes.run(threads, classes, children)
    if rows:
        return whole_training.run(threads, rows)
    bench = importlib.import_module(f"raypq.bench.{name}")
    if name == "rates":
        return bench.run(threads, time.process_time if processor_time else time.perf_counter)
    if name == "search":
        return bench.run(threads, peer_python)
    return bench.run(threads, classes) if name in ("pipeline", "classify") else bench.run(threads)


def figure(value: float) -> str:
    """A rate as text; a very large or very small one with its power of ten."""
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
    rows = []
    for result in results:
        case = f"{result.bench}: {result.case}"
        for goal in result.goals:
            rows.append([case, goal["peer"], f"{goal['ratio']:.2f}×", _goal(goal)])
            case = ""
    return markdown_table(["", "against", "raypq is", "goal"], rows, left=2)


def _goal(goal: dict[str, Any]) -> str:
    return f"{goal['at_least']:g}× {'✓' if goal['reached'] else '✗'}"


def _markdown(result: Result) -> str:
    goals = {goal["peer"]: _goal(goal) for goal in result.goals}
    rows = [
        [line.name, figure(line.rate), _ratio(result, line), goals.get(line.name, "")]
        for line in result.lines
    ]
    rows += [[f"*{key}*", _check(value), "", ""] for key, value in _measured(result).items()]
    rows += [[f"*absent: {name}*", "", "", ""] for name in result.absent]
    table = markdown_table(["", result.unit, "raypq is", "goal"], rows)
    return f"**{result.bench}**: {result.case}\n\n{table}"


def _ratio(result: Result, line: Line) -> str:
    """How much faster raypq is than a peer."""
    ours = next((line.rate for line in result.lines if line.ours), None)
    return "" if line.ours or ours is None else f"{ours / line.rate:.2f}×"


def _measured(result: Result) -> dict[str, Any]:
    """The checks, and the load by other processes where it is known."""
    if result.other_load is None:
        return result.checks
    return {**result.checks, "processor time of others": f"{result.other_load:.0%}"}


def _check(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(result: Result) -> str:
    rows = [[line.name, figure(line.rate), _ratio(result, line)] for line in result.lines]
    for goal in result.goals:
        mark = "reached" if goal["reached"] else "NOT reached"
        rows.append([f"goal against {goal['peer']}", f"{goal['at_least']:g}×", mark])
    rows += [[name, _check(value), ""] for name, value in _measured(result).items()]
    rows += [[f"absent: {name}", "", ""] for name in result.absent]
    head = ["", result.unit, "raypq is"]
    return plain_table(head, rows, title=f"{result.bench}: {result.case}")
