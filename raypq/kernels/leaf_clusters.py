"""Clusters of at most 64 rows, for the leaves of classes.

k-means by few centres, and of each part by more, finds groups of rows; some are cut in two, others
are joined. So clusters are then split where two halves are far apart for how their rows scatter,
and joined where they are not.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.kernels import native

WIDTH = 64  # most rows of a cluster: the classes of a tile
_COARSE = 4096  # rows for which there is a centre in the first clustering
_SIZE = 40  # rows for which there is a centre then: few clusters are larger than 64
_MOST_CENTRES = 256
_SAMPLE = 32  # rows of a sample for each centre
_ROUNDS = 6
_ROWS = 8192  # rows that are assigned at once
_BATCH = 512  # clusters that are examined at once
_CENTRES = 256  # and whose nearest ones are found at once
_NEAREST = 8  # of them that are considered
_JOINS = 6  # rounds in which each cluster may be joined with one
_SCATTERED = 8  # least rows of a cluster whose scatter counts
# Two clusters are far apart if joining them adds more to the sum of squared distances than so many
# times the scatter of a row (its squared distance from a centre), and so many times for each row
# of the smaller one: halves of a cluster differ so much by chance.
_APART, _BY_CHANCE = 2.0, 0.3

Rows = NDArray[np.int64]


def leaves(X: NDArray[np.float32], *, threads: int, seed: int) -> list[Rows]:
    """Clusters of the rows X [T, p], by their radius."""
    rng = np.random.default_rng(seed)
    coarse = min(_MOST_CENTRES, -(-len(X) // _COARSE))
    parts = _split(X, np.arange(len(X)), coarse, rng, threads)
    small = [cluster for rows in parts for cluster in _small(X, rows, rng, threads)]
    scatter = _scatter(X, small)
    clusters = _joined(X, _halved(X, small, scatter), scatter)
    # Those of a tile share the largest of their radii, so they should be alike.
    radius = np.concatenate([_Points(X, part).radius() for part in _batches(clusters)])
    return [clusters[at] for at in np.argsort(radius, kind="stable")]


def _small(
    X: NDArray[np.float32], rows: Rows, rng: np.random.Generator, threads: int
) -> list[Rows]:
    """Rows in clusters of at most 64."""
    if len(rows) <= WIDTH:
        return [rows]
    parts = _split(X, rows, min(_MOST_CENTRES, -(-len(rows) // _SIZE)), rng, threads)
    if len(parts) == 1:  # rows that no centre separates, such as equal ones
        return np.split(rows, range(WIDTH, len(rows), WIDTH))
    return [cluster for part in parts for cluster in _small(X, part, rng, threads)]


def _split(
    X: NDArray[np.float32], rows: Rows, k: int, rng: np.random.Generator, threads: int
) -> list[Rows]:
    """Rows in clusters by at most k centres, each ascending."""
    if k < 2:
        return [rows]
    chosen = rng.choice(len(rows), min(len(rows), _SAMPLE * k), replace=False)
    sample = X[rows[np.sort(chosen)]]
    first = rng.integers(len(sample), size=1)
    centres = native.kmeans_pp_init(sample, first, rng.random((1, k - 1)), threads=threads)
    for _ in range(_ROUNDS):
        nearest = native.encode(sample, centres, threads=threads)
        count, total, _ = native.codeword_sums(sample, nearest, centres, threads=threads)
        held = count[0] > 0
        centres = (total[:, held] / count[:, held, None]).astype(np.float32)
    parts = np.split(rows, range(_ROWS, len(rows), _ROWS))
    nearest = np.concatenate([native.encode(X[part], centres, threads=threads) for part in parts])
    by_centre = np.argsort(nearest[:, 0], kind="stable")
    sizes = np.bincount(nearest[:, 0])
    return np.split(rows[by_centre], np.cumsum(sizes[sizes > 0])[:-1])


def _batches(clusters: list[Rows]) -> list[list[Rows]]:
    return [clusters[start : start + _BATCH] for start in range(0, len(clusters), _BATCH)]


def _scatter(X: NDArray[np.float32], clusters: list[Rows]) -> float:
    """The squared distance of a row from its centre that is usual in the tighter clusters."""
    large = [rows for rows in clusters if len(rows) >= _SCATTERED]
    if not large:
        return 0.0
    each = np.concatenate([_Points(X, part).scatter() for part in _batches(large)])
    return float(np.quantile(each, 0.25))


def _halved(X: NDArray[np.float32], clusters: list[Rows], scatter: float) -> list[Rows]:
    """The clusters, of which those whose halves are far apart are split."""
    done: list[Rows] = []
    while clusters:
        halves: list[Rows] = []
        for part in _batches(clusters):
            apart, side = _Points(X, part).halves(scatter)
            for rows, split, right in zip(part, apart, side, strict=True):
                if split:
                    halves += [rows[~right[: len(rows)]], rows[right[: len(rows)]]]
                else:
                    done.append(rows)
        clusters = halves
    return done


def _joined(X: NDArray[np.float32], clusters: list[Rows], scatter: float) -> list[Rows]:
    """The clusters, of which those are joined that are not far apart, nearest first."""
    centre = np.array([X[rows].mean(axis=0) for rows in clusters])
    for _ in range(_JOINS):
        size = np.array([len(rows) for rows in clusters])
        a, b = _near(centre, size, scatter)
        joined: list[Rows | None] = [*clusters]
        free = np.ones(len(clusters), bool)
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            if free[i] and free[j]:
                free[i] = free[j] = False
                joined[i], joined[j] = np.concatenate([clusters[i], clusters[j]]), None
                centre[i] = (size[i] * centre[i] + size[j] * centre[j]) / (size[i] + size[j])
        if free.all():
            break
        held = np.array([rows is not None for rows in joined])
        centre, clusters = centre[held], [rows for rows in joined if rows is not None]
    return [np.sort(rows) for rows in clusters]


def _near(
    centre: NDArray[np.float32], size: NDArray[np.int64], scatter: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of clusters that may be joined, first those that add least to the squared distances."""
    C, n = torch.from_numpy(centre), torch.from_numpy(size).float()
    squared, columns = C.square().sum(1), C.T.contiguous()
    first, second, costs = [], [], []
    small = torch.arange(len(C))[n <= WIDTH // 2]  # one of two that are joined is
    for start in range(0, len(small), _CENTRES):
        rows = small[start : start + _CENTRES]
        distance = torch.addmm(squared, C[rows], columns, alpha=-2)
        distance[torch.arange(len(rows)), rows] = torch.inf
        distance, at = distance.topk(min(_NEAREST, len(C)), dim=1, largest=False)
        total, fewer = n[rows, None] + n[at], torch.minimum(n[rows, None], n[at])
        cost = (distance + squared[rows, None]).clamp_(min=0) * (n[rows, None] * n[at] / total)
        near = (total <= WIDTH) & (cost <= scatter * (_APART + _BY_CHANCE * fewer))
        first.append(rows[:, None].expand_as(at)[near])
        second.append(at[near])
        costs.append(cost[near])
    if not costs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = torch.argsort(torch.cat(costs), stable=True)
    return torch.cat(first)[order].numpy(), torch.cat(second)[order].numpy()


class _Points:
    """The rows of some clusters, padded to as many for each [c, w, p]."""

    def __init__(self, X: NDArray[np.float32], clusters: list[Rows]) -> None:
        self._sizes = torch.tensor([len(rows) for rows in clusters])
        index = torch.nn.utils.rnn.pad_sequence([*map(torch.from_numpy, clusters)], True)
        self._points = torch.from_numpy(X[index.numpy()])
        self._squared = self._points.square().sum(2)
        self._real = torch.arange(index.shape[1]) < self._sizes[:, None]
        self._whole = self._distances(self._mean(self._real))

    def radius(self) -> NDArray[np.float32]:
        """The largest squared distance from the mean [c]."""
        return self._whole.amax(1).numpy()

    def scatter(self) -> NDArray[np.float32]:
        """The mean squared distance from the mean [c]."""
        return (self._whole.sum(1) / self._sizes).numpy()

    def halves(self, scatter: float) -> tuple[list[bool], NDArray[np.bool_]]:
        """Whether the halves of each are far apart [c], and the rows of the second one [c, w]."""
        left = self._farthest(self._whole)
        right = self._farthest(self._distances(left))
        for _ in range(2):
            side = (self._distances(right) < self._distances(left)) & self._real
            left, right = self._mean(self._real & ~side), self._mean(side)
        halves = torch.where(side, self._distances(right), self._distances(left)).sum(1)
        both = side.any(1) & (self._real & ~side).any(1)
        fewer = torch.minimum(side.sum(1), self._sizes - side.sum(1))
        apart = self._whole.sum(1) - halves > scatter * (_APART + _BY_CHANCE * fewer)
        return (both & apart).tolist(), side.numpy()

    def _distances(self, centre: torch.Tensor) -> torch.Tensor:
        distance = self._squared - 2 * (self._points @ centre.transpose(1, 2))[:, :, 0]
        distance += centre.square().sum(2)
        return distance.clamp_(min=0).masked_fill_(~self._real, 0)

    def _mean(self, of: torch.Tensor) -> torch.Tensor:
        count = of.sum(1).clamp(min=1)[:, None, None]
        return (of.float()[:, None] @ self._points) / count

    def _farthest(self, distance: torch.Tensor) -> torch.Tensor:
        return self._points.take_along_dim(distance.argmax(1)[:, None, None], 1)
