"""The `raypq bench` command."""

from __future__ import annotations

import click

from raypq import console
from raypq.cli.options import PLACE, verb


@click.command()
@click.argument(
    "name",
    type=click.Choice(
        [
            "all",
            "classify",
            "ratio",
            "search",
            "encode",
            "train",
            "read",
            "rates",
            "pipeline",
            "retrieval",
        ]
    ),
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Of everything that runs.",
)
@click.option(
    "--classes", type=PLACE, help="Class table for the pipeline bench. [default: generated]"
)
@click.option("--json", "json_file", type=PLACE, help="Write the figures here too.")
@click.option("--show", type=PLACE, help="Run nothing: print this result file as Markdown tables.")
@click.option("--goals", is_flag=True, help="With --show: only what has a goal, in one table.")
@click.option(
    "--processor-time",
    is_flag=True,
    help="rates only: count the processor's seconds of one worker, for a machine that others use.",
)
@verb
def bench(
    name: str,
    threads: int,
    classes: str | None,
    json_file: str | None,
    show: str | None,
    goals: bool,
    processor_time: bool,
) -> None:
    """Run raypq and its peers side by side, in one process on the same data.

    \b
    Example:
      raypq bench all --json results.json
      raypq bench all --show results.json
    """
    from raypq.bench import runner

    if show:
        console.emit(runner.markdown(name, show, goals=goals))
        return
    if goals:
        raise click.UsageError("--goals goes with --show")
    names = list(runner.NAMES) if name == "all" else [name]
    if processor_time and name != "rates":
        raise click.UsageError("--processor-time is for bench rates")
    runner.run(
        names,
        threads=1 if processor_time else threads,
        classes=classes,
        json_file=json_file,
        processor_time=processor_time,
    )
