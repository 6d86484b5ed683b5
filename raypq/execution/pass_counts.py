"""Counts of the passes of a run: what its result and its metrics say of shards, finished or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from raypq.errors import ShardFailure


@dataclass(kw_only=True)
class PassCounts:
    """The tasks of the passes with one label.

    Attributes:
        done: tasks that finished. images: in these.
        failed: failures that end the run. quarantined: those of input that is left out.
        not_tried: tasks of passes that were stopped early.
    """

    done: int = 0
    images: int = 0
    failed: list[ShardFailure] = field(default_factory=list)
    quarantined: list[ShardFailure] = field(default_factory=list)
    not_tried: int = 0


_current: ContextVar[dict[str, PassCounts] | None] = ContextVar("raypq_passes", default=None)


@contextmanager
def collected() -> Iterator[dict[str, PassCounts]]:
    """The counts of all passes within the context, by label, in the order of their begin.

    A context within another one has the same counts.
    """
    before = _current.get()
    counts: dict[str, PassCounts] = {} if before is None else before
    token = _current.set(counts)
    try:
        yield counts
    finally:
        _current.reset(token)


def of(label: str) -> PassCounts:
    """The counts of the passes with a label in the current run."""
    counts = _current.get()
    return PassCounts() if counts is None else counts.setdefault(label, PassCounts())
