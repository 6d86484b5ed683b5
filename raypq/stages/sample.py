"""Some rows of a store, read into memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raypq.config import Columns, TrainJob
from raypq.errors import ShardFailure
from raypq.stages.crew import Crew
from raypq.stages.training_rows import TrainingClasses, TrainTask, training_batches


class SampleWorker:
    """Reads the chosen rows of a shard."""

    def __init__(
        self,
        rows: NDArray[np.int64],
        columns: Columns,
        width: int,
        classes: TrainingClasses | None,
    ) -> None:
        self._rows, self._columns, self._width, self._classes = rows, columns, width, classes

    def __call__(
        self, task: TrainTask, shared: None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        X: list[NDArray[np.float32]] = [np.empty((0, self._width), np.float32)]
        y: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        for batch in training_batches(task, self._columns, self._width, self._classes):
            low, high = np.searchsorted(self._rows, [batch.row, batch.row + len(batch.X)])
            chosen = self._rows[low:high] - batch.row
            X.append(batch.X[chosen])
            y.append(np.zeros(len(chosen), np.int32) if batch.y is None else batch.y[chosen])
        return np.concatenate(X), np.concatenate(y)


def draw(
    job: TrainJob,
    tasks: Sequence[TrainTask],
    width: int,
    classes: TrainingClasses | None,
    rows: NDArray[np.int64],
    crew: Crew,
) -> tuple[NDArray[np.float32], NDArray[np.int32], list[ShardFailure]]:
    """The rows of these numbers (ascending), X [n, dx] and targets y [n], and the bad shards."""
    X, y = [np.empty((0, width), np.float32)], [np.empty(0, np.int32)]
    failures: list[ShardFailure] = []
    with crew.hire(SampleWorker, rows, job.columns, width, classes) as gang:
        for outcome in gang.map(tasks, ordered=True):
            if outcome.failure:
                failures.append(outcome.failure)
            else:
                X.append(outcome.result[0])
                y.append(outcome.result[1])
    return np.concatenate(X), np.concatenate(y), failures
