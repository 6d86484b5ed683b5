"""Training on rows in memory, for trials of settings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.methods.base import (
    Method,
    Model,
    ReductionMethod,
    State,
    Stats,
    TrainBatch,
    TrainingSetInfo,
)
from raypq.methods.gradient import Batch, GradientMethod, Network, Phase, seeded
from raypq.methods.support.normalisation import normalise
from raypq.methods.support.statistics import scale
from raypq.stages.training.reduction import iterate
from raypq.stages.training.trainer import begin_phase, train_epoch

_BATCH = 4096  # rows of a batch of statistics

Rows = tuple[NDArray[np.float32], NDArray[np.int32]]


def fit_in_memory(
    method: Method, dataset_info: TrainingSetInfo, X: NDArray[np.float32], y: NDArray[np.int32]
) -> Model:
    """Trains on rows X [n, dx] with targets y [n] among the L classes of ``dataset_info``.

    Raises:
        ConfigError: settings that do not fit the training set.
        DivergenceError: the loss is not finite.
    """
    if isinstance(method, ReductionMethod):
        return _fit_by_reduction(method, dataset_info, X, y)
    assert isinstance(method, GradientMethod), "a method trains by reduction or by gradient"
    return _fit_by_gradient(method, dataset_info, X, y)


def _fit_by_reduction(
    method: ReductionMethod,
    dataset_info: TrainingSetInfo,
    X: NDArray[np.float32],
    y: NDArray[np.int32],
) -> Model:
    batches = [
        TrainBatch(X=X[row : row + _BATCH], y=y[row : row + _BATCH], row=row)
        for row in range(0, len(X), _BATCH)
    ]

    def run_pass(state: State) -> Stats:
        stats, rows = Stats(), method.rows_of_pass(state)
        for batch in batches:
            stats.merge(method.accumulate(state, batch if rows is None else batch.chosen(rows)))
        return stats

    return method.model(iterate(method, method.begin(dataset_info), run_pass))


def _fit_by_gradient(
    method: GradientMethod,
    dataset_info: TrainingSetInfo,
    X: NDArray[np.float32],
    y: NDArray[np.int32],
) -> Model:
    settings = method.settings
    method.check(dataset_info)
    scaling = {}
    if settings.normalise.startswith("zscore"):
        wide = X.astype(np.float64)
        scaling = scale(np.array(float(len(X))), wide.sum(axis=0), (wide * wide).sum(axis=0))
    X = normalise(X, settings.normalise, scaling.get("mean"), scaling.get("inverse_std"))
    network = method.network(dataset_info)
    for number, phase in enumerate(method.phases(len(X) // settings.batch)):
        _train_phase(method, network, phase, number, (X, y))
    network.finished = True
    with seeded(settings.seed, 13):
        network.eval()
        method.finish(network, dataset_info, X, y)
    follower = method.follow_up()
    codebooks = None
    if follower is not None:
        with torch.inference_mode():
            U = network.embed(torch.from_numpy(X)).float().numpy()
        codebooks = _fit_by_reduction(follower, TrainingSetInfo(N=len(U), dx=U.shape[1]), U, y).C
    return method.freeze(network, dataset_info, scale=scaling, codebooks=codebooks, record={})


def _train_phase(
    method: GradientMethod, network: Network, phase: Phase, number: int, rows: Rows
) -> None:
    settings, steps = method.settings, len(rows[0]) // method.settings.batch
    optimizer = begin_phase(network, settings, phase, number)
    for epoch in range(phase.epochs):
        train_epoch(
            network,
            network,
            optimizer,
            phase,
            _batches(rows, settings.batch, steps),
            settings=settings,
            position=(number, epoch, 0),
            steps=steps,
            device="cpu",
        )


def _batches(rows: Rows, size: int, steps: int) -> Iterator[Batch]:
    X, y = rows
    order = torch.randperm(len(X)).numpy()
    for step in range(steps):
        chosen = order[step * size : (step + 1) * size]
        yield Batch(x=torch.from_numpy(X[chosen]), y=torch.from_numpy(y[chosen].astype(np.int64)))
