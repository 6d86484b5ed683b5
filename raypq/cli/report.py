"""The `raypq report` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq import console
from raypq.cli.job_command import job_command

if TYPE_CHECKING:
    from raypq.config import ReportSettings


@job_command("raypq.config:ReportSettings")
def report(settings: ReportSettings) -> None:
    """One self-contained HTML page of what is found in PLACES: files, folders, models, stores.

    Result files are those of raypq evaluate --json and raypq bench --json. Folders are searched.

    \b
    Example:
      raypq report results/ model codes predictions --output report.html
    """
    from raypq import api

    figures = api.report(settings.places, settings.output, title=settings.title)
    console.emit_text(f"{settings.output}: {figures} figures")
