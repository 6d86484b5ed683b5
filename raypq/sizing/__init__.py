"""How long a job would take, and what it would need: rates of one worker times the work.

The rates come from ``raypq bench rates``, on the machine that the workers will be like. The work of
an image follows from the sizes alone (docs/scale.md has the formulas): features to read and to
normalise, 2·dx·D multiply-adds to project it, 2·D·K to find its codewords, and for every class or
query the lookups of M codes.
"""

from raypq.sizing.rates import DeviceRates, Rates, SearchRates
from raypq.sizing.stage import Stage, total
from raypq.sizing.stages import plan
from raypq.sizing.workload import PlanSettings, Workload

__all__ = [
    "DeviceRates",
    "PlanSettings",
    "Rates",
    "SearchRates",
    "Stage",
    "Workload",
    "plan",
    "total",
]
