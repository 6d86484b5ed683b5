"""Average precision and precision-recall from the ranks of relevant rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_BLOCK = 64  # queries scored at once
LEVELS = 20  # of recall: 0.05, 0.1, …, 1


def precision_at_relevant(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Precision at the rank of each relevant row [n], given these ranks from 0 on, ascending [n].
    Its mean is the average precision."""
    precision: NDArray[np.float64] = np.arange(1, len(ranks) + 1) / (ranks + 1)
    return precision


def precision_over_recall(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Precision where recall first reaches 1/20, 2/20, …, 1 [LEVELS], not interpolated.

    Args:
        precision: of ``precision_at_relevant`` [n], for at least one relevant row.
    """
    n = len(precision)
    return precision[-(-n * np.arange(1, LEVELS + 1) // LEVELS) - 1]


def mean_average_precision(
    score: Callable[[slice], NDArray[np.floating]],
    query_label: NDArray[np.integer],
    row_label: NDArray[np.integer],
) -> float:
    """mAP over all queries; ties go to the lower row.

    A query without a relevant row has an average precision of 0.

    Args:
        score: returns the scores [q, N] of a slice of the queries.
        query_label, row_label: [Q] and [N]; rows of a query's label are relevant.
    """
    total = 0.0
    for start in range(0, len(query_label), _BLOCK):
        part = slice(start, start + _BLOCK)
        order = np.argsort(-score(part), axis=1, kind="stable")
        for label, ranked in zip(query_label[part], row_label[order], strict=True):
            ranks = np.flatnonzero(ranked == label)
            total += float(precision_at_relevant(ranks).mean()) if len(ranks) else 0.0
    return total / max(1, len(query_label))
