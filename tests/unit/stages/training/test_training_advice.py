"""Warnings before a training: few rows for the codewords, few steps."""

from __future__ import annotations

import numpy as np
import pytest

from raypq.methods import registry
from raypq.methods.base import TrainingSetInfo
from raypq.stages.training.dataset import TrainingPlan
from raypq.stages.training.expectations import warnings_of


def plan_of(rows: int, unlabelled: int = 0) -> TrainingPlan:
    info = TrainingSetInfo(N=rows, dx=8, names=("a", "b"), unlabelled=unlabelled)
    return TrainingPlan(tasks=[], dataset_info=info, classes=None, failures=[])


@pytest.mark.parametrize(("rows", "warned"), [(623, True), (624, False), (100_000, False)])
def test_few_rows_for_each_codeword(rows, warned):
    found = [*warnings_of(plan_of(rows), registry.create("pq", {"M": 2, "K": 16}))]
    assert len(found) == warned
    if found:
        assert "39 for each of 16 codewords" in found[0]


@pytest.mark.parametrize(
    ("rows", "epochs", "warned"), [(5_000, 16, True), (5_000, 80, False), (50_000, 16, False)]
)
def test_few_steps(rows, epochs, warned):
    found = [*warnings_of(plan_of(rows), registry.create("dpq", {"epochs": epochs}))]
    assert len(found) == warned
    if found:
        assert "304 steps" in found[0]
        assert "with 53 epochs" in found[0]


def test_unlabelled_rows_make_steps():
    method = registry.create("gpq", {"epochs": 10})
    assert [*warnings_of(plan_of(5_000), method)]
    assert not [*warnings_of(plan_of(5_000, 50_000), method)]


def test_advice_on_epochs_counts_steps_of_the_larger_store_without_held_out_rows():
    (advice,) = warnings_of(plan_of(300, 600), registry.create("gpq", {"epochs": 3, "batch": 64}))
    assert "27 steps (3 epochs of 600 rows" in advice
    assert "with 112 epochs there would be 1,000" in advice
    settings = {"epochs": 3, "batch": 64, "validation": 100}
    (advice,) = warnings_of(plan_of(300), registry.create("dpq", settings))
    assert "9 steps (3 epochs of 200 rows" in advice
    assert "with 334 epochs" in advice


def test_unseen_classes_that_codes_of_parts_cannot_answer():
    """More classes than codewords: codes are of parts by default."""
    names = tuple(f"c{t}" for t in range(17))
    E = np.eye(20, dtype=np.float32)
    info = TrainingSetInfo(N=50_000, dx=8, A=E[:17], names=names, A_other=E[17:])
    plan = TrainingPlan(tasks=[], dataset_info=info, classes=None, failures=[])
    for method, settings in (("dpq", {"K": 16}), ("gpq", {"K": 16})):
        (advice,) = warnings_of(plan, registry.create(method, {**settings, "epochs": 20}))
        assert "none of the 3 unseen classes" in advice
        assert "K >= 17" in advice
        assert not [*warnings_of(plan, registry.create(method, {"K": 32, "epochs": 20}))]


@pytest.mark.parametrize(("unlabelled", "kind"), [(0, "training"), (200, "unlabelled")])
def test_fewer_rows_than_codewords_to_fit(unlabelled, kind):
    rows = 300_000 if unlabelled else 200
    settings = {"epochs": 5_000, "batch": 50}
    method = registry.create("gpq" if unlabelled else "dpq", settings)
    (advice,) = warnings_of(plan_of(rows, unlabelled), method)
    assert f"200 {kind} rows, to which codebooks of 256 codewords are fitted" in advice
