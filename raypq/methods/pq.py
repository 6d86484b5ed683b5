"""Product quantization: k-means in each of M parts (Jégou et al.; PQZSL section 2.2, eq. 4–6).

Also the base of the other reduction methods, which add an embedding and its update. Passes over
the data: ``scale`` (only for z-scoring), ``sample``, then ``assign`` until the objective converges.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypq.config import Positive
from raypq.errors import ConfigError, InputError
from raypq.methods.base import (
    Array,
    MethodSettings,
    ReductionMethod,
    Rows,
    State,
    Stats,
    TrainBatch,
    TrainingSetInfo,
)
from raypq.methods.support import codebooks
from raypq.methods.support.linear_model import LinearModel
from raypq.methods.support.rows import HostRows
from raypq.methods.support.statistics import scale

_SMALLEST = 1e-16  # least magnitude of a sample, so that squared differences stay normal numbers

# The arrays of the final state that the model contains.
TENSORS = (
    "C", "P", "Q", "W", "moment", "mean", "inverse_std", "class_mean", "class_inverse_std",
    "image_mean",
)  # fmt: skip


class PQSettings(MethodSettings):
    """Plain product quantization."""

    iterations: Positive = Field(25, description="passes of Lloyd's algorithm at most")
    tolerance: float = Field(
        1e-4, ge=0, description="stop when the objective falls by less, relatively"
    )
    sample: Positive = Field(16384, description="rows to initialise the codebooks from")
    rows_per_codeword: int = Field(
        512,
        ge=0,
        description="train the codebooks on a sample of the rows, so many for each of K codewords; "
        "0: on all rows",
    )


class PQModel(LinearModel):
    method = "pq"


class PQ(ReductionMethod):
    """k-means per sub-space; the embedding is the identity."""

    name = "pq"
    settings_class: ClassVar[type[MethodSettings]] = PQSettings
    model_class: ClassVar[type[LinearModel]] = PQModel
    settings: PQSettings

    def begin(self, dataset_info: TrainingSetInfo) -> State:
        _check_rows(dataset_info, self.settings)
        self._check_width(dataset_info)
        rng = np.random.default_rng([self.settings.seed, 0])
        size = max(self.settings.sample, self.settings.K)
        sampled = self._sampled(dataset_info)
        of = dataset_info.N if sampled is None else sampled
        n = dataset_info.N if sampled is None else len(sampled)
        rows = np.sort(rng.choice(of, min(size, n), replace=False))
        phase = "scale" if self.settings.normalise.startswith("zscore") else "sample"
        return State(
            phase=phase,
            arrays={
                "rows": rows,
                "dx": np.array(dataset_info.dx),
                **({} if sampled is None else {"sampled": sampled}),
                **self._constants(dataset_info),
            },
        )

    def _sampled(self, dataset_info: TrainingSetInfo) -> NDArray[np.int64] | None:
        """The rows that the codebooks are trained on, ascending; None: all."""
        N, n = dataset_info.N, self.settings.rows_per_codeword * self.settings.K
        if not 0 < n < N:
            return None
        rng = np.random.default_rng([self.settings.seed, 5])
        return np.sort(rng.choice(N, n, replace=False))

    def rows_of_pass(self, state: State) -> NDArray[np.int64] | None:
        return None if state.phase in ("scale", "sample") else state.arrays.get("sampled")

    def rows_of_later_passes(self, state: State) -> NDArray[np.int64] | None:
        return None if state.phase == "scale" else state.arrays.get("sampled")

    def _check_width(self, dataset_info: TrainingSetInfo) -> None:
        if dataset_info.dx % self.settings.M:
            raise ConfigError(
                f"M: {self.settings.M} sub-codebooks must divide the feature width "
                f"{dataset_info.dx}"
            )

    def _constants(self, dataset_info: TrainingSetInfo) -> dict[str, Array]:
        """Arrays that do not change during training."""
        return {}

    def accumulate(self, state: State, batch: TrainBatch, rows: Rows | None = None) -> Stats:
        rows = HostRows(batch.X) if rows is None else rows
        if state.phase == "scale":
            n = np.array(float(len(rows)))
            return Stats(sums={"n": n, "x": rows.total(), "xx": rows.squares()})
        X = rows if batch.embedded else self._normalised(state, rows)
        if state.phase == "sample":
            return self._accumulate_sample(state, batch, X)
        return self._accumulate_assign(state, X if batch.embedded else self._project(state, X), X)

    def embedded(self, state: State, batch: TrainBatch) -> TrainBatch | None:
        if not self._embeds_finally(state):
            return None
        U = self._project(state, self._normalised(state, HostRows(batch.X)))
        return replace(batch, X=U.chosen(np.arange(len(U))), embedded=True)

    def _embeds_finally(self, state: State) -> bool:
        """Whether the projection of this pass is that of the model."""
        return "P" in state.arrays and not self._updates_projection(state)

    def _normalised(self, state: State, rows: Rows) -> Rows:
        arrays = state.arrays
        return rows.normalised(
            self.settings.normalise, arrays.get("mean"), arrays.get("inverse_std")
        )

    def _accumulate_sample(self, state: State, batch: TrainBatch, X: Rows) -> Stats:
        return Stats(rows={"sample": [X.chosen(batch.positions(state.arrays["rows"]))]})

    def _accumulate_assign(self, state: State, U: Rows, X: Rows) -> Stats:
        """Statistics of embedded rows U, of rows X."""
        C = state.arrays["C"]
        B = U.codes(C)
        count, total, error = U.codeword_sums(B, C)
        stats = Stats(sums={"count": count, "total": total, "error": error})
        if self._updates_projection(state):
            stats.sums["qx"] = X.reconstruction_product(B, C)
        return stats

    def _project(self, state: State, X: Rows) -> Rows:
        return X.projected(state.arrays["P"]) if "P" in state.arrays else X

    def _updates_projection(self, state: State) -> bool:
        """Whether this pass also needs Σ q(u) xᵀ, to update the projection."""
        return False

    def update(self, state: State, stats: Stats) -> State:
        if state.phase == "scale":
            fitted = scale(stats.sums["n"], stats.sums["x"], stats.sums["xx"])
            return state.with_arrays(fitted, phase="sample")
        if state.phase == "sample":
            sample = self._sample(stats)
            return self._seed_codebooks(self._first_projection(state, stats), sample, stream=1)
        return self._update_assign(state, stats)

    def _seed_codebooks(self, state: State, sample: NDArray[np.float32], *, stream: int) -> State:
        """The state before the first assignment, with codebooks seeded from the embedded sample."""
        U = self._project(state, HostRows(sample)).chosen(np.arange(len(sample)))
        largest = float(np.abs(U).max())
        if 0 < largest < _SMALLEST:
            raise InputError(
                "features, as they are embedded",
                expected=f"values of {_SMALLEST:g} and more, whose squares float32 can hold",
                found=f"none above {largest:.3g}; scale the features up, or train with "
                "normalise=unit or zscore",
            )
        rng = np.random.default_rng([self.settings.seed, stream])
        C = codebooks.seed(U, self.settings.M, self.settings.K, rng)
        return state.with_arrays({"C": C}, phase="assign")

    def _sample(self, stats: Stats) -> NDArray[np.float32]:
        parts = stats.rows.get("sample", [])
        n = sum(len(part) for part in parts)
        if n < self.settings.K:  # some shards were quarantined
            raise ConfigError(
                f"K: {self.settings.K} codewords need at least as many training rows, found {n} "
                "sampled ones in the shards that could be read (rows_per_codeword)"
            )
        return np.concatenate(parts)

    def _first_projection(self, state: State, stats: Stats) -> State:
        """Sets the projection ``P`` after the first pass, in methods that have one."""
        return state

    def _update_assign(self, state: State, stats: Stats) -> State:
        entry = self._objective(state, stats)
        rng = np.random.default_rng([self.settings.seed, 2, state.iteration])
        sums = stats.sums
        error = sums["error"].copy()
        C = codebooks.means(state.arrays["C"], sums["count"], sums["total"], error, rng)
        state = self._next_projection(state, stats).with_arrays({"C": C})
        return self._advance(state.with_history(entry))

    def _objective(self, state: State, stats: Stats) -> dict[str, Any]:
        error = float(stats.sums["error"].sum())
        rows = float(stats.sums["count"][0].sum())
        return {
            "iteration": state.iteration,
            "objective": error / rows,
            "quantization_error": error / rows,
            "usage_entropy": codebooks.usage_entropy(stats.sums["count"]),
            "empty": int((stats.sums["count"] == 0).sum()),
            **({"sampled": int(rows)} if "sampled" in state.arrays else {}),
        }

    def _next_projection(self, state: State, stats: Stats) -> State:
        return state

    def _advance(self, state: State) -> State:
        iteration = state.iteration + 1
        finished = iteration >= self.settings.iterations or self.converged(state, "objective")
        return replace(state, phase="done" if finished else state.phase, iteration=iteration)

    def converged(self, state: State, name: str) -> bool:
        """Whether the last pass lowered a value of the history by no more than the tolerance."""
        if len(state.history) < 2:
            return False
        before, last = state.history[-2:]
        if before.get("sampled") != last.get("sampled"):  # errors of other rows
            return False
        fall: float = before[name] - last[name]
        return fall <= self.settings.tolerance * abs(before[name])

    def _build(self, state: State) -> LinearModel:
        arrays = state.arrays
        return self.model_class(
            settings=self.settings,
            tensors={name: arrays[name].astype(np.float32) for name in TENSORS if name in arrays},
            dx=int(arrays["dx"]),
            da=int(arrays["Q"].shape[1]) if "Q" in arrays and "image_mean" not in arrays else None,
            record={"history": [dict(entry) for entry in state.history]},
        )


def _check_rows(dataset_info: TrainingSetInfo, settings: PQSettings) -> None:
    """Refuses a training set with fewer rows than codewords.

    Raises:
        ConfigError: naming both numbers.
    """
    if dataset_info.N < settings.K:
        raise ConfigError(
            f"K: {settings.K} codewords need at least as many training rows, found {dataset_info.N}"
        )
