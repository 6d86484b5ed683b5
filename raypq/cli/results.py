"""The `raypq export` and `predictions` commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq import console
from raypq.cli.job_command import job_command
from raypq.cli.options import show

if TYPE_CHECKING:
    from raypq.config import ExportJob, PredictionsSettings


@job_command("raypq.config:ExportJob")
def export(job: ExportJob) -> None:
    """Write a store in a format that other tools read, one file for each shard.

    STORE is of codes, predictions, features, search results, pairs, groups or clusters. (FAISS:
    raypq export-faiss.)

    \b
    Example:
      raypq export predictions --classes classes.parquet --format jsonl --output answers
      raypq export codes --decode --format npy --output vectors
    """
    from raypq import api

    show(api.export(job))


@job_command("raypq.config:PredictionsSettings")
def predictions(settings: PredictionsSettings) -> None:
    """Show predictions with the names of their classes.

    \b
    Example:
      raypq predictions predictions --classes classes.parquet
      raypq predictions predictions --classes classes.parquet --id n01440764/7.jpg
    """
    from raypq import api

    for line in api.predictions(settings):
        console.emit(line)
