"""Probabilities of predictions, and the classes that reach a threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from raypq.config import ClassificationTarget
from raypq.data.classes import ClassTable
from raypq.data.predictions import Accepted
from raypq.errors import ConfigError
from raypq.kernels.softmax import log_sum_exp
from raypq.kernels.tables import decode, squared_norms
from raypq.stages.classification.ranking import Rows, TopK
from raypq.stages.classification.scorers import ClassGroup

_MORE = 4  # times as many classes are found for images of which all are accepted


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How scores become probabilities, and which classes are accepted.

    Attributes:
        scale: of scores, for the logits; None: scores are compared as they are.
        offset: added to the logits of a sigmoid.
        threshold: least probability (or score) of an accepted class; None: none are listed.
    """

    scale: float | None
    offset: float
    kind: Literal["softmax", "sigmoid"]
    threshold: float | None

    @classmethod
    def of(cls, job: ClassificationTarget, table: ClassTable) -> Self | None:
        """The decision that a job asks for, if any.

        Raises:
            ConfigError: the logit scale is to be the encoder's, and the class table names none.
        """
        if job.logit_scale is None and job.threshold is None:
            return None
        scale, offset = job.logit_scale, job.logit_bias
        if scale == "encoder":
            if table.logits is None:
                raise ConfigError(
                    f"logit_scale: {job.classes} does not say the logit scale of its encoder "
                    "(raypq embed-classes writes it for open_clip and transformers); name a number"
                )
            scale = table.logits.scale
            offset = table.logits.bias if job.probability == "sigmoid" else 0.0
        return cls(scale=scale, offset=offset, kind=job.probability, threshold=job.threshold)

    def log_sums(
        self,
        rows: Rows,
        groups: Mapping[str, ClassGroup],
        device: str,
    ) -> NDArray[np.float64] | None:
        """The normaliser [n] of a softmax over all candidates, for codes [n, M] or vectors
        [n, D]; None where there is no softmax."""
        if self.scale is None or self.kind == "sigmoid":
            return None
        total = np.full(len(rows), -np.inf)
        for group in groups.values():
            tables = group.tables
            if rows.dtype == np.uint8:
                q, squared = decode(rows, tables.C), tables.squared_norms(rows)
            else:
                q, squared = rows, squared_norms(rows)
            part = log_sum_exp(q, squared, tables, self.scale, owner=group.owner, device=device)
            total = np.logaddexp(total, part)
        return total

    def values(
        self, score: NDArray[np.float32], log_sum: NDArray[np.float64] | None
    ) -> NDArray[np.float32]:
        """Probabilities of scores [n, k], or the scores where there is no scale."""
        if self.scale is None:
            return score
        logits = self.scale * score.astype(np.float64)
        if log_sum is not None:
            return np.exp(np.minimum(logits - log_sum[:, None], 0.0)).astype(np.float32)
        logits += self.offset
        return np.exp(-np.logaddexp(0.0, -logits)).astype(np.float32)

    def accepted(
        self,
        best: TopK,
        log_sum: NDArray[np.float64] | None,
        T: int,
        deeper: Callable[[NDArray[np.int64], int], TopK],
    ) -> Accepted:
        """All classes that reach the threshold, best first.

        Args:
            best: the top k of all n images. T: number of candidates.
            deeper: the top classes of some images to a depth, where all k are accepted.
        """
        assert self.threshold is not None, "there is a threshold"
        least = np.float32(self.threshold)
        left, (score, classes) = np.arange(len(best[0])), best
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        while len(left):
            value = self.values(score, None if log_sum is None else log_sum[left])
            passed = value >= least
            depth = score.shape[1]
            more = passed.all(axis=1) & (depth < T)
            row, column = np.nonzero(passed & ~more[:, None])
            found.append((left[row], classes[row, column], value[row, column]))
            left = left[more]
            if len(left):
                score, classes = deeper(left, min(_MORE * depth, T))
        rows, classes, values = (np.concatenate(part) for part in zip(*found, strict=True))
        order = np.argsort(rows, kind="stable")
        counts = np.bincount(rows, minlength=len(best[0]))
        return Accepted(counts=counts, classes=classes[order], values=values[order])
