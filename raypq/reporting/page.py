"""One HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from raypq._version import __version__
from raypq.data.storage import write_bytes
from raypq.optional_packages import require
from raypq.reporting import chapters, tables
from raypq.reporting.findings import gather
from raypq.reporting.picture_chapters import PictureSource


def make(
    places: Sequence[str],
    output: str,
    *,
    title: str = "raypq report",
    pictures: PictureSource | None = None,
) -> int:
    """Writes the page; returns the number of figures in it.

    Args:
        places: result files, models, stores, or folders of them. output: the HTML file.
        pictures: images of the stores, to show some of them.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
        InputError: a place that is not there, or nothing to report on; see also
            ``picture_chapters.make``.
    """
    require("matplotlib", extra="report", purpose="a report")
    jinja2 = require("jinja2", extra="report", purpose="a report")
    report = chapters.write(gather(places), pictures)
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["head_width"] = tables.head_width
    text = environment.get_template("page.html.j2").render(
        title=title,
        report=report,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )
    write_bytes(output, text.encode())
    return sum(len(chapter.charts) for chapter in report.chapters)
