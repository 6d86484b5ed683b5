"""The `raypq quickstart` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq import console
from raypq.cli.job_command import job_command

if TYPE_CHECKING:
    from raypq.config import QuickstartSettings


@job_command("raypq.config:QuickstartSettings")
def quickstart(settings: QuickstartSettings) -> None:
    """Make codes and predictions of pictures, from the names of their classes.

    Says each command that it runs. Without pictures and names, it draws some.

    \b
    Example:
      raypq quickstart --images pictures --names names.txt --output first
    """
    from raypq import quickstart as pipeline

    console.emit_text(pipeline.run(settings))
