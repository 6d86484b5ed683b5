"""The result of one check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from raypq.errors import RaypqError, message_of

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``fail``: the job would fail. ``warn``: it runs, but not as the config reads.
        subject: what was checked: the key of a place and its URI, or a part of the machine.
        found: what is there.
        remedy: what to do; empty for ``ok``.
    """

    level: Level
    subject: str
    found: str
    remedy: str = ""


def ok(subject: str, found: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(level="ok", subject=subject, found=found)


def warn(subject: str, found: str, remedy: str) -> Finding:
    """A check whose finding does not stop the job."""
    return Finding(level="warn", subject=subject, found=found, remedy=remedy)


def fail(subject: str, found: str, remedy: str) -> Finding:
    """A check whose finding would stop the job."""
    return Finding(level="fail", subject=subject, found=found, remedy=remedy)


@contextmanager
def errors(subject: str, remedy: str, findings: list[Finding]) -> Iterator[None]:
    """Adds a finding for an error of the context, which ends there; other errors pass.

    Args:
        remedy: what to do where the error itself does not say it.
    """
    try:
        yield
    except (RaypqError, OSError) as error:
        uri = subject.partition(": ")[2]
        findings.append(fail(subject, message_of(error).removeprefix(f"{uri}: "), remedy))
