"""Optimised product quantization: an orthonormal projection learned with the codebooks.

Ge, He, Ke and Sun, "Optimized Product Quantization" (PAMI 2014): started from the parametric
solution (principal axes dealt out so that all sub-spaces have equal products of variances), then
alternated: codes, codewords, and the rotation that best maps x to q (orthogonal Procrustes).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypq.config import Positive
from raypq.errors import ConfigError
from raypq.methods.base import MethodSettings, State, Stats, TrainBatch, TrainingSetInfo
from raypq.methods.pq import PQ, PQModel, PQSettings
from raypq.methods.support.axis_allocation import allocate, fix_signs
from raypq.methods.support.linear_model import LinearModel
from raypq.methods.support.statistics import gram


class OPQSettings(PQSettings):
    """As pq, with a rotation."""

    D: Positive | None = Field(None, description="width after projection; default: dx")
    polish: int = Field(10, ge=0, description="passes for the codebooks alone, rotation fixed")


class OPQModel(PQModel):
    method = "opq"


class OPQ(PQ):
    """PQ after a learned rotation P [D, dx] with orthonormal rows."""

    name = "opq"
    settings_class: ClassVar[type[MethodSettings]] = OPQSettings
    model_class: ClassVar[type[LinearModel]] = OPQModel
    settings: OPQSettings

    def _check_width(self, corpus: TrainingSetInfo) -> None:
        D = self.settings.D or corpus.dx
        if corpus.dx < D or D % self.settings.M:
            raise ConfigError(
                f"D: {D} must be at most the feature width {corpus.dx} and a multiple of "
                f"M = {self.settings.M}"
            )

    def _accumulate_sample(self, state: State, batch: TrainBatch, X: NDArray[np.float32]) -> Stats:
        stats = super()._accumulate_sample(state, batch, X)
        stats.sums["G"] = gram(X)
        return stats

    def _first_projection(self, state: State, stats: Stats) -> State:
        D = self.settings.D or int(state.arrays["dx"])
        variance, axes = np.linalg.eigh(stats.sums["G"])
        order = np.argsort(variance)[::-1][:D]
        P = axes.T[order][allocate(variance[order], self.settings.M)]
        return state.then({"P": fix_signs(P).astype(np.float32, order="C")})

    def _moves_projection(self, state: State) -> bool:
        return state.iteration < self.settings.iterations

    def _advance(self, state: State) -> State:
        return advance_and_polish(self, state, self.settings.iterations, self.settings.polish)

    def _next_projection(self, state: State, stats: Stats) -> State:
        if not self._moves_projection(state):
            return state
        left, _, right = np.linalg.svd(stats.sums["qx"], full_matrices=False)
        P = (left @ right).astype(np.float32, order="C")
        # The codeword sums were taken under the old P; Σu moves with it to first order only, so
        # the next pass measures what the new pair is worth.
        return state.then({"P": P})


def advance_and_polish(method: PQ, state: State, iterations: int, polish: int) -> State:
    """On to the next pass: ``iterations`` that move the embedding too, then ``polish`` that move
    the codebooks alone. Each part ends early when what it lowers stops falling, the second one not
    while empty codewords find rows.

    Codewords follow a moving embedding one pass behind, so without the polish they would not be
    the means of the rows that the final embedding gives them, and re-seeded ones could miss.
    """
    iteration = state.iteration + 1
    if iteration < iterations:
        settled = method.stalled(state, "objective")
        return replace(state, iteration=iterations if settled else iteration)
    settled = (
        state.iteration >= iterations
        and method.stalled(state, "quantization_error")
        and not _refilling(state, iterations)
    )
    over = iteration >= iterations + polish or settled
    return replace(state, phase="done" if over else state.phase, iteration=iteration)


def _refilling(state: State, iterations: int) -> bool:
    """Whether codewords without rows, which each pass seeds anew, may have rows after the next.

    The first pass of the polish says nothing of that: the embedding stood still only after it.
    """
    before, now = [0, *(int(note["empty"]) for note in state.history)][-2:]
    return now > 0 and (state.iteration == iterations or now < before)
