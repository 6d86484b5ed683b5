"""The training loop of gradient methods, for one rank; the same in-process and on Ray.

Gradients are averaged over all ranks (DDP). An epoch depends only on the seed, its number and the
rank, so an interrupted training resumes from the checkpoint of its last complete epoch and gives
the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from raypq.data.prefetch import prefetch
from raypq.errors import DivergenceError
from raypq.execution.executor import Rank, Report
from raypq.kernels.device import on_device, own_stream
from raypq.methods.base import TrainingSetInfo
from raypq.methods.gradient import (
    Batch,
    GradientMethod,
    GradientSettings,
    Network,
    Phase,
    autocast,
    seeded,
    tensor_of,
)
from raypq.methods.support.normalisation import normalise
from raypq.stages.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    Progress,
    moments_of,
    restore_moments,
)
from raypq.stages.training.row_stream import BatchCache, Rows, RowSource, RowStream
from raypq.stages.training.validation import retrieval_score

_STEPS_UNREAD = 16  # whose losses stay on a GPU


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSpec:
    """Everything that a rank needs to train.

    Attributes:
        scale: ``mean`` and ``inverse_std`` [dx] where features are z-scored.
        held_out: rows that are not trained on, X [n, dx] as read and y [n]; n may be 0.
        shuffle_bytes: of rows that are shuffled together; results depend on it.
        cache_bytes: of cached shards; only the time depends on it.
    """

    method: GradientMethod
    dataset_info: TrainingSetInfo
    labelled: RowSource
    unlabelled: RowSource | None
    scale: Mapping[str, NDArray[np.float32]]
    held_out: tuple[NDArray[np.float32], NDArray[np.int32]]
    checkpoints: Checkpoints
    shuffle_bytes: int
    cache_bytes: int
    device: str

    @property
    def steps(self) -> int:
        """Steps of an epoch, which is one pass over the larger store."""
        rows = [self.labelled.rows, self.unlabelled.rows if self.unlabelled else 0]
        return max(rows) // self.method.settings.batch

    def normalised(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows X [n, dx], normalised by the settings of the method."""
        kind = self.method.settings.normalise
        return normalise(X, kind, self.scale.get("mean"), self.scale.get("inverse_std"))


