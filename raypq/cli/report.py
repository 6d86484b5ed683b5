"""The `raypq report` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq import console
from raypq.cli.job_command import job_command

if TYPE_CHECKING:
    from raypq.config import ReportSettings


@job_command("raypq.config:ReportSettings")
def report(settings: ReportSettings) -> None:
    """Write a self-contained HTML page about result files, models and stores.

    PLACES are files, models, stores, and folders, which are searched. Result files are those of
    raypq evaluate --json and raypq bench --json. With --images, the page shows some images of
    stores of predictions, of search results, of near-duplicates and of their groups.

    \b
    Example:
      raypq report results/ model codes predictions --output report.html
      raypq report results/ predictions --images images/ --classes classes.parquet
    """
    from raypq import api

    figures = api.report(
        settings.places,
        settings.output,
        title=settings.title,
        images=settings.images,
        classes=settings.classes,
        columns=settings.columns,
    )
    console.emit_text(f"{settings.output}: {figures} figures")
