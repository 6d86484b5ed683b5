"""The search of settings: successive halving, grids that grow, and the table of trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from raypq.methods import registry
from raypq.stages.training.held_out_classes import Trial, TrialScores, split_rows, splits_of
from raypq.stages.training.tune import Search, search_space

Score = Callable[[Mapping[str, Any], int], float]


def scores_of(value: float) -> TrialScores:
    """ZSL and H are both ``value``."""
    return TrialScores(
        zsl=value,
        margin=np.array([1.0, -1.0]),
        share=np.array([value, value]),
        of_seen=np.array([True, False]),
    )


class Runs:
    """In place of ``Trials``: scores by a function, and what was asked for."""

    def __init__(self, score: Score) -> None:
        self.score, self.asked = score, list[Trial]()

    def run(self, trials: Sequence[Trial]) -> list[TrialScores]:
        self.asked += trials
        return [scores_of(self.score(trial.settings, trial.split)) for trial in trials]


def search(score: Score, splits: int = 3, **space: Sequence[Any]) -> tuple[Search, Runs]:
    runs = Runs(score)
    found = Search(
        trials=runs,  # type: ignore[arg-type]
        space={key: tuple(values) for key, values in space.items()},
        splits=splits,
    )
    found.run()
    return found, runs


def peak(at: float) -> Score:
    """Best where ``lam`` is ``at``, by its order of magnitude."""
    return lambda settings, _: 1 / (1 + abs(np.log(settings["lam"] / at)))


@pytest.mark.parametrize("at", [0.001, 0.01, 1.0, 100.0, 3000.0])
def test_a_grid_grows_to_where_the_best_value_lies(at, caplog):
    found, runs = search(peak(at), lam=(0.1, 1.0, 10.0))
    assert found.result({}).settings == {"lam": pytest.approx(at, rel=3)}
    tried = {trial.settings["lam"] for trial in runs.asked}
    assert min(tried) < at < max(tried)
    assert "last value" not in caplog.text


def test_a_best_value_at_the_border_is_told(caplog):
    found, _ = search(lambda settings, _: 1 - 1 / (1 + settings["lam"]), lam=(1.0, 10.0))
    chosen = found.result({}).settings["lam"]
    assert chosen == 1e7
    assert "lam = 1e+07 is the last value" in caplog.text


def test_the_best_third_is_tried_on_all_splits():
    values = tuple(f"v{number}" for number in range(12))
    found, runs = search(lambda s, _: int(s["name"][1:]) / 12, splits=5, name=values)
    splits = dict.fromkeys(values, 0)
    for trial in runs.asked:
        splits[trial.settings["name"]] += 1
    assert [splits[value] for value in values] == [1] * 8 + [5] * 4
    table = found.result({}).table
    assert len(table) == 12
    assert [row["name"] for row in table[:4]] == ["v11", "v10", "v9", "v8"]
    assert {"zsl", "H", "H_uncalibrated", "gamma", "splits", "score"} < set(table[0])


def test_one_lucky_split_does_not_decide():
    def score(settings: Mapping[str, Any], split: int) -> float:
        return {"lucky": (0.9, 0.1, 0.1), "good": (0.5, 0.5, 0.5)}[settings["name"]][split]

    found, _ = search(score, name=("lucky", "good"))
    assert found.result({}).settings == {"name": "good"}


def test_settings_are_judged_by_calibrated_H():
    """A setting whose classes are right but biased to the seen ones is not worse for that."""
    _, runs = search(lambda *_: 0.5, name=("a", "b"))

    def biased(trials: Sequence[Trial]) -> list[TrialScores]:
        shift = {"a": 0.0, "b": 10.0}
        return [
            TrialScores(
                zsl=0.5 + 0.1 * (trial.settings["name"] == "b"),
                margin=np.array([1.0, -1.0]) + shift[trial.settings["name"]],
                share=np.array([0.5, 0.5]),
                of_seen=np.array([True, False]),
            )
            for trial in trials
        ]

    runs.run = biased  # type: ignore[method-assign]
    search_ = Search(trials=runs, space={"name": ("a", "b")}, splits=2)  # type: ignore[arg-type]
    search_.run()
    tuned = search_.result({})
    assert tuned.settings == {"name": "b"}
    assert 9 <= tuned.calibration < 11
    assert tuned.table[0]["H_uncalibrated"] == 0
    assert tuned.table[0]["H"] == pytest.approx(0.5)


def test_what_a_job_sets_is_not_searched():
    space = {"ridge_share": (1.0, 2.0), "lam": (1.0, 2.0), "normalise": ("unit", "none")}
    assert set(search_space(space, {})) == set(space)
    assert set(search_space(space, {"ridge": 3.0})) == {"lam", "normalise"}
    assert set(search_space(space, {"ridge_share": 3.0, "lam": 1.0})) == {"normalise"}


@pytest.mark.parametrize("L", [8, 10, 24, 40, 80, 1000])
def test_few_classes_have_more_splits(L):
    splits = splits_of(L)
    assert 3 <= splits <= 8
    unseen = [split_rows(np.arange(L, dtype=np.int32), L, 0, split)[0] for split in range(splits)]
    assert all(2 <= mask.sum() <= L / 4 + 1 for mask in unseen)
    assert splits == 3 or sum(mask.sum() for mask in unseen) <= 60


@pytest.mark.parametrize("name", [n for n, cls in registry.METHODS.items() if cls.search_space])
def test_the_settings_of_a_space_exist(name):
    """And the default is among the values, so that tuning begins from it."""
    cls = registry.find(name)
    defaults = cls.settings_class().model_dump()
    for key, values in cls.search_space.items():
        assert defaults[key] in values, key
        registry.create(name, {key: values[-1]})
