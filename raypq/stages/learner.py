"""The loop of training by gradient: one worker's part, the same in this process and on Ray.

Where a process group of torch is up, gradients are averaged over its workers (DDP). What happens
in an epoch follows from the seed, the epoch and the worker's place, so training that was cut off
goes on from the checkpoint of the last whole epoch as if nothing had been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from raypq.data.ahead import ahead
from raypq.errors import DivergenceError
from raypq.methods.base import Corpus
from raypq.methods.gradient import (
    Batch,
    GradientMethod,
    Network,
    Phase,
    autocast,
    seeded,
    tensor_of,
)
from raypq.methods.linear import normalise
from raypq.stages.checkpoint import (
    Checkpoint,
    Checkpoints,
    Progress,
    moments_of,
    restore_moments,
)
from raypq.stages.stream import Rows, RowStream, Seat, Shelf, Source
from raypq.stages.validation import retrieval_score

Note = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """All that a worker needs to train.

    Attributes:
        scale: ``mean`` and ``inverse_std`` [dx] where features are z-scored.
        validation: rows held out, X [n, dx] as read and y [n]; none where n = 0.
        shuffle_bytes: of rows that are shuffled together; training depends on it. kept_bytes: of
            shards that are kept in memory; nothing depends on it but time.
    """

    method: GradientMethod
    corpus: Corpus
    labelled: Source
    unlabelled: Source | None
    scale: Mapping[str, NDArray[np.float32]]
    validation: tuple[NDArray[np.float32], NDArray[np.int32]]
    checkpoints: Checkpoints
    shuffle_bytes: int
    kept_bytes: int
    device: str

    @property
    def steps(self) -> int:
        """Steps of an epoch: one pass over the larger store."""
        rows = [self.labelled.rows, self.unlabelled.rows if self.unlabelled else 0]
        return max(rows) // self.method.settings.batch

    def normalised(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows X [n, dx] as the network takes them."""
        how = self.method.settings.normalise
        return normalise(X, how, self.scale.get("mean"), self.scale.get("inverse_std"))


