"""Which class is taken for which: counts of wrong first answers, kept only for pairs that occur."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq.data.classes import ClassTable
from raypq.data.predictions import PredictionBatch

_TOLD = 50  # the most frequent pairs


@dataclass(kw_only=True, eq=False)
class Confusions:
    """Wrong first answers, merged in any order.

    At most one entry, of 16 bytes, for each wrong image; so T² never matters.

    Attributes:
        pairs: label · T + answer, ascending [n]. counts: images [n].
    """

    pairs: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, batch: PredictionBatch, T: int) -> None:
        """Counts the wrong answers of a batch."""
        if not len(batch.y):
            return
        y, first = batch.y.astype(np.int64), batch.classes[:, 0]
        wrong = (y >= 0) & (first != y)
        self._join(y[wrong] * T + first[wrong], np.ones(int(wrong.sum()), np.int64))

    def merge(self, other: Confusions) -> None:
        """Adds the counts of another shard."""
        self._join(other.pairs, other.counts)

    def _join(self, pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        known, place = np.unique(np.concatenate([self.pairs, pairs]), return_inverse=True)
        total = np.zeros(len(known), np.int64)
        np.add.at(total, place, np.concatenate([self.counts, counts]))
        self.pairs, self.counts = known, total

    def worst(self, table: ClassTable, chosen: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """The most frequent pairs whose label is chosen, by count; ties in table order."""
        T = len(table)
        label = self.pairs // T
        inside = np.flatnonzero(chosen[label])
        order = inside[np.lexsort((self.pairs[inside], -self.counts[inside]))][:_TOLD]
        return [
            {
                "class_id": table.ids[int(self.pairs[at] // T)].as_py(),
                "name": table.names[int(self.pairs[at] // T)],
                "answer_id": table.ids[int(self.pairs[at] % T)].as_py(),
                "answer": table.names[int(self.pairs[at] % T)],
                "images": int(self.counts[at]),
            }
            for at in order
        ]
