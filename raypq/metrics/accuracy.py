"""Counts of predictions by class, and accuracies computed from them."""

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
    """Counts of images by class of a table with T classes; they can be added and subtracted.

    Attributes:
        rows: all images [1]. predicted: images by top-1 prediction [T].
        images: labelled images by label [T].
        hits: those with the label among the first 1, 5 and 10 predictions [3, T].
        group_hits: those with the label as top 1 within its own group (seen or unseen) [T].
        widths: images by number of predictions.
        unknown_labels: images by label, for labels that the table lacks.
        unknown_classes: predictions by class, for classes that the table lacks.
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
        """Zero counts, for T classes."""
        arrays: dict[str, Any] = {name: np.zeros(_shape(name, T), np.int64) for name in _ARRAYS}
        return cls(**arrays)

    @property
    def k(self) -> tuple[int, int]:
        """The least and the largest number of predictions of an image; zeros without images."""
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
        group_hit = np.zeros(len(y), bool)
        for best in batch.best.values():
            group_hit |= best.classes[known] == y
        self.group_hits[:] += np.bincount(y[group_hit], minlength=T)
        for name in _NAMES:
            if (names := getattr(batch, name)) is not None:
                getattr(self, name).add(names)

    def merge(self, other: ClassCounts) -> None:
        """Adds counts of the same class table."""
        for name in _ARRAYS:
            getattr(self, name)[:] += getattr(other, name)
        for name in _NAMES:
            getattr(self, name).merge(getattr(other, name))
        self._count_widths(other.widths)

    def subtract(self, other: ClassCounts) -> None:
        """Subtracts counts of images that were added before."""
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
        """Whether the counts are consistent: none is negative, and widths add up to ``rows``."""
        arrays = all(getattr(self, name).min(initial=0) >= 0 for name in _ARRAYS)
        names = all(getattr(self, name).valid for name in _NAMES)
        widths = min(self.widths.values(), default=1) > 0
        return arrays and names and widths and sum(self.widths.values()) == int(self.rows[0])

    @property
    def exact(self) -> bool:
        """Whether the summary equals that of counting all images again."""
        return all(getattr(self, name).exact for name in _NAMES)

    def plain(self) -> dict[str, Any]:
        """All counts as JSON values, for ``of_plain``."""
        values: dict[str, Any] = {name: getattr(self, name).tolist() for name in _ARRAYS}
        values["widths"] = sorted(self.widths.items())
        for name in _NAMES:
            values[name] = dict(vars(getattr(self, name)))
        return values

    @classmethod
    def of_plain(cls, values: Mapping[str, Any], T: int) -> Self:
        """Counts from the values of ``plain``, for T classes.

        Raises:
            ValueError: the values are not consistent counts of T classes.
        """
        try:
            arrays: dict[str, Any] = {name: np.array(values[name], np.int64) for name in _ARRAYS}
            names: dict[str, Any] = {name: UnknownNames(**values[name]) for name in _NAMES}
            counts = cls(**arrays, **names, widths={int(k): int(n) for k, n in values["widths"]})
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"no counts of predictions: {error}") from None
        if any(array.shape != _shape(name, T) for name, array in arrays.items()):
            raise ValueError(f"counts of another class table than one of {T} classes")
        if not counts.valid:
            raise ValueError("counts that contradict each other")
        return counts

    def accuracy(self, chosen: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """hit@k over labelled images of the chosen classes (default: all).

        Each as the mean over classes with images, and as the mean over images.
        """
        counted = self.images > 0 if chosen is None else (self.images > 0) & chosen
        result: dict[str, Any] = {
            "classes": int(counted.sum()),
            "images": int(self.images[counted].sum()),
        }
        if not counted.any():
            return result
        least, _ = self.k
        for row, depth in enumerate(HITS):
            if depth <= max(1, least):
                result[f"hit@{depth}"] = class_mean(self.hits[row][counted], self.images[counted])
                result[f"hit@{depth}_image_mean"] = float(
                    self.hits[row][counted].sum() / self.images[counted].sum()
                )
        return result

    def unknown(self) -> dict[str, Any]:
        """Names that the table lacks, by kind; kinds without any are left out."""
        return {name: getattr(self, name).summary() for name in _NAMES if getattr(self, name).rows}

    def summary(self, table: ClassTable) -> dict[str, Any]:
        """The summary in a version: accuracy, predictions by class, and names that the table
        lacks."""
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
    """The mean over classes of hits / images."""
    return float(np.mean(hits / images))


def harmonic(ts: float, tr: float) -> float:
    """H, the harmonic mean of ts and tr; 0 where both are."""
    return 2 * ts * tr / (ts + tr) if ts + tr else 0.0
