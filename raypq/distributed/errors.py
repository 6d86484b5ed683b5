"""Errors of a Ray cluster, as one line."""

from __future__ import annotations

from collections.abc import Mapping

from ray.exceptions import RayTaskError

from raypq import machine
from raypq.errors import RaypqError


class ClusterError(RaypqError):
    """The cluster cannot be reached, or cannot run the job."""


def reason_of(error: BaseException) -> str:
    """The line of a Ray error that gives the cause."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
        return lines[-1]  # the error itself, after its traceback
    causes = [line for line in lines if line.startswith("The actor is dead because")]
    return (causes or lines)[0][:300]


def described(resources: Mapping[str, float]) -> str:
    """Resources as text: ``4 CPU and 2.5 GiB of memory``."""
    return " and ".join(
        f"{count / machine.GIB:.4g} GiB of memory" if name == "memory" else f"{count:g} {name}"
        for name, count in resources.items()
    )
