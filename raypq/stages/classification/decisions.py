"""Probabilities of predictions, and the classes that reach a threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from raypq import console
from raypq.config import ClassificationTarget, ClassifyJob
from raypq.data.classes import ClassTable
from raypq.data.predictions import Accepted
from raypq.errors import ConfigError
from raypq.kernels.tables import vectors_of
from raypq.stages.classification.class_groups import Rows, TopK
from raypq.stages.classification.scorers import ClassScorer, Group

_MORE = 4  # times as many classes are found for images of which all are accepted


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How scores become probabilities, and which classes are accepted.

    Attributes:
        scale: of scores, for the logits; None: scores are compared as they are.
        offset: added to the logits of a sigmoid.
        of_encoder: whether the scale is the encoder's.
        threshold: least probability (or score) of an accepted class; None: none are listed.
    """

    scale: float | None
    offset: float
    kind: Literal["softmax", "sigmoid"]
    threshold: float | None
    of_encoder: bool = False

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
        return cls(
            scale=scale,
            offset=offset,
            kind=job.probability,
            threshold=job.threshold,
            of_encoder=job.logit_scale == "encoder",
        )

    def check(self, scorer: ClassScorer, where: str) -> None:
        """Refuses scores that are no cosines, or not those of the class table's encoder.

        Args:
            where: the model, for errors.

        Raises:
            ConfigError: naming the metric or the model.
        """
        if self.scale is None:
            return
        if scorer.metric == "l2":
            raise ConfigError(
                f"logit_scale: {where} scores by l2, whose scores are distances; pass --metric "
                "cosine (metric: cosine)"
            )
        model = scorer.model
        if self.of_encoder and (model.da is not None or model.classes_by_id):
            raise ConfigError(
                f"logit_scale: {where} ({model.method}) has a projection of classes or weights of "
                "its own, so its scores are not the cosines of the encoder; name a number"
            )

    @property
    def has_softmax(self) -> bool:
        """Whether probabilities are those of a softmax over all candidates."""
        return self.scale is not None and self.kind != "sigmoid"

    def log_sums(
        self,
        rows: Rows,
        groups: Mapping[str, Group],
        device: str,
    ) -> NDArray[np.float64] | None:
        """The normaliser [n] of a softmax over all candidates, relative to the logit of the best
        class, for codes [n, M] or vectors [n, D]; None where there is no softmax."""
        if self.scale is None or not self.has_softmax:
            return None
        from raypq.kernels.softmax import log_sum_exp  # here, since it imports torch

        # The groups are of one model, so that their codebooks decode alike.
        q, squared = vectors_of(rows, next(iter(groups.values())).like)
        parts = [
            log_sum_exp(q, squared, tables, self.scale, owner=owner, device=device)
            for group in groups.values()
            for _, tables, owner in group.parts()
        ]
        best = np.max([top for top, _ in parts], axis=0)
        sums = [total + self.scale * (top - best) for top, total in parts]
        return np.asarray(np.logaddexp.reduce(sums, axis=0))

    def values(
        self, score: NDArray[np.float32], log_sum: NDArray[np.float64] | None
    ) -> NDArray[np.float32]:
        """Probabilities of scores [n, k], best first, or the scores where there is no scale."""
        if self.scale is None:
            return score
        logits = self.scale * score.astype(np.float64)
        if log_sum is not None:
            return np.exp(logits - logits[:, :1] - log_sum[:, None]).astype(np.float32)
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


def check_decision(job: ClassifyJob, table: ClassTable, scorers: Mapping[str, ClassScorer]) -> None:
    """Refuses probabilities of scores that have none, and warns of a threshold of scores of several
    models.

    Raises:
        ConfigError: as ``Decision.of`` and ``Decision.check``.
    """
    decision = Decision.of(job, table)
    if decision is None:
        return
    for scorer in scorers.values():
        decision.check(scorer, f"the {scorer.model.method} model")
    if decision.scale is None and len(scorers) > 1:
        console.warn(
            f"{job.output}: the threshold {job.threshold} is of scores, and the shards are of "
            f"{len(scorers)} models, whose scores have no common scale"
        )
