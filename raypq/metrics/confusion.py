"""Confusion counts of pairs (label, predicted class) that occur."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq.data.classes import ClassTable
from raypq.data.predictions import PredictionBatch

_REPORTED = 50  # pairs in ``worst``

Run = tuple[NDArray[np.int64], NDArray[np.int64]]  # label · T + answer, ascending; images of each


@dataclass(kw_only=True, eq=False)
class Confusions:
    """Counts of wrong top-1 predictions, merged in any order.

    Counts are sorted runs, each more than twice as long as the next; a new run is merged with those
    that are not much longer. So an entry is merged a logarithmic number of times; merging each
    shard into one run would be quadratic. All runs together have at most two entries, of 16 bytes,
    for each pair that occurs.
    """

    runs: list[Run] = field(default_factory=list)

    def add(self, batch: PredictionBatch, T: int) -> None:
        """Counts the wrong predictions of a batch, except classes that the table lacks."""
        if not len(batch.y):
            return
        y, first = batch.y.astype(np.int64), batch.classes[:, 0]
        wrong = (y >= 0) & (first >= 0) & (first != y)
        self._push(np.unique(y[wrong] * T + first[wrong], return_counts=True))

    def merge(self, other: Confusions) -> None:
        """Adds the counts of another shard."""
        for run in other.runs:
            self._push(run)

    def _push(self, run: Run) -> None:
        if not len(run[0]):
            return
        self.runs.append(run)
        self.runs.sort(key=lambda run: -len(run[0]))
        while len(self.runs) > 1 and len(self.runs[-2][0]) <= 2 * len(self.runs[-1][0]):
            self.runs.append(_merged(self.runs.pop(), self.runs.pop()))

    def counts(self) -> Run:
        """Every pair (label · T + answer, ascending) [n], and the images of each [n]."""
        while len(self.runs) > 1:
            self.runs.append(_merged(self.runs.pop(), self.runs.pop()))
        none = np.zeros(0, np.int64)
        return self.runs[0] if self.runs else (none, none)

    def worst(self, table: ClassTable, chosen: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """The most frequent pairs whose label is chosen, by count; ties in table order."""
        T = len(table)
        pairs, counts = self.counts()
        inside = np.flatnonzero(chosen[pairs // T])
        order = inside[np.lexsort((pairs[inside], -counts[inside]))][:_REPORTED]
        return [
            {
                "class_id": table.ids[int(pairs[at] // T)].as_py(),
                "name": table.names[int(pairs[at] // T)],
                "answer_id": table.ids[int(pairs[at] % T)].as_py(),
                "answer": table.names[int(pairs[at] % T)],
                "images": int(counts[at]),
            }
            for at in order
        ]


def _merged(a: Run, b: Run) -> Run:
    """Two runs as one; counts of equal pairs are added."""
    pairs = np.concatenate([a[0], b[0]])
    order = np.argsort(pairs, kind="stable")  # linear for two sorted runs
    pairs = pairs[order]
    first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    counts = np.add.reduceat(np.concatenate([a[1], b[1]])[order], first)
    return pairs[first], counts
