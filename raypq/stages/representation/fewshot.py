"""Few-shot accuracy: classifiers trained on a few examples of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from raypq import console, kernels
from raypq.config import FewShotJob
from raypq.errors import InputError
from raypq.methods.support.layers import unit
from raypq.stages.representation.labelled_rows import Labelled

_STEPS, _RATE = 100, 0.1  # of the classifiers of episodes, by Adam
_TOGETHER = 50  # episodes at a time
_ROUNDS = 100  # of Lloyd's algorithm at most


def fewshot(job: FewShotJob) -> dict[str, Any]:
    """Accuracy of softmax classifiers on a few examples of classes not trained on.

    An episode draws classes, and of each some examples and other rows to recognise. Features are
    scaled to unit length. The interval is 1.96 standard errors over episodes.

    Raises:
        InputError: fewer classes, with enough rows, than an episode needs.
    """
    kernels.set_threads(kernels.threads())
    rows = Labelled.read(job)
    X = unit(torch.from_numpy(rows.X))
    found: dict[str, Any] = {"space": job.space, "ways": job.ways, "episodes": job.episodes}
    for shots in job.shots:
        places = [np.flatnonzero(rows.y == label) for label in range(len(rows.names))]
        places = [place for place in places if len(place) > shots]
        if len(places) < job.ways:
            raise InputError(
                job.features[0],
                expected=f"{job.ways} classes with more than {shots} images",
                found=str(len(places)),
            )
        rng = np.random.default_rng([job.seed, shots])
        scores: list[float] = []
        while len(scores) < job.episodes:
            n = min(_TOGETHER, job.episodes - len(scores))
            episodes = [_draw(places, job, shots, rng) for _ in range(n)]
            scores += _accuracies(X, [one[0] for one in episodes], [one[1] for one in episodes])
        mean, spread = float(np.mean(scores)), float(np.std(scores))
        interval = 1.96 * spread / np.sqrt(len(scores))
        found[f"{shots}-shot"] = {"accuracy": mean, "interval": float(interval)}
        console.say(f"{job.ways}-way {shots}-shot: {mean:.3f} ± {interval:.3f}")
    return found


def _draw(
    places: list[NDArray[np.int64]], job: FewShotJob, shots: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Rows of an episode: examples [ways, shots], and of each class those to recognise."""
    chosen = rng.choice(len(places), job.ways, replace=False)
    mixed = [rng.permutation(places[index])[: shots + job.queries] for index in chosen]
    return np.stack([rows[:shots] for rows in mixed]), [rows[shots:] for rows in mixed]


def _accuracies(
    X: torch.Tensor, examples: list[NDArray[np.int64]], others: list[list[NDArray[np.int64]]]
) -> list[float]:
    """The accuracy of each of E episodes; their classifiers are trained side by side."""
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
    found = []
    for episode, queries in enumerate(others):
        rows = torch.from_numpy(np.concatenate(queries))
        truth = np.repeat(np.arange(ways), [len(one) for one in queries])
        with torch.no_grad():
            guess = (X[rows] @ W[episode].T + bias[episode]).argmax(dim=1).numpy()
        found.append(float((guess == truth).mean()))
    return found
