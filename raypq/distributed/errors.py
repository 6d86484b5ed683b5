"""What can go wrong with a cluster, said in one line."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from raypq.errors import RaypqError


class ClusterError(RaypqError):
    """The cluster cannot be reached, or cannot run what was asked for."""


def reason_of(error: BaseException) -> str:
    """The one line of Ray's long messages that says what happened."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
        return lines[-1]  # the end of a traceback
    telling = [line for line in lines if line.startswith("The actor is dead because")]
    return (telling or lines)[0][:300]
