"""Fills the generated blocks of the README and of the pages in docs/: what stands between

    <!-- generated: raypq COMMAND -->
    <!-- end -->

is what the command prints. ``make docs`` writes them; a test holds that they are up to date.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from raypq.cli import main

DOCS = Path(__file__).resolve().parent
_BLOCK = re.compile(r"(<!-- generated: raypq (?P<command>.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with every block as its command prints it."""
    return _BLOCK.sub(lambda match: f"{match[1]}\n{_printed(match['command'])}\n\n{match[3]}", text)


def _printed(command: str) -> str:
    done = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
    if done.exit_code:
        raise SystemExit(f"raypq {command}\n{done.output}")
    return done.stdout.strip()


def pages() -> list[Path]:
    """Pages that have such blocks."""
    found = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
    return [path for path in found if _BLOCK.search(path.read_text("utf-8"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
