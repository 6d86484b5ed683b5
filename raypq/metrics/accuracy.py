"""Class-wise counts of predictions, and the accuracies that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raypq.data.classes import ClassTable
from raypq.data.predictions import PredictionBatch
from raypq.data.unknown_classes import UnknownNames

HITS = (1, 5, 10)  # the k of hit@k
_ARRAYS = ("rows", "predicted", "images", "hits", "group_hits")
_NAMES = ("unknown_labels", "unknown_classes")

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassCounts:
    """Counts over images, by class of the table (T). They add up, and can be subtracted.

    Attributes:
        rows: images in all [1]. predicted: images whose best class it is [T].
        images: labelled images of it [T].
        hits: of those, with the label among the first 1, 5, 10 [3, T].
        group_hits: of those, right at top 1 within the label's own group (seen or unseen) [T].
        widths: images by their number of predictions.
        unknown_labels: images by a label that the table lacks.
        unknown_classes: predictions by a class that the table lacks.
    """

    rows: Counts
    predicted: Counts
    images: Counts
    hits: Counts
    group_hits: Counts
    widths: dict[int, int] = field(default_factory=dict)
    unknown_labels: UnknownNames = field(default_factory=UnknownNames)
    unknown_classes: UnknownNames = field(default_factory=UnknownNames)

    @classmethod
    def empty(cls, T: int) -> Self:
        """No counts yet, for T classes."""
        arrays: dict[str, Any] = {name: np.zeros(_shape(name, T), np.int64) for name in _ARRAYS}
        return cls(**arrays)

    @property
    def k(self) -> tuple[int, int]:
        """The fewest and the most predictions that an image has; zeros without images."""
        return min(self.widths, default=0), max(self.widths, default=0)

    def add(self, batch: PredictionBatch) -> None:
        """Counts one batch."""
        n, k = batch.classes.shape
        if not n:
            return
        T = len(self.predicted)
        self._count_widths({k: n})
        self.rows[0] += n
        first = batch.classes[:, 0]
        self.predicted[:] += np.bincount(first[first >= 0], minlength=T)
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
        for name in _NAMES:
            if (names := getattr(batch, name)) is not None:
                getattr(self, name).add(names)

    def merge(self, other: ClassCounts) -> None:
        """Adds another tally of the same class table."""
        for name in _ARRAYS:
            getattr(self, name)[:] += getattr(other, name)
        for name in _NAMES:
            getattr(self, name).merge(getattr(other, name))
        self._count_widths(other.widths)

    def subtract(self, other: ClassCounts) -> None:
        """Takes off the counts of images that were added before."""
        for name in _ARRAYS:
            getattr(self, name)[:] -= getattr(other, name)
        for name in _NAMES:
            getattr(self, name).subtract(getattr(other, name))
        self._count_widths({k: -n for k, n in other.widths.items()})

    def _count_widths(self, more: Mapping[int, int]) -> None:
        for k, n in more.items():
            self.widths[k] = self.widths.get(k, 0) + n
            if not self.widths[k]:
                del self.widths[k]

    @property
    def valid(self) -> bool:
        """Whether these can be counts of ``rows`` images: none is negative, and sums agree."""
        arrays = all(getattr(self, name).min(initial=0) >= 0 for name in _ARRAYS)
        names = all(getattr(self, name).valid for name in _NAMES)
        widths = min(self.widths.values(), default=1) > 0
        return arrays and names and widths and sum(self.widths.values()) == int(self.rows[0])

    @property
    def exact(self) -> bool:
        """Whether a summary of these is the one that counting everything anew would give."""
        return all(getattr(self, name).exact for name in _NAMES)

    def plain(self) -> dict[str, Any]:
        """Everything as plain values; ``of_plain`` reads them."""
        found: dict[str, Any] = {name: getattr(self, name).tolist() for name in _ARRAYS}
        found["widths"] = sorted(self.widths.items())
        for name in _NAMES:
            found[name] = dict(vars(getattr(self, name)))
        return found

    @classmethod
    def of_plain(cls, values: Mapping[str, Any], T: int) -> Self:
        """The counts that ``plain`` gave, for T classes.

        Raises:
            ValueError: they are not such counts.
        """
        try:
            arrays: dict[str, Any] = {name: np.array(values[name], np.int64) for name in _ARRAYS}
            names: dict[str, Any] = {name: UnknownNames(**values[name]) for name in _NAMES}
            tally = cls(**arrays, **names, widths={int(k): int(n) for k, n in values["widths"]})
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"no counts of predictions: {error}") from None
        if any(array.shape != _shape(name, T) for name, array in arrays.items()):
            raise ValueError(f"counts of another class table than one of {T} classes")
        if not tally.valid:
            raise ValueError("counts that contradict each other")
        return tally

    def accuracy(self, chosen: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """hit@k over the labelled images of the chosen classes (all by default).

        Each as the mean of the classes (of those with images) and of the images.
        """
        has = self.images > 0 if chosen is None else (self.images > 0) & chosen
        found: dict[str, Any] = {"classes": int(has.sum()), "images": int(self.images[has].sum())}
        if not has.any():
            return found
        least, _ = self.k
        for row, depth in enumerate(HITS):
            if depth <= max(1, least):
                found[f"hit@{depth}"] = class_mean(self.hits[row][has], self.images[has])
                found[f"hit@{depth}_image_mean"] = float(
                    self.hits[row][has].sum() / self.images[has].sum()
                )
        return found

    def unknown(self) -> dict[str, Any]:
        """Names that the table lacks, by kind; nothing where there are none."""
        return {name: getattr(self, name).summary() for name in _NAMES if getattr(self, name).rows}

    def summary(self, table: ClassTable) -> dict[str, Any]:
        """What a version says of them: accuracy, how often each class was predicted, and names
        that the table lacks."""
        order = np.lexsort((np.arange(len(table)), -self.predicted))
        return {
            **self.unknown(),
            "rows": int(self.rows[0]),
            "accuracy": self.accuracy(),
            "predicted": {
                table.ids[int(index)].as_py(): int(self.predicted[index])
                for index in order
                if self.predicted[index]
            },
        }


def _shape(name: str, T: int) -> tuple[int, ...]:
    return {"rows": (1,), "hits": (len(HITS), T)}.get(name, (T,))


def class_mean(hits: Counts, images: Counts) -> float:
    """The mean over classes of each one's share of hits."""
    return float(np.mean(hits / images))


def harmonic(ts: float, tr: float) -> float:
    """H, the harmonic mean of ts and tr; 0 where both are."""
    return 2 * ts * tr / (ts + tr) if ts + tr else 0.0
