"""Optimised product quantization: an orthonormal projection learned with the codebooks.

Ge, He, Ke and Sun, "Optimized Product Quantization" (PAMI 2014). It starts from the parametric
solution (principal axes allocated so that all sub-spaces have equal products of variances), then
alternates: codes, codewords, and the rotation that best maps x to q (orthogonal Procrustes).
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
    """Settings of pq, and of the rotation."""

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

    def _check_width(self, dataset_info: TrainingSetInfo) -> None:
        D = self.settings.D or dataset_info.dx
        if dataset_info.dx < D or D % self.settings.M:
            raise ConfigError(
                f"D: {D} must be at most the feature width {dataset_info.dx} and a multiple of "
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
        return state.with_arrays({"P": fix_signs(P).astype(np.float32, order="C")})

    def _updates_projection(self, state: State) -> bool:
        return state.iteration < self.settings.iterations

    def _advance(self, state: State) -> State:
        return advance_and_polish(self, state, self.settings.iterations, self.settings.polish)

    def _next_projection(self, state: State, stats: Stats) -> State:
        if not self._updates_projection(state):
            return state
        left, _, right = np.linalg.svd(stats.sums["qx"], full_matrices=False)
        P = (left @ right).astype(np.float32, order="C")
        # The codeword sums are those of the old P, so the objective of the new P and codebooks is
        # known only after the next pass.
        return state.with_arrays({"P": P})


def advance_and_polish(method: PQ, state: State, iterations: int, polish: int) -> State:
    """The state for the next pass: ``iterations`` joint passes, which also update the embedding,
    then ``polish`` passes, which update the codebooks only. Each part ends early when its objective
    converges, the polish not while empty codewords still obtain rows.

    Codewords lag one pass behind the embedding. Without the polish they would not be the means of
    their rows in the final embedding, and re-seeded codewords could stay empty.
    """
    iteration = state.iteration + 1
    if iteration < iterations:
        settled = method.converged(state, "objective")
        return replace(state, iteration=iterations if settled else iteration)
    settled = (
        state.iteration >= iterations
        and method.converged(state, "quantization_error")
        and not _refilling(state, iterations)
    )
    finished = iteration >= iterations + polish or settled
    return replace(state, phase="done" if finished else state.phase, iteration=iteration)


def _refilling(state: State, iterations: int) -> bool:
    """Whether empty codewords, which every pass re-seeds, may obtain rows in the next one.

    After the first pass of the polish that is unknown, because the embedding changed before it.
    """
    before, empty = [0, *(int(entry["empty"]) for entry in state.history)][-2:]
    return empty > 0 and (state.iteration == iterations or empty < before)
