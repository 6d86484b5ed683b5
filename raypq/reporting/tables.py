"""Tables of the page, and the formats of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DASH = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; columns of numbers are aligned right, those in ``words`` left.

    Attributes:
        wraps: columns of long texts, which are broken into lines.
        warning: a note that a reader must not miss.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    words: Sequence[int] = (0,)
    note: str = ""
    wraps: Sequence[int] = ()
    warning: str = ""


def share(value: Any) -> str:
    """A share or an accuracy, with three digits."""
    return DASH if value is None else f"{float(value):.3f}"


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    return DASH if value is None else f"{round(float(value)):,}"


def head_width(head: str) -> int:
    """Characters of a column that keep its head to two lines."""
    words = head.split()
    most = max(map(len, words), default=0)
    half = next(
        (
            width
            for width in range(most, len(head) + 1)
            if any(
                max(len(" ".join(words[:cut])), len(" ".join(words[cut:]))) <= width
                for cut in range(len(words) + 1)
            )
        ),
        most,
    )
    return half + 2


def size(value: float) -> str:
    """Bytes."""
    for step, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= step:
            return f"{value / step:.1f} {unit}"
    return f"{value:.0f} B"


def moment(iso: str) -> str:
    """A time in UTC, to the second."""
    return iso.replace("T", " ").removesuffix("+00:00")
