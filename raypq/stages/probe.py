"""How good a space is without a zero-shot classifier: few-shot episodes, and clusterability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from raypq import console, kernels
from raypq.config import ClusterabilityJob, FewShotJob, ProbeJob, Space
from raypq.data.classes import ClassTable
from raypq.data.features import FeatureStore, open_features
from raypq.data.unknown_names import UnknownNames, examples
from raypq.errors import ConfigError, InputError
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.methods.layers import unit
from raypq.stages.shard_types import check_label_column

_STEPS, _RATE = 100, 0.1  # of the classifiers of episodes, by Adam
_TOGETHER = 50  # episodes at a time
_ROUNDS = 100  # of Lloyd's algorithm at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Rows in memory: X [n, a] in some space, and y [n] among the classes ``names``."""

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    names: list[str]

    @classmethod
    def read(cls, job: ProbeJob) -> Labelled:
        """Reads every labelled row of the classes that the job's split names.

        Raises:
            ConfigError: a space that needs a model, and none.
            InputError: no labelled row of these classes.
        """
        if job.model is None and job.space != "raw":
            raise ConfigError(
                f"space {job.space!r} is of a model: pass --model (model), or --space raw (space: "
                "raw)"
            )
        model = registry.load(job.model) if job.model else None
        table = ClassTable.open(job.classes) if job.classes is not None else None
        wanted = _wanted(table, job.split)
        unknown = UnknownNames()
        parts, labels = [], []
        shards = FeatureStore.open(job.features, job.columns).shards
        check_label_column(shards, job.columns)
        for shard in shards:
            with open_features(shard, job.columns, width=model.dx if model else None) as reader:
                for batch in reader.batches():
                    if table is not None and batch.labels is not None:
                        unknown.add(table.find(batch.labels)[1])
                    known = (
                        [None] * len(batch) if batch.labels is None else batch.labels.to_pylist()
                    )
                    keep = [
                        index
                        for index, label in enumerate(known)
                        if label is not None and (wanted is None or label in wanted)
                    ]
                    parts.append(in_space(batch.X[keep], model, job.space))
                    labels += [known[index] for index in keep]
        if unknown.rows:
            console.warn(
                f"{job.classes}: {unknown.rows:,} row(s) with a label that is none of its "
                f"class_ids, such as {examples(unknown.summary())}; they are left out",
                rows=unknown.rows,
            )
        if not labels:
            raise InputError(
                job.features[0], expected=f"labelled rows of {job.split!r} classes", found="none"
            )
        names, y = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
        return cls(X=np.concatenate(parts), y=y.astype(np.int64), names=names.tolist())


def _wanted(table: ClassTable | None, split: str) -> set[str] | None:
    if table is None:
        return None
    return {table.ids[int(index)].as_py() for index in table.select(split)}


def in_space(X: NDArray[np.float32], model: Model | None, space: Space) -> NDArray[np.float32]:
    """Features [n, dx] as they are, as the model maps them, or as its codes give them back."""
    if model is None or space == "raw":
        return X
    return model.mapped(X) if space == "mapped" else model.decode(model.encode(X))


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


def clusterability(job: ClusterabilityJob) -> dict[str, Any]:
    """Mutual information of k-means clusters and labels, k the number of classes (table 4).

    ``nmi`` is divided by the mean of the two entropies, as the paper's scores are below 1.

    Raises:
        InputError: fewer than two classes.
    """
    kernels.set_threads(kernels.threads())
    rows = Labelled.read(job)
    k = len(rows.names)
    if k < 2:
        raise InputError(job.features[0], expected="at least two classes", found=str(k))
    scores = []
    for restart in range(job.restarts):
        rng = np.random.default_rng([job.seed, restart])
        scores.append(mutual_information(kmeans(rows.X, k, rng), rows.y))
    mi, nmi = (float(np.mean([score[at] for score in scores])) for at in (0, 1))
    console.say(f"mutual information {mi:.3f} nats, normalised {nmi:.3f} ({k} clusters)")
    return {
        "space": job.space,
        "images": len(rows.X),
        "classes": k,
        "mi": mi,
        "nmi": nmi,
        "nmi_std": float(np.std([score[1] for score in scores])),
    }


def kmeans(X: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The cluster of each row of X [n, a]: k-means++, then Lloyd's algorithm to its end."""
    # At unit scale by a power of two, which changes no distance but in its range.
    exponent = np.frexp(np.abs(X).max(initial=0.0))[1]
    x = torch.from_numpy(np.ldexp(X.astype(np.float64), -exponent).astype(np.float32))
    centres = x[int(rng.integers(len(X)))][None]
    nearest = torch.full((len(X),), torch.inf)
    for _ in range(1, k):
        nearest = torch.minimum(nearest, _squared(x, centres[-1:])[:, 0])
        mass = np.cumsum(nearest.double().numpy())
        place = min(int(np.searchsorted(mass, rng.random() * mass[-1])), len(X) - 1)
        centres = torch.cat([centres, x[place][None]])
    cluster = torch.full((len(X),), -1)
    for _ in range(_ROUNDS):
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
    """(MI in nats, MI over the mean entropy) of two labellings [n]."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))

    def entropy(p: NDArray[np.float64]) -> float:
        return -float(np.sum(p[p > 0] * np.log(p[p > 0])))

    left, right = entropy(joint.sum(axis=1)), entropy(joint.sum(axis=0))
    mi = left + right - entropy(joint)
    return mi, mi / max((left + right) / 2, 1e-12)
