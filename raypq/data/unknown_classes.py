"""Counts of class names that a class table lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

KEPT = 1000  # names with counts of their own
SHOWN = 5  # names in messages and summaries
_MAX_LENGTH = 60  # characters of a name in a message


@dataclass(kw_only=True, eq=False)
class UnknownNames:
    """Number of rows by name; counts can be added and subtracted in any order.

    Memory is bounded: of very many names only the first in alphabetical order are kept. Their
    counts are exact, since a name that is among the first of all is among the first of every part.

    Attributes:
        rows: total. counts: rows of each name up to ``last``. last: the last name that is kept;
            None if no name was dropped.
    """

    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    last: str | None = None

    def add(self, names: pa.StringArray) -> None:
        """Counts names, one for each row."""
        if len(names):
            table = pc.value_counts(names)
            values, counts = table.field("values").to_pylist(), table.field("counts").to_pylist()
            by_name = dict(zip(values, counts, strict=True))
            self.merge(UnknownNames(rows=len(names), counts=by_name))

    def merge(self, other: UnknownNames) -> None:
        """Adds the counts of other rows."""
        self._combine(other, 1)

    def subtract(self, other: UnknownNames) -> None:
        """Subtracts the counts of rows that were added before."""
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
            self.last = None  # all names are kept (again)

    @property
    def exact(self) -> bool:
        """Whether the first ``SHOWN`` names are known; False after too many were subtracted."""
        return self.last is None or len(self.counts) >= SHOWN

    @property
    def valid(self) -> bool:
        """Whether no count is negative."""
        rest = self.rows - sum(self.counts.values())
        return min(self.counts.values(), default=0) >= 0 and rest >= 0

    def summary(self) -> dict[str, Any]:
        """The total and the counts of the first names, as JSON values."""
        first = sorted(self.counts)[:SHOWN]
        return {"rows": self.rows, "names": {name: self.counts[name] for name in first}}


def examples(summary: Mapping[str, Any]) -> str:
    """The names of a summary as text: ``'a' (1,200), 'b' (3)``."""
    return ", ".join(f"{short(name)!r} ({rows:,})" for name, rows in summary["names"].items())


def short(name: str) -> str:
    """A name for messages, truncated if it is very long."""
    return name if len(name) <= _MAX_LENGTH else f"{name[:_MAX_LENGTH]}…"
