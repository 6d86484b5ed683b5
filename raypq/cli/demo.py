"""The `raypq demo` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq import console
from raypq.cli.job_command import job_command

if TYPE_CHECKING:
    from raypq.config import DemoSettings


@job_command("raypq.config:DemoSettings")
def demo(settings: DemoSettings) -> None:
    """Generate an ImageNet-like feature store and run the whole path on it.

    \b
    Example:
      raypq demo --images 100000 --classes 1000
    """
    from raypq import demo as pipeline

    console.emit_text(pipeline.run(settings))
