"""Tables as text: Markdown for pages, and plain text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

_WIDTH = 100  # columns of a terminal


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table.

    Args:
        left: the number of columns, from the first, that are aligned left; the others are aligned
            right, as numbers are.
    """
    rule = "|" + "---|" * left + "---:|" * (len(head) - left)
    return "\n".join([_line(head), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def plain_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
) -> str:
    """A table in columns; the first is aligned left, the others right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=_WIDTH, markup=False, emoji=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([title, "", *lines] if title else lines)
