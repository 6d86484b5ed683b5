"""Tuning: settings and γ chosen on held-out training classes (``held_out_classes``).

The score of a setting is the mean of ZSL accuracy and of H at the best γ of the same splits: ZSL
alone ignores the bias to seen classes, and H without calibration mostly measures it. All
combinations are tried on one split and the best third on all of them (successive halving). Where
the best one lies at the border of a grid of numbers, the grid grows there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from raypq import console
from raypq.config import TrainJob
from raypq.errors import ConfigError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.methods import registry
from raypq.stages.training.held_out_classes import (
    FEWEST_CLASSES,
    Trial,
    Trials,
    TrialScores,
    best_gamma,
    open_trials,
    splits_of,
)

if TYPE_CHECKING:
    from raypq.stages.training.dataset import TrainingPlan

_KEPT = 3  # one in so many settings is tried on all splits
_FEWEST_KEPT = 3
_MOST_STEPS = 6  # by which the grid of one setting grows

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The chosen settings and calibration, and a table of all settings that were tried."""

    settings: dict[str, Any]
    calibration: float
    table: Sequence[Mapping[str, Any]]

    def record(self) -> dict[str, Any]:
        """Its entries in the record of a model."""
        return {"calibration": self.calibration, "tuning": [dict(row) for row in self.table]}


def tune(job: TrainJob, plan: TrainingPlan, executor: Executor, record: RunRecord) -> Tuned:
    """Searches the method's space of settings, except for those that the job sets.

    Raises:
        ConfigError: the method has no search space, or there are too few classes.
    """
    cls = registry.find(job.method)
    if not cls.needs_classes or not cls.search_space:
        raise ConfigError(f"--tune (tune: true): {job.method} has no settings to choose by classes")
    L = plan.dataset_info.L
    if L < FEWEST_CLASSES:
        raise ConfigError(
            f"--tune (tune: true) needs at least {FEWEST_CLASSES} training classes, found {L}"
        )
    space = search_space(cls.search_space, job.settings)
    with open_trials(job, plan, executor, record, "tune") as trials:
        search = Search(trials=trials, space=space, splits=splits_of(L))
        search.run()
    return search.result(job.settings)


def search_space(space: Mapping[str, Sequence[Any]], fixed: Settings) -> dict[str, tuple[Any, ...]]:
    """The settings to search: those that are not fixed, neither themselves nor (``ridge_share``)
    what they are a share of."""
    return {
        key: tuple(values)
        for key, values in space.items()
        if key not in fixed and key.removesuffix("_share") not in fixed
    }


@dataclass(kw_only=True)
class Search:
    """The search of one space of settings."""

    trials: Trials
    space: dict[str, tuple[Any, ...]]
    splits: int
    _scores: dict[tuple[Any, ...], list[TrialScores]] = field(default_factory=dict)

    def run(self) -> None:
        """Tries all combinations, and grows the grids."""
        every = list(product(*self.space.values()))
        self._try(every, splits=1)
        kept = max(_FEWEST_KEPT, -(-len(every) // _KEPT))
        self._try(sorted(every, key=self._score, reverse=True)[:kept], splits=self.splits)
        for _ in range(_MOST_STEPS):
            further = self._beyond(self._best())
            if not further:
                return
            before = self._best()
            self._try(further, splits=self.splits)
            if self._best() == before:
                return

    def result(self, fixed: Settings) -> Tuned:
        """The best settings, with those of the job."""
        best = self._best()
        row, chosen = self._row(best), self._named(best)
        console.say(
            f"tuned: {chosen}, validation ZSL {row['zsl']:.3f}; calibrated by "
            f"{row['gamma']:.4g} H {row['H']:.3f} ({row['H_uncalibrated']:.3f} without)"
        )
        for name in self._at_border(best):
            console.warn(
                f"tuned: {name} = {chosen[name]:g} is the last value that was tried; a value "
                f"beyond it may be better (--set {name}=…, settings.{name})"
            )
        table = sorted(
            map(self._row, self._scores), key=lambda row: (-row["splits"], -row["score"])
        )
        return Tuned(settings={**chosen, **fixed}, calibration=float(row["gamma"]), table=table)

    def _try(self, settings: Sequence[tuple[Any, ...]], *, splits: int) -> None:
        trials, owners = [], []
        for values in settings:
            done = self._scores.setdefault(values, [])
            for split in range(len(done), splits):
                trials.append(Trial(settings=self._named(values), split=split))
                owners.append(done)
        for done, score in zip(owners, self.trials.run(trials), strict=True):
            done.append(score)

    def _named(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.space, values, strict=True))

    def _score(self, values: tuple[Any, ...]) -> float:
        return float(self._row(values)["score"])

    def _row(self, values: tuple[Any, ...]) -> dict[str, Any]:
        scores = self._scores[values]
        gamma, H = best_gamma(scores)
        zsl = float(np.mean([score.zsl for score in scores]))
        return {
            **self._named(values),
            "zsl": zsl,
            "H": H,
            "H_uncalibrated": float(np.mean([score.H() for score in scores])),
            "gamma": gamma,
            "splits": len(scores),
            "score": (zsl + H) / 2,
        }

    def _best(self) -> tuple[Any, ...]:
        """Of the settings that were tried on all splits; the first one of equals."""
        whole = [values for values, scores in self._scores.items() if len(scores) == self.splits]
        return max(whole, key=self._score)

    def _beyond(self, best: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Settings one step beyond the borders of grids that ``best`` lies at, with the other
        settings as they are."""
        further = []
        for at, (name, grid) in enumerate(list(self.space.items())):
            if not _is_grid(grid) or best[at] not in (grid[0], grid[-1]):
                continue
            low = best[at] == grid[0]
            value = _rounded(grid[0] ** 2 / grid[1] if low else grid[-1] ** 2 / grid[-2])
            self.space[name] = (value, *grid) if low else (*grid, value)
            further.append((*best[:at], value, *best[at + 1 :]))
        return further

    def _at_border(self, best: tuple[Any, ...]) -> list[str]:
        grids = zip(self.space.items(), best, strict=True)
        return [name for (name, g), value in grids if _is_grid(g) and value in (g[0], g[-1])]


def _is_grid(values: Sequence[Any]) -> bool:
    """Whether values are two or more positive numbers in ascending order."""
    numbers = all(isinstance(value, float) and value > 0 for value in values)
    return numbers and len(values) > 1 and list(values) == sorted(values)


def _rounded(value: float) -> float:
    """With three digits, to be read in a table."""
    return float(f"{value:.3g}")
