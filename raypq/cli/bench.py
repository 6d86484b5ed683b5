"""The `raypq bench` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raypq import console
from raypq.cli.job_command import job_command

if TYPE_CHECKING:
    from raypq.config import BenchSettings


@job_command("raypq.config:BenchSettings")
def bench(settings: BenchSettings) -> None:
    """Run raypq and its peers side by side, in one process on the same data.

    NAME is all, classify, ratio, search, encode, train, read, layouts, extract, rates, pipeline,
    retrieval or duplicates.

    \b
    Example:
      raypq bench all --json results.json
      raypq bench all --show results.json
    """
    from raypq.bench import runner

    if settings.show:
        console.emit_text(runner.markdown(settings.name, settings.show, goals=settings.goals))
        return
    if settings.goals:
        raise click.UsageError("--goals goes with --show")
    if settings.processor_time and settings.name != "rates":
        raise click.UsageError("--processor-time is for bench rates")
    if settings.children and settings.name != "classify":
        raise click.UsageError("--children is for bench classify")
    if settings.rows and settings.name != "train":
        raise click.UsageError("--rows is for bench train")
    runner.run(
        list(runner.NAMES) if settings.name == "all" else [settings.name],
        threads=1 if settings.processor_time else settings.threads,
        classes=settings.classes,
        children=settings.children,
        rows=settings.rows,
        json_file=settings.json_file,
        peer_python=settings.peer_python,
        processor_time=settings.processor_time,
    )
