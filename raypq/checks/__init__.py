"""Checks of what a job needs, before it runs: ``raypq doctor --config FILE``.

* ``inputs``: what the job reads is there and can be read; models and networks load.
* ``outputs``: rights to create, read, list and delete where it writes, by a probe; disk space.
* ``resources``: memory of a worker against the model, the classes and the store; CPUs without Ray.
* ``nodes``: the cluster answers, its nodes have this raypq and room for the workers, and they
  reach the same places.
"""

from raypq.checks.finding import Finding, Level
from raypq.checks.job import check_job

__all__ = ["Finding", "Level", "check_job"]
