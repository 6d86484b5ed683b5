"""Clusterability: mutual information of k-means clusters and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import ClusterabilityJob
from raypq.errors import InputError
from raypq.stages.representation.labelled_rows import LabelledRows

_MAX_ITERATIONS = 100  # of Lloyd's algorithm


def clusterability(job: ClusterabilityJob) -> dict[str, Any]:
    """Mutual information of k-means clusters and labels, with k the number of classes (table 4).

    ``nmi`` is normalised by the mean of the two entropies, since the paper's scores are below 1.

    Raises:
        InputError: fewer than two classes.
    """
    kernels.set_threads(kernels.threads())
    rows = LabelledRows.read(job)
    k = len(rows.names)
    if k < 2:
        raise InputError(job.features[0], expected="at least two classes", found=str(k))
    scores = []
    for restart in range(job.restarts):
        rng = np.random.default_rng([job.seed, restart])
        scores.append(mutual_information(kmeans(rows.X, k, rng), rows.y))
    mi_scores, nmi_scores = zip(*scores, strict=True)
    mi, nmi = float(np.mean(mi_scores)), float(np.mean(nmi_scores))
    console.say(f"mutual information {mi:.3f} nats, normalised {nmi:.3f} ({k} clusters)")
    return {
        "space": job.space,
        "images": len(rows.X),
        "classes": k,
        "mi": mi,
        "nmi": nmi,
        "nmi_std": float(np.std(nmi_scores)),
    }


def kmeans(X: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The cluster of each row of X [n, a], by k-means++ and Lloyd's algorithm."""
    # Scaled by a power of two, which is exact and avoids overflow.
    exponent = np.frexp(np.abs(X).max(initial=0.0))[1]
    x = torch.from_numpy(np.ldexp(X.astype(np.float64), -exponent).astype(np.float32))
    centres = x[int(rng.integers(len(X)))][None]
    nearest = torch.full((len(X),), torch.inf)
    for _ in range(1, k):
        nearest = torch.minimum(nearest, _squared(x, centres[-1:])[:, 0])
        mass = np.cumsum(nearest.double().numpy())
        row = min(int(np.searchsorted(mass, rng.random() * mass[-1])), len(X) - 1)
        centres = torch.cat([centres, x[row][None]])
    cluster = torch.full((len(X),), -1)
    for _ in range(_MAX_ITERATIONS):
        before, cluster = cluster, _squared(x, centres).argmin(dim=1)
        if torch.equal(before, cluster):
            break
        count = torch.bincount(cluster, minlength=k)
        total = torch.zeros_like(centres).index_add_(0, cluster, x)
        filled = count > 0
        centres[filled] = total[filled] / count[filled, None]
    return cluster.numpy()


def _squared(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    lengths = x.square().sum(dim=1, keepdim=True) + c.square().sum(dim=1)
    return (lengths - 2 * x @ c.T).clamp_min(0)


def mutual_information(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[float, float]:
    """(MI in nats, MI divided by the mean entropy) of two labellings [n]."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))

    def entropy(p: NDArray[np.float64]) -> float:
        return -float(np.sum(p[p > 0] * np.log(p[p > 0])))

    left, right = entropy(joint.sum(axis=1)), entropy(joint.sum(axis=0))
    mi = left + right - entropy(joint)
    return mi, mi / max((left + right) / 2, 1e-12)
