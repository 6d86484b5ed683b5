"""Few-shot accuracy: classifiers trained on a few examples of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from raypq import console, kernels
from raypq.config import FewShotJob
from raypq.errors import InputError
from raypq.methods.support.layers import unit
from raypq.stages.representation.labelled_rows import LabelledRows

_STEPS, _RATE = 100, 0.1  # of Adam, for the classifiers
_BATCH_EPISODES = 50  # trained together


def fewshot(job: FewShotJob) -> dict[str, Any]:
    """Accuracy of softmax classifiers that are trained on a few examples of each class.

    An episode draws classes, and for each of them examples and query rows. Features are scaled to
    unit length. The interval is 1.96 standard errors over episodes.

    Raises:
        InputError: fewer classes with enough rows than an episode needs.
    """
    kernels.set_threads(kernels.threads())
    rows = LabelledRows.read(job)
    X = unit(torch.from_numpy(rows.X))
    result: dict[str, Any] = {"space": job.space, "ways": job.ways, "episodes": job.episodes}
    for shots in job.shots:
        by_class = [np.flatnonzero(rows.y == label) for label in range(len(rows.names))]
        by_class = [members for members in by_class if len(members) > shots]
        if len(by_class) < job.ways:
            raise InputError(
                job.features[0],
                expected=f"{job.ways} classes with more than {shots} images",
                found=str(len(by_class)),
            )
        rng = np.random.default_rng([job.seed, shots])
        scores: list[float] = []
        while len(scores) < job.episodes:
            n = min(_BATCH_EPISODES, job.episodes - len(scores))
            examples, queries = zip(
                *(_draw(by_class, job, shots, rng) for _ in range(n)), strict=True
            )
            scores += _accuracies(X, examples, queries)
        mean, spread = float(np.mean(scores)), float(np.std(scores))
        interval = 1.96 * spread / np.sqrt(len(scores))
        result[f"{shots}-shot"] = {"accuracy": mean, "interval": float(interval)}
        console.say(f"{job.ways}-way {shots}-shot: {mean:.3f} ± {interval:.3f}")
    return result


def _draw(
    by_class: list[NDArray[np.int64]], job: FewShotJob, shots: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Rows of an episode: examples [ways, shots], and the queries of each class."""
    chosen = rng.choice(len(by_class), job.ways, replace=False)
    mixed = [rng.permutation(by_class[index])[: shots + job.queries] for index in chosen]
    return np.stack([rows[:shots] for rows in mixed]), [rows[shots:] for rows in mixed]


def _accuracies(
    X: torch.Tensor,
    examples: Sequence[NDArray[np.int64]],
    queries: Sequence[list[NDArray[np.int64]]],
) -> list[float]:
    """The accuracy of each of E episodes; their classifiers are trained together."""
    support = torch.from_numpy(np.stack(examples))  # [E, ways, shots]
    E, ways, shots = support.shape
    x = X[support.reshape(E, -1)]  # [E, ways·shots, a]
    y = torch.arange(ways).repeat_interleave(shots).expand(E, -1)
    W = torch.zeros(E, ways, X.shape[1], requires_grad=True)
    bias = torch.zeros(E, 1, ways, requires_grad=True)
    optimizer = torch.optim.Adam([W, bias], lr=_RATE, weight_decay=1e-3)
    for _ in range(_STEPS):
        logits = x @ W.transpose(1, 2) + bias
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / shots
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    accuracies = []
    for episode, by_class in enumerate(queries):
        rows = torch.from_numpy(np.concatenate(by_class))
        truth = np.repeat(np.arange(ways), [len(members) for members in by_class])
        with torch.no_grad():
            predicted = (X[rows] @ W[episode].T + bias[episode]).argmax(dim=1).numpy()
        accuracies.append(float((predicted == truth).mean()))
    return accuracies