@dataclass(kw_only=True)
class Trainer:
    """Trains a network as one of ``rank.world_size`` ranks; rank 0 writes the checkpoints."""

    spec: TrainingSpec
    rank: Rank
    report: Report
    progress: Progress = field(default_factory=Progress)

    def run(self) -> Network:
        """Trains to the end, from the last checkpoint if there is one.

        Raises:
            DivergenceError: the loss is not finite.
            ConfigError: the checkpoint is of another training.
        """
        spec = self.spec
        phases = spec.method.phases(spec.steps)
        self.network = spec.method.network(spec.dataset_info).to(self.rank.device)
        self._open_streams()
        checkpoint = spec.checkpoints.read()
        if checkpoint:
            self.progress = checkpoint.progress
            self.network.load_state_dict(checkpoint.weights)
        while self.progress.phase < len(phases):
            moments = checkpoint.moments if checkpoint and self.progress.epoch else {}
            checkpoint = None
            self._train_phase(phases[self.progress.phase], moments)
        return self.network

    def _open_streams(self) -> None:
        spec, settings = self.spec, self.spec.method.settings
        cache = BatchCache(spec.cache_bytes)
        buffer = min(settings.shuffle, spec.shuffle_bytes // (4 * spec.dataset_info.dx))
        self._streams = [
            RowStream(source, self.rank, seed=(settings.seed, 20 + at), buffer=buffer, cache=cache)
            for at, source in enumerate((spec.labelled, spec.unlabelled))
            if source is not None
        ]

    def _train_phase(self, phase: Phase, moments: Mapping[str, Tensor]) -> None:
        progress, settings = self.progress, self.spec.method.settings
        if not progress.epoch:
            progress.best, progress.epochs_without_improvement = None, 0
        optimizer = begin_phase(
            self.network, settings, phase, progress.phase, resumed=progress.epoch > 0
        )
        restore_moments(optimizer, moments)
        module: torch.nn.Module = self.network
        if self.rank.world_size > 1:
            module = DistributedDataParallel(self.network)
        if settings.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        patience = settings.patience
        while progress.epoch < phase.epochs and not (
            patience and progress.epochs_without_improvement >= patience
        ):
            self._epoch(phase, module, optimizer)
        if patience and progress.best is not None:
            self._restore_best()
        progress.phase, progress.epoch = progress.phase + 1, 0
        self._write(optimizer)

    def _epoch(
        self, phase: Phase, module: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        progress, settings, start = self.progress, self.spec.method.settings, time.monotonic()
        steps = self.spec.steps
        with closing(prefetch(self._batches(), depth=2)) as batches:
            sums = train_epoch(
                self.network,
                module,
                optimizer,
                phase,
                batches,
                settings=settings,
                position=(progress.phase, progress.epoch, self.rank.rank),
                steps=steps,
                device=self.rank.device,
            )
        terms = self._mean({name: total / steps for name, total in sums.items()})
        summary: dict[str, Any] = {
            "phase": phase.name,
            "epoch": progress.epoch,
            "loss": sum(terms.values()),
            **terms,
            "rate": optimizer.param_groups[0]["lr"],
            **self._validate(),
            "seconds": time.monotonic() - start,
        }
        progress.history.append(summary)
        progress.epoch += 1
        if "validation" in summary:
            better = progress.best is None or summary["validation"] > progress.best
            progress.epochs_without_improvement = (
                0 if better else progress.epochs_without_improvement + 1
            )
            progress.best = summary["validation"] if better else progress.best
            if better and settings.patience and not self.rank.rank:
                weights = self.network.state_dict()
                best = Checkpoint(progress=progress, weights=weights, moments={})
                self.spec.checkpoints.write(best, best=True)
        self._write(optimizer)
        if not self.rank.rank:
            self.report({**summary, "epochs": phase.epochs})

    def _batches(self) -> Iterator[Batch]:
        spec = self.spec
        n = spec.method.settings.batch // self.rank.world_size
        # Epochs of different phases have different orders of rows.
        epoch = self.progress.phase * 100_000 + self.progress.epoch
        streams = [stream.steps(epoch, spec.steps, n) for stream in self._streams]
        for labelled, *unlabelled in zip(*streams, strict=True):
            x, y = self._tensors(labelled)
            u = self._tensors(unlabelled[0])[0] if unlabelled else None
            yield Batch(x=x, y=y, u=u)

    def _tensors(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        X, y = rows
        device = self.rank.device
        if device == "cpu":
            x = tensor_of(self.spec.normalised(X))
            return x, None if y is None else torch.from_numpy(y.astype(np.int64))
        with own_stream(device):  # beside the computation of an earlier batch
            x = on_device(self.spec.normalised(X), device)
            return x, None if y is None else on_device(y.astype(np.int64), device)

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        if self.rank.world_size == 1:
            return values
        total = torch.tensor([*values.values()], dtype=torch.float64, device=self.rank.device)
        distributed.all_reduce(total)
        return dict(zip(values, (total / self.rank.world_size).tolist(), strict=True))

    def _validate(self) -> dict[str, float]:
        """Score of the held-out rows; computed by rank 0 for all ranks."""
        X, y = self.spec.held_out
        if not self.spec.method.settings.validation or not len(X):
            return {}
        score = torch.zeros(1, dtype=torch.float64, device=self.rank.device)
        if not self.rank.rank:
            self.network.eval()
            with torch.inference_mode():
                score[0] = self._score(*self._tensors((X, y)))
        if self.rank.world_size > 1:
            distributed.broadcast(score, 0)
        return {"validation": float(score[0])}

    def _score(self, x: Tensor, y: Tensor | None) -> float:
        assert y is not None, "held-out rows have labels"
        method = self.spec.method
        score = method.validation_score(self.network, x, y)
        if score is not None:
            return score
        return retrieval_score(self.network, x, y.cpu().numpy(), method.settings.metric)

    def _restore_best(self) -> None:
        if self.rank.rank:  # the next phase begins with the weights of rank 0
            return
        best = self.spec.checkpoints.read(best=True)
        if best is not None:
            self.network.load_state_dict(best.weights)

    def _write(self, optimizer: torch.optim.Optimizer) -> None:
        if self.rank.rank:
            return
        latest = Checkpoint(
            progress=self.progress,
            weights=self.network.state_dict(),
            moments=moments_of(optimizer),
        )
        self.spec.checkpoints.write(latest)


def run_rank(spec: TrainingSpec, rank: Rank, report: Report) -> None:
    """Trains as one rank; the function of ``SpmdJob``."""
    Trainer(spec=spec, rank=rank, report=report).run()


def begin_phase(
    network: Network,
    settings: GradientSettings,
    phase: Phase,
    number: int,
    *,
    resumed: bool = False,
) -> torch.optim.Optimizer:
    """Prepares a network for phase ``number``; returns the optimiser of its parameters."""
    if not resumed:
        with seeded(settings.seed, number, 1):
            network.begin_phase(phase.name)
    trained = {id(parameter) for parameter in network.trainable(phase.name)}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return torch.optim.AdamW(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=phase.rate,
        betas=(settings.beta1, 0.999),
        weight_decay=settings.weight_decay,
        fused=True,  # otherwise the optimiser takes a third of a step with small batches
    )


def train_epoch(
    network: Network,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    phase: Phase,
    batches: Iterable[Batch],
    *,
    settings: GradientSettings,
    position: tuple[int, int, int],
    steps: int,
    device: str,
) -> dict[str, float]:
    """Trains one epoch; returns the sum of each loss term over its steps.

    Args:
        module: the network, or its data-parallel wrapper.
        position: phase, epoch and rank, which with the seed determine all randomness.
        steps: of an epoch, for the schedule of the learning rate.

    Raises:
        DivergenceError: the loss is not finite.
    """
    _, epoch, _ = position
    losses = _Losses(phase, epoch)
    with seeded(settings.seed, *position):
        network.train()
        network.begin_epoch(phase.name, epoch)
        for step, batch in enumerate(map(batch_here, batches)):
            for group in optimizer.param_groups:
                group["lr"] = phase.rate * phase.factor(epoch * steps + step, phase.epochs * steps)
            with autocast(device, settings.precision):
                terms = module(batch, phase.name)
            loss = torch.stack([*terms.values()])
            losses.add([*terms], loss.detach(), step)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss.sum())
            optimizer.step()
        losses.read()
        network.end_epoch(phase.name, epoch)
    return losses.sums


class _Losses:
    """Sums of the loss terms of an epoch. They are read from the device only now and then: each
    time, the host waits for it."""

    def __init__(self, phase: Phase, epoch: int) -> None:
        self.sums: dict[str, float] = {}
        self._phase, self._epoch = phase, epoch
        self._waiting: list[tuple[int, list[str], Tensor]] = []

    def add(self, names: list[str], values: Tensor, step: int) -> None:
        """Adds the terms of a step, [number of terms]."""
        self._waiting.append((step, names, values))
        if len(self._waiting) == _STEPS_UNREAD or values.device.type == "cpu":
            self.read()

    def read(self) -> None:
        """Adds what has not been read to the sums.

        Raises:
            DivergenceError: a loss is not finite.
        """
        for step, names, tensor in self._waiting:
            values = dict(zip(names, tensor.tolist(), strict=True))
            if not np.isfinite(sum(values.values())):
                raise _diverged(self._phase, self._epoch, step, values)
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        self._waiting = []


def batch_here(batch: Batch) -> Batch:
    """The batch for use on the current stream of its device, after a copy on another."""
    for tensor in (batch.x, batch.y, batch.u):
        if tensor is not None and tensor.device.type == "cuda":
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return batch


def _diverged(phase: Phase, epoch: int, step: int, values: Mapping[str, float]) -> DivergenceError:
    terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    return DivergenceError(
        f"training diverged in phase {phase.name!r}, epoch {epoch}, step {step}: {terms}; "
        "try a lower rate"
    )