@dataclass(kw_only=True)
class Learner:
    """Trains a network as one of ``seat.world`` workers; rank 0 writes the checkpoints."""

    lesson: Lesson
    seat: Seat
    device: str
    tell: Callable[[Note], None]
    progress: Progress = field(default_factory=Progress)

    def run(self) -> Network:
        """Trains to the end, from the last checkpoint if there is one.

        Raises:
            DivergenceError: a loss that is no number.
            ConfigError: a checkpoint of another configuration.
        """
        lesson = self.lesson
        phases = lesson.method.phases()
        self.network = lesson.method.network(lesson.corpus).to(self.device)
        self._open_streams()
        found = lesson.checkpoints.read()
        if found:
            self.progress = found.progress
            self.network.load_state_dict(found.weights)
        while self.progress.phase < len(phases):
            moments = found.moments if found and self.progress.epoch else {}
            found = None
            self._train_phase(phases[self.progress.phase], moments)
        return self.network

    def _open_streams(self) -> None:
        lesson, settings = self.lesson, self.lesson.method.settings
        shelf = Shelf(lesson.kept_bytes)
        buffer = min(settings.shuffle, lesson.shuffle_bytes // (4 * lesson.corpus.dx))
        self._streams = [
            RowStream(source, self.seat, seed=(settings.seed, 20 + at), buffer=buffer, shelf=shelf)
            for at, source in enumerate((lesson.labelled, lesson.unlabelled))
            if source is not None
        ]

    def _train_phase(self, phase: Phase, moments: Mapping[str, Tensor]) -> None:
        progress, settings = self.progress, self.lesson.method.settings
        if not progress.epoch:
            progress.best, progress.stale = None, 0
            with seeded(settings.seed, progress.phase, 1):
                self.network.begin_phase(phase.name)
        moved = {id(parameter) for parameter in self.network.trainable(phase.name)}
        for parameter in self.network.parameters():
            parameter.requires_grad_(id(parameter) in moved)
        optimizer = torch.optim.AdamW(
            [one for one in self.network.parameters() if one.requires_grad],
            lr=phase.rate,
            betas=(settings.beta1, 0.999),
            weight_decay=settings.weight_decay,
            fused=True,  # a third of the time of a step otherwise, where batches are small
        )
        restore_moments(optimizer, moments)
        module: torch.nn.Module = self.network
        if self.seat.world > 1:
            module = DistributedDataParallel(self.network)
        patience = settings.patience
        while progress.epoch < phase.epochs and not (patience and progress.stale >= patience):
            self._epoch(phase, module, optimizer)
        if patience and progress.best is not None:
            self._take_best()
        progress.phase, progress.epoch = progress.phase + 1, 0
        self._write(optimizer)

    def _epoch(
        self, phase: Phase, module: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        progress, settings, start = self.progress, self.lesson.method.settings, time.monotonic()
        with seeded(settings.seed, progress.phase, progress.epoch, self.seat.rank):
            self.network.train()
            self.network.begin_epoch(phase.name, progress.epoch)
            terms = self._steps(phase, module, optimizer)
            self.network.end_epoch(phase.name, progress.epoch)
        note: dict[str, Any] = {
            "phase": phase.name,
            "epoch": progress.epoch,
            "loss": sum(terms.values()),
            **terms,
            "rate": optimizer.param_groups[0]["lr"],
            **self._judge(),
            "seconds": time.monotonic() - start,
        }
        progress.history.append(note)
        progress.epoch += 1
        if "validation" in note:
            better = progress.best is None or note["validation"] > progress.best
            progress.stale = 0 if better else progress.stale + 1
            progress.best = note["validation"] if better else progress.best
            if better and settings.patience and not self.seat.rank:
                weights = self.network.state_dict()
                best = Checkpoint(progress=progress, weights=weights, moments={})
                self.lesson.checkpoints.write(best, best=True)
        self._write(optimizer)
        if not self.seat.rank:
            self.tell({**note, "epochs": phase.epochs})

    def _steps(
        self, phase: Phase, module: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        """The steps of an epoch; the mean of each term over them and over the workers."""
        steps, settings = self.lesson.steps, self.lesson.method.settings
        sums: dict[str, float] = {}
        with closing(ahead(self._batches(), depth=2)) as batches:
            for step, batch in enumerate(batches):
                done = self.progress.epoch * steps + step
                for group in optimizer.param_groups:
                    group["lr"] = phase.rate * phase.factor(done, phase.epochs * steps)
                with autocast(self.device, settings.precision):
                    terms = module(batch, phase.name)
                values = dict(
                    zip(terms, torch.stack([*terms.values()]).detach().tolist(), strict=True)
                )
                if not np.isfinite(sum(values.values())):
                    raise _diverged(phase, self.progress.epoch, step, values)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(torch.stack([*terms.values()]).sum())
                optimizer.step()
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
        return self._mean({name: total / steps for name, total in sums.items()})

    def _batches(self) -> Iterator[Batch]:
        lesson = self.lesson
        n = lesson.method.settings.batch // self.seat.world
        # A phase is a training of its own, so its epochs see the rows in orders of their own.
        epoch = self.progress.phase * 100_000 + self.progress.epoch
        streams = [stream.steps(epoch, lesson.steps, n) for stream in self._streams]
        for found in zip(*streams, strict=True):
            x, y = self._tensors(found[0])
            u = self._tensors(found[1])[0] if len(found) > 1 else None
            yield Batch(x=x, y=y, u=u)

    def _tensors(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        X, y = rows
        x = tensor_of(self.lesson.normalised(X)).to(self.device)
        return x, None if y is None else torch.from_numpy(y.astype(np.int64)).to(self.device)

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        if self.seat.world == 1:
            return values
        total = torch.tensor([*values.values()], dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return dict(zip(values, (total / self.seat.world).tolist(), strict=True))

    def _judge(self) -> dict[str, float]:
        """Scores of the rows held out, by rank 0 for all."""
        X, y = self.lesson.validation
        if not len(X):
            return {}
        score = torch.zeros(1, dtype=torch.float64, device=self.device)
        if not self.seat.rank:
            self.network.eval()
            with torch.inference_mode():
                score[0] = self._score(*self._tensors((X, y)))
        if self.seat.world > 1:
            distributed.broadcast(score, 0)
        return {"validation": float(score[0])}

    def _score(self, x: Tensor, y: Tensor | None) -> float:
        assert y is not None, "rows held out have labels"
        method = self.lesson.method
        found = method.judge(self.network, x, y)
        if found is not None:
            return found
        return retrieval_score(self.network, x, y.cpu().numpy(), method.settings.metric)

    def _take_best(self) -> None:
        if self.seat.rank:  # takes it over from rank 0 with the next phase
            return
        best = self.lesson.checkpoints.read(best=True)
        if best is not None:
            self.network.load_state_dict(best.weights)

    def _write(self, optimizer: torch.optim.Optimizer) -> None:
        if self.seat.rank:
            return
        latest = Checkpoint(
            progress=self.progress,
            weights=self.network.state_dict(),
            moments=moments_of(optimizer),
        )
        self.lesson.checkpoints.write(latest)


def _diverged(phase: Phase, epoch: int, step: int, values: Mapping[str, float]) -> DivergenceError:
    terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    return DivergenceError(
        f"training diverged in phase {phase.name!r}, epoch {epoch}, step {step}: {terms}; "
        "try a lower rate"
    )
