"""Optimised product quantization: an orthonormal projection learned with the codebooks.

Ge, He, Ke and Sun, "Optimized Product Quantization" (PAMI 2014). It starts from the parametric
solution (principal axes allocated so that all sub-spaces have equal products of variances), then
alternates: codes, codewords, and the rotation that best maps x to q (orthogonal Procrustes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypq.config import Positive
from raypq.errors import ConfigError
from raypq.methods.base import (
    Array,
    MethodSettings,
    Rows,
    State,
    Stats,
    TrainBatch,
    TrainingSetInfo,
)
from raypq.methods.pq import PQ, PQModel, PQSettings
from raypq.methods.support.aligned_space import score_maps
from raypq.methods.support.axis_allocation import allocate, fix_signs
from raypq.methods.support.linear_model import LinearModel
from raypq.methods.support.normalisation import normalise
from raypq.methods.support.statistics import check_embeddings


class OPQSettings(PQSettings):
    """Settings of pq, and of the rotation."""

    D: Positive | None = Field(None, description="width after projection; default: dx")
    rows_per_codeword: int = Field(
        1024,
        ge=0,
        description="train codebooks and rotation on a sample of the rows, so many for each of K "
        "codewords; 0: on all rows",
    )
    polish: int = Field(10, ge=0, description="passes for the codebooks alone, rotation fixed")


class OPQModel(PQModel):
    method = "opq"


class OPQ(PQ):
    """PQ after a learned rotation P [D, dx] with orthonormal rows; or, for classes in the space of
    the features, after a rotation of the axes that their scores depend on."""

    name = "opq"
    settings_class: ClassVar[type[MethodSettings]] = OPQSettings
    model_class: ClassVar[type[LinearModel]] = OPQModel
    aligned_defaults: ClassVar[Mapping[str, Any] | None] = {"metric": "dot", "normalise": "unit"}
    settings: OPQSettings

    def _check_width(self, dataset_info: TrainingSetInfo) -> None:
        D = self.settings.D or dataset_info.dx
        if dataset_info.dx < D or D % self.settings.M:
            raise ConfigError(
                f"D: {D} must be at most the feature width {dataset_info.dx} and a multiple of "
                f"M = {self.settings.M}"
            )
        if dataset_info.aligned is not None:
            self._check_aligned(dataset_info.aligned)

    def _check_aligned(self, V: NDArray[np.float32]) -> None:
        settings = self.settings
        if settings.metric != "dot" or settings.normalise not in ("none", "unit"):
            raise ConfigError(
                "metric, normalise: with a class table, opq makes codes for metric: dot and "
                "normalise: unit (cosines) or none; z-scoring would apply statistics of images to "
                f"classes; found metric: {settings.metric} and normalise: {settings.normalise}"
            )
        if len(V) < 2:
            raise ConfigError(
                f"classes: expected at least 2 classes to fit codes to, found {len(V)}; leave out "
                "classes"
            )
        check_embeddings(V)

    def _constants(self, dataset_info: TrainingSetInfo) -> dict[str, Array]:
        if dataset_info.aligned is None:
            return {}
        V = normalise(dataset_info.aligned, self.settings.normalise)
        return {"_V": V, "aligned": np.array(len(V))}

    def _accumulate_sample(self, state: State, batch: TrainBatch, X: Rows) -> Stats:
        stats = super()._accumulate_sample(state, batch, X)
        stats.sums["G"] = X.gram()
        if "aligned" in state.arrays:
            stats.sums |= {"n": np.array(float(len(X))), "x": X.total()}
        return stats

    def _first_projection(self, state: State, stats: Stats) -> State:
        D = self.settings.D or int(state.arrays["dx"])
        if "_V" in state.arrays:
            return self._first_score_maps(state, stats, D)
        variance, axes = np.linalg.eigh(stats.sums["G"])
        order = np.argsort(variance)[::-1][:D]
        P = axes.T[order][allocate(variance[order], self.settings.M)]
        return state.with_arrays({"P": fix_signs(P).astype(np.float32, order="C")})

    def _first_score_maps(self, state: State, stats: Stats, D: int) -> State:
        n, mean = stats.sums["n"], stats.sums["x"] / stats.sums["n"]
        covariance = stats.sums["G"] / n - np.outer(mean, mean)
        V = state.arrays["_V"].astype(np.float64)
        P, Q = score_maps(V, covariance, D, self.settings.M)
        maps = {"P": P.astype(np.float32), "Q": Q.astype(np.float32)}
        return state.with_arrays({**maps, "_P0": P, "_Q0": Q, "image_mean": mean})

    def _updates_projection(self, state: State) -> bool:
        return state.iteration < self.settings.iterations

    def _advance(self, state: State) -> State:
        return advance_and_polish(self, state, self.settings.iterations, self.settings.polish)

    def _next_projection(self, state: State, stats: Stats) -> State:
        if not self._updates_projection(state):
            return state
        arrays, qx = state.arrays, stats.sums["qx"]
        if "_P0" in arrays:  # a rotation of the axes of scores
            left, _, right = np.linalg.svd(qx @ arrays["_P0"].T)
            P, Q = (left @ right @ arrays[name] for name in ("_P0", "_Q0"))
            return state.with_arrays({"P": P.astype(np.float32), "Q": Q.astype(np.float32)})
        left, _, right = np.linalg.svd(qx, full_matrices=False)
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
