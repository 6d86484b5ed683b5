"""Counts of class names that a class table lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

KEPT = 1000  # names that are counted one by one
SHOWN = 5  # names in messages and summaries
_LONG = 60  # characters of a name in a message


@dataclass(kw_only=True, eq=False)
class UnknownNames:
    """Rows by name; counts add up in any order, and can be subtracted again.

    Memory is bounded: of very many names only the first in alphabetical order are kept, and those
    exactly, since a name that is among the first of all is among the first of every part.

    Attributes:
        rows: rows in all. counts: rows of each name up to ``last``. last: None where no name was
            left out.
    """

    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    last: str | None = None

    def add(self, names: pa.StringArray) -> None:
        """Counts names, one for each row."""
        if len(names):
            found = pc.value_counts(names)
            values, counts = found.field("values").to_pylist(), found.field("counts").to_pylist()
            pairs = dict(zip(values, counts, strict=True))
            self.merge(UnknownNames(rows=len(names), counts=pairs))

    def merge(self, other: UnknownNames) -> None:
        """Adds the counts of other rows."""
        self._combine(other, 1)

    def subtract(self, other: UnknownNames) -> None:
        """Takes off the counts of rows that were added before."""
        self._combine(other, -1)

    def _combine(self, other: UnknownNames, sign: int) -> None:
        self.rows += sign * other.rows
        for name, rows in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + sign * rows
        ends = [last for last in (self.last, other.last) if last is not None]
        names = sorted(name for name, rows in self.counts.items() if rows)
        if ends:
            names = [name for name in names if name <= min(ends)]
        self.last = min(ends, default=None)
        if len(names) > KEPT:
            names = names[:KEPT]
            self.last = names[-1]
        self.counts = {name: self.counts[name] for name in names}
        if self.rows == sum(self.counts.values()):
            self.last = None  # every row is counted by its name (again)

    @property
    def exact(self) -> bool:
        """Whether the names to be shown are known: not after too many were subtracted."""
        return self.last is None or len(self.counts) >= SHOWN

    @property
    def valid(self) -> bool:
        """Whether these can be counts at all."""
        rest = self.rows - sum(self.counts.values())
        return min(self.counts.values(), default=0) >= 0 and rest >= 0

    def summary(self) -> dict[str, Any]:
        """Rows in all and of the first names, as plain values."""
        first = sorted(self.counts)[:SHOWN]
        return {"rows": self.rows, "names": {name: self.counts[name] for name in first}}


def examples(summary: Mapping[str, Any]) -> str:
    """The names of a summary as text: ``'a' (1,200), 'b' (3)``."""
    return ", ".join(f"{short(name)!r} ({rows:,})" for name, rows in summary["names"].items())


def short(name: str) -> str:
    """A name as messages show it: what is very long is cut off."""
    return name if len(name) <= _LONG else f"{name[:_LONG]}…"
