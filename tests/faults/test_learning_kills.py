"""Training by gradient on Ray Train: a worker that is killed costs no more than its epoch."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import distributed

from raypq.config import ClusterSettings, TrainJob
from raypq.errors import ConfigError, DivergenceError
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Model, TrainingSetInfo
from raypq.methods.dpq import DPQ, DPQNetwork, DPQSettings
from raypq.methods.gradient import Network
from raypq.stages.training.dataset import TrainingPlan
from raypq.stages.training.gradient import fit_gradient

pytestmark = pytest.mark.ray
WHERE = ClusterSettings(cluster="local", workers=2, threads=1)
EPOCHS, FATAL = 5, 3
SETTINGS = {
    "codes": "parts", "M": 2, "K": 16, "hidden": 32, "width": 16, "part_hidden": 16, "batch": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def executor() -> Iterator[Any]:
    from raypq.distributed.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        # The networks of this file are found by name, as those of raypq are.
        places = [str(Path(__file__).parent), *sys.path]
        patch.setenv("PYTHONPATH", os.pathsep.join(places))
        with connect(WHERE) as executor:
            yield executor


class Mortal(DPQNetwork):
    """Notes every epoch that it begins; one worker is killed in the midst of one, once."""

    diary: Path
    step = 0

    def begin_epoch(self, phase: str, epoch: int) -> None:
        self.epoch, self.step = epoch, 0
        (self.diary / f"{epoch}.{os.getpid()}").touch()

    def forward(self, batch: Any, phase: str) -> Any:
        self.step += 1
        if self.epoch == FATAL and self.step == 3 and distributed.get_rank() == 1:
            try:
                (self.diary / "killed").touch(exist_ok=False)
            except FileExistsError:
                return super().forward(batch, phase)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch, phase)


class MortalDPQ(DPQ):
    def __init__(self, settings: DPQSettings, diary: Path) -> None:
        super().__init__(settings)
        self.diary = diary

    def build(self, dataset_info: TrainingSetInfo) -> Network:
        network = Mortal(self.settings, dataset_info.dx, dataset_info.L)
        network.diary = self.diary
        return network


def train(
    world: Any, output: Path, executor: Any, diary: Path | None = None, **changes: Any
) -> Model:
    settings = DPQSettings(**{**SETTINGS, "epochs": EPOCHS, **changes})
    method = DPQ(settings) if diary is None else MortalDPQ(settings, diary)
    job = TrainJob(
        method="dpq",
        features=[world.train],
        classes=world.classes,
        output=str(output),
        settings=settings.model_dump(),
        where=WHERE,
    )
    record = RunRecord(job, executor)
    return fit_gradient(job, method, TrainingPlan.make(job, method), executor, record).model


@pytest.mark.slow
def test_a_killed_worker_costs_no_more_than_the_epoch_in_hand(world, tmp_path, executor):
    diary = tmp_path / "diary"
    diary.mkdir()
    killed = train(world, tmp_path / "killed", executor, diary)
    assert (diary / "killed").exists()
    begun = Counter(int(mark.name.split(".")[0]) for mark in diary.glob("*.*"))
    assert begun == {epoch: 4 if epoch == FATAL else 2 for epoch in range(EPOCHS)}
    assert [note["epoch"] for note in killed.record["history"]] == list(range(EPOCHS))
    whole = train(world, tmp_path / "whole", executor)
    for name, tensor in whole.tensors.items():
        np.testing.assert_allclose(killed.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_what_a_worker_raises_on_purpose_reaches_the_driver(world, tmp_path, executor):
    with pytest.raises(DivergenceError, match="training diverged in phase 'train', epoch 0"):
        train(world, tmp_path / "m", executor, rate=1e30)


def test_a_batch_smaller_than_the_classes_on_each_worker(world, tmp_path, executor):
    with pytest.raises(ConfigError, match=r"over 2 worker\(s\) are 7 each, fewer than the 8"):
        train(world, tmp_path / "m", executor, batch=15)
