"""The `raypq plan` command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from raypq import console
from raypq.cli.options import PLACE, Number, job, show, verb

if TYPE_CHECKING:
    from raypq.sizing import Stage


@click.command()
@click.option("--images", type=click.IntRange(1), required=True, help="Images to encode.")
@click.option(
    "--dims", type=click.IntRange(1), default=2048, show_default=True, help="Feature width."
)
@click.option(
    "--classes",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Classes to choose among.",
)
@click.option(
    "--sub-codebooks",
    "M",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="M, the bytes of an image.",
)
@click.option(
    "--method", type=click.Choice(["pqzsl", "pq", "opq"]), default="pqzsl", show_default=True
)
@click.option("--train-images", type=click.IntRange(1), help="Images to train on. [default: all]")
@click.option("--train-classes", type=click.IntRange(1), help="Seen classes. [default: all]")
@click.option(
    "--top-k", type=click.IntRange(1), default=10, show_default=True, help="Classes of an image."
)
@click.option(
    "--queries", type=click.IntRange(0), default=0, help="Plan a search of so many. [default: none]"
)
@click.option(
    "--results", type=click.IntRange(1), default=100, show_default=True, help="Of a query."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the features.",
)
@click.option(
    "--layout",
    type=click.Choice(["list", "binary"]),
    default="list",
    show_default=True,
    help="Of the features: as most tools write them, or as raypq repack does.",
)
@click.option(
    "--shard-images",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Images of a feature file; a file is one worker's.",
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--gpus", type=click.IntRange(0), default=0, show_default=True)
@click.option("--cluster", type=click.Choice(["none", "ray"]), default="ray", show_default=True)
@click.option(
    "--bandwidth", type=Number(0, min_open=True), help="MB/s that storage gives a worker."
)
@click.option("--worker-hour", type=Number(0), default=0.0, help="Price of a worker for an hour.")
@click.option("--gpu-hour", type=Number(0), default=0.0, help="Price of a GPU for an hour.")
@click.option(
    "--rates",
    "rates_file",
    type=PLACE,
    help="Result file of raypq bench rates. [default: this machine's, measured now if need be]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["markdown", "json"]),
    default="markdown",
    show_default=True,
)
@verb
def plan(form: str, rates_file: str | None, **options: Any) -> None:
    """Predict time, bytes, memory and cost of each stage, from measured rates.

    \b
    Example:
      raypq plan --images 14197114 --dims 2048 --classes 21841 --workers 32
    """
    from dataclasses import asdict

    from raypq import sizing
    from raypq.bench import rates_lookup

    if options["bandwidth"] is not None:
        options["bandwidth"] *= 1e6
    work = job(sizing.Workload, options)
    rates, origin = rates_lookup.find(rates_file)
    stages = sizing.plan(work, rates)
    if form == "json" or console.structured():
        show({"rates": origin, "stages": [asdict(item) for item in stages]})
    else:
        console.emit(_table([*stages, sizing.total(stages)], priced=stages[-1].cost > 0))
        uncounted = "" if rates.start is not None else "; the start of Ray was not measured"
        console.emit(f"\nRates: {origin}{uncounted}.")


def _table(stages: list[Stage], *, priced: bool) -> str:
    head = ["", "time", "read", "written", "memory of a worker"] + (["cost"] if priced else [])
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for item in stages:
        cells = [item.name, _time(item.seconds), *map(_bytes, (item.read, item.written))]
        cells += [_bytes(item.memory)] + ([f"{item.cost:,.2f}"] if priced else [])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
