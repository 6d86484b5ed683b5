"""What a shard's predictions add up to: integer counts that merge in any order."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raypq.data.classes import ClassTable
from raypq.data.predictions import PredictionBatch

HITS = (1, 5, 10)  # the k of hit@k

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tally:
    """Counts over images, by class of the table (T).

    Attributes:
        rows: images in all [1]. k: predictions an image has (the fewest and most seen) [2].
        predicted: images whose best class it is [T]. images: labelled images of it [T].
        hits: of those, with the label among the first 1, 5, 10 [3, T].
        group_hits: of those, right at top 1 within the label's own group (seen or unseen) [T].
    """

    rows: Counts
    k: Counts
    predicted: Counts
    images: Counts
    hits: Counts
    group_hits: Counts

    @classmethod
    def empty(cls, T: int) -> Self:
        """No counts yet, for T classes."""
        shapes = {"rows": (1,), "k": (2,), "hits": (len(HITS), T)}
        return cls(
            **{item.name: np.zeros(shapes.get(item.name, (T,)), np.int64) for item in fields(cls)}
        )

    def add(self, batch: PredictionBatch) -> None:
        """Counts one batch."""
        n, k = batch.classes.shape
        if not n:
            return
        T = len(self.predicted)
        self._widths(k, k)
        self.rows[0] += n
        self.predicted[:] += np.bincount(batch.classes[:, 0], minlength=T)
        known = batch.y >= 0
        y = batch.y[known]
        self.images[:] += np.bincount(y, minlength=T)
        right = batch.classes[known] == y[:, None]
        for row, depth in enumerate(HITS):
            self.hits[row] += np.bincount(y[right[:, :depth].any(axis=1)], minlength=T)
        inside = np.zeros(len(y), bool)
        for best in batch.best.values():
            inside |= best.classes[known] == y
        self.group_hits[:] += np.bincount(y[inside], minlength=T)

    def merge(self, other: Tally) -> None:
        """Adds another tally of the same class table."""
        if other.rows[0]:
            self._widths(int(other.k[0]), int(other.k[1]))
        for item in fields(self):
            if item.name != "k":
                getattr(self, item.name)[:] += getattr(other, item.name)

    def _widths(self, low: int, high: int) -> None:
        self.k[0] = low if not self.k[0] else min(self.k[0], low)
        self.k[1] = max(self.k[1], high)

    def accuracy(self, chosen: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """hit@k over the labelled images of the chosen classes (all by default).

        Each as the mean of the classes (of those with images) and of the images.
        """
        has = self.images > 0 if chosen is None else (self.images > 0) & chosen
        found: dict[str, Any] = {"classes": int(has.sum()), "images": int(self.images[has].sum())}
        if not has.any():
            return found
        for row, depth in enumerate(HITS):
            if depth <= max(1, self.k[0]):
                found[f"hit@{depth}"] = class_mean(self.hits[row][has], self.images[has])
                found[f"hit@{depth}_image_mean"] = float(
                    self.hits[row][has].sum() / self.images[has].sum()
                )
        return found

    def summary(self, table: ClassTable) -> dict[str, Any]:
        """The counts as plain values: accuracy, and how often each class was predicted."""
        order = np.lexsort((np.arange(len(table)), -self.predicted))
        return {
            "rows": int(self.rows[0]),
            "accuracy": self.accuracy(),
            "predicted": {
                table.ids[int(index)].as_py(): int(self.predicted[index])
                for index in order
                if self.predicted[index]
            },
        }


def class_mean(hits: Counts, images: Counts) -> float:
    """The mean over classes of each one's share of hits."""
    return float(np.mean(hits / images))
