"""Training on rows in memory, whatever way a method trains: for trials, where no shard is read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.errors import DivergenceError
from raypq.methods.base import Corpus, Method, Model, ReductionMethod, Stats, TrainBatch
from raypq.methods.gradient import Batch, GradientMethod, Network, Phase, seeded
from raypq.methods.linear import normalise
from raypq.methods.pq import scale

_BATCH = 4096  # rows of a batch of statistics

Rows = tuple[NDArray[np.float32], NDArray[np.int32]]


def fit_rows(method: Method, corpus: Corpus, X: NDArray[np.float32], y: NDArray[np.int32]) -> Model:
    """The model of rows X [n, dx] with targets y [n] among the L classes of ``corpus``.

    Raises:
        ConfigError: settings that do not fit the corpus.
        DivergenceError: the loss is no number.
    """
    if isinstance(method, ReductionMethod):
        return _reduce(method, corpus, X, y)
    assert isinstance(method, GradientMethod), "there are two ways to train"
    return _descend(method, corpus, X, y)


def _reduce(
    method: ReductionMethod, corpus: Corpus, X: NDArray[np.float32], y: NDArray[np.int32]
) -> Model:
    state = method.begin(corpus)
    while not state.done:
        stats = Stats()
        for row in range(0, len(X), _BATCH):
            part = slice(row, row + _BATCH)
            stats.merge(method.accumulate(state, TrainBatch(X=X[part], y=y[part], row=row)))
        state = method.update(state, stats)
    return method.model(state)


def _descend(
    method: GradientMethod, corpus: Corpus, X: NDArray[np.float32], y: NDArray[np.int32]
) -> Model:
    settings = method.settings
    method.check(corpus)
    fitted = {}
    if settings.normalise.startswith("zscore"):
        wide = X.astype(np.float64)
        fitted = scale(np.array(float(len(X))), wide.sum(axis=0), (wide * wide).sum(axis=0))
    X = normalise(X, settings.normalise, fitted.get("mean"), fitted.get("inverse_std"))
    network = method.network(corpus)
    for place, phase in enumerate(method.phases()):
        _train(method, network, phase, place, (X, y))
    network.finished = True
    with seeded(settings.seed, 13):
        network.eval()
        method.finish(network, corpus, X, y)
    follower = method.follow_up()
    codebooks = None
    if follower is not None:
        with torch.inference_mode():
            U = network.embed(torch.from_numpy(X)).float().numpy()
        codebooks = _reduce(follower, Corpus(N=len(U), dx=U.shape[1]), U, y).C
    return method.freeze(network, corpus, scale=fitted, codebooks=codebooks, record={})


def _train(method: GradientMethod, network: Network, phase: Phase, place: int, rows: Rows) -> None:
    settings, steps = method.settings, len(rows[0]) // method.settings.batch
    with seeded(settings.seed, place, 1):
        network.begin_phase(phase.name)
    moved = [*network.trainable(phase.name)]
    chosen = {id(parameter) for parameter in moved}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    optimizer = torch.optim.AdamW(
        moved,
        lr=phase.rate,
        betas=(settings.beta1, 0.999),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    for epoch in range(phase.epochs):
        with seeded(settings.seed, place, epoch, 0):
            network.train()
            network.begin_epoch(phase.name, epoch)
            for step, batch in enumerate(_batches(rows, settings.batch, steps)):
                for group in optimizer.param_groups:
                    group["lr"] = phase.rate * phase.factor(
                        epoch * steps + step, phase.epochs * steps
                    )
                loss = torch.stack([*network(batch, phase.name).values()]).sum()
                if not torch.isfinite(loss):
                    raise DivergenceError(
                        f"training diverged in phase {phase.name!r}, epoch {epoch}, step {step}; "
                        "try a lower rate"
                    )
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
            network.end_epoch(phase.name, epoch)


def _batches(rows: Rows, size: int, steps: int) -> Iterator[Batch]:
    X, y = rows
    order = torch.randperm(len(X)).numpy()
    for step in range(steps):
        chosen = order[step * size : (step + 1) * size]
        yield Batch(x=torch.from_numpy(X[chosen]), y=torch.from_numpy(y[chosen].astype(np.int64)))
