"""Reading a sample of the rows of a store into memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raypq.config import Columns, TrainJob
from raypq.execution.executor import Executor, completed
from raypq.execution.run_record import RunRecord
from raypq.stages.training.dataset import TrainingClasses, TrainTask, training_batches


class SampleWorker:
    """Reads the sampled rows of shards."""

    def __init__(
        self,
        rows: NDArray[np.int64],
        columns: Columns,
        width: int,
        classes: TrainingClasses | None,
    ) -> None:
        self._rows, self._columns, self._width, self._classes = rows, columns, width, classes

    def read(self, task: TrainTask) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The sampled rows of a shard: X [n, dx] and targets y [n]."""
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
    executor: Executor,
    record: RunRecord,
    *,
    on_bad_shard: str = "fail",
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Reads the rows with these indices (ascending): X [n, dx] and targets y [n].

    Raises:
        JobError: some shards could not be read.
    """
    X, y = [np.empty((0, width), np.float32)], [np.empty(0, np.int32)]
    with (
        executor.start_workers(
            SampleWorker, rows, job.columns, width, classes, stage="sample"
        ) as pool,
        record.observe(pool),
    ):
        results = pool.map(SampleWorker.read, tasks, ordered=True)
        for part in completed(
            results, total=len(tasks), label=f"{job.method} sample", on_bad_shard=on_bad_shard
        ):
            X.append(part[0])
            y.append(part[1])
    return np.concatenate(X), np.concatenate(y)
