"""Verbs about this machine: bench, doctor and the demo."""

from __future__ import annotations

from typing import Any

import click

from raypq import console
from raypq.cli.options import PLACE, cluster, show, verb, where_of


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
    from raypq.bench import report

    if show:
        console.emit(report.markdown(name, show, goals=goals))
        return
    if goals:
        raise click.UsageError("--goals goes with --show")
    names = list(report.NAMES) if name == "all" else [name]
    if processor_time and name != "rates":
        raise click.UsageError("--processor-time is for bench rates")
    report.run(
        names,
        threads=1 if processor_time else threads,
        classes=classes,
        json_file=json_file,
        processor_time=processor_time,
    )


@click.command()
@verb
def doctor() -> None:
    """Say what this installation can do and use: kernels, threads, torch, CUDA, CPUs, memory.

    CPUs and memory are what this process may use, and what limits them; workers, their memory and
    what they keep of features in training are the defaults that follow.

    \b
    Example:
      raypq doctor
    """
    from raypq import kernels, machine

    here = machine.usable()
    workers = here.workers()
    memory = here.worker_memory(workers)
    limits = {
        "cpus": here.cpus,
        "cpus_from": here.cpus_from,
        "memory_bytes": here.memory,
        "memory_from": here.memory_from,
        "workers": workers,
        "worker_memory_bytes": memory,
        "cache_bytes": machine.cache_bytes(memory),
    }
    show(kernels.active() | limits)


@click.command()
@click.option(
    "--output", default="demo-output", show_default=True, help="Folder to write everything to."
)
@click.option("--images", type=click.IntRange(1000), default=40_000, show_default=True)
@click.option("--classes", "n_classes", type=click.IntRange(40), default=400, show_default=True)
@click.option(
    "--dims", type=click.IntRange(16), default=512, show_default=True, help="Feature width."
)
@click.option(
    "--sub-codebooks",
    "M",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Bytes per image.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@cluster
@verb
def demo(**options: Any) -> None:
    """Generate an ImageNet-like feature store and run the whole path on it.

    \b
    Example:
      raypq demo --images 100000 --classes 1000
    """
    from raypq import demo as story

    where = where_of(options)
    console.emit(story.run(story.DemoSettings(**options), where))
