"""Methods whose embeddings are solved in closed form from second moments of the data.

One pass gives G = XXᵀ, S = XYᵀ and the class counts, besides the rows that seed the codebooks.
The matrices here are as in the papers, one column an image or a class.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypq.config import Positive
from raypq.errors import ConfigError, InputError
from raypq.methods.base import (
    Array,
    MethodSettings,
    Normalise,
    State,
    Stats,
    TrainBatch,
    TrainingSetInfo,
    check_embeddings,
)
from raypq.methods.pq import PQ, PQSettings
from raypq.methods.support.linear_model import normalise
from raypq.methods.support.statistics import PRODUCT_ROWS, gram, scale

Matrix = NDArray[Any]  # float64; NumPy types its linear algebra only loosely
_FLOOR = 1e-10  # of the largest divisor
_GRAM_NOISE = 4e-9  # of the trace: what float32 products leave where there should be nothing


class MomentsSettings(PQSettings):
    """As pq, for methods that learn from class embeddings."""

    normalise: Normalise = "unit"
    attributes: Normalise = Field("unit", description="normalisation of class embeddings")


class SpanSettings(MomentsSettings):
    """For methods whose common space is the span of the prototypes."""

    M: Positive = Field(64, description="sub-codebooks; the common space is padded to a multiple")


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What the embeddings need of the data.

    Attributes:
        G: XXᵀ [dx, dx]. S: XYᵀ [dx, L]. n: images of each class [L]. A: attributes [da, L].
    """

    G: Matrix
    S: Matrix
    n: Matrix
    A: Matrix


class MomentsPQ(PQ):
    """PQ over an embedding that the moments give before the first assignment."""

    settings_class: ClassVar[type[MethodSettings]] = MomentsSettings
    needs_classes = True
    needs_embeddings = True
    settings: MomentsSettings

    @abstractmethod
    def _embedding(self, state: State, data: Moments) -> dict[str, Array]:
        """Arrays ``P`` [D, dx] and ``Q`` [D, da] (and others that the method keeps)."""

    def _check_width(self, corpus: TrainingSetInfo) -> None:
        if corpus.A is None:
            raise ConfigError(f"{self.name} needs a class table: pass --classes (classes)")
        check_embeddings(corpus.A)
        rank = self._rank(corpus)
        if rank < self.settings.M:
            raise ConfigError(
                f"M: {self.settings.M} sub-codebooks are more than the {rank} dimensions of the "
                f"common space ({corpus.L} training classes, class embeddings of width "
                f"{corpus.A.shape[1]})"
            )

    def _rank(self, corpus: TrainingSetInfo) -> int:
        """Dimensions that the common space has before it is padded."""
        assert corpus.A is not None, "checked before"
        return min(corpus.L, corpus.A.shape[1], corpus.dx)

    def _constants(self, corpus: TrainingSetInfo) -> dict[str, Array]:
        assert corpus.A is not None, "checked before"
        raw = corpus.A.astype(np.float64)
        fitted = scale(np.array(float(len(raw))), raw.sum(axis=0), (raw * raw).sum(axis=0))
        how = self.settings.attributes
        constants = {f"class_{name}": value for name, value in fitted.items()}
        A = normalise(corpus.A, how, fitted["mean"], fitted["inverse_std"])
        names = np.array(corpus.names or range(corpus.L), dtype=np.str_)
        return {"A": A, "names": names, **(constants if how.startswith("zscore") else {})}

    def _accumulate_sample(self, state: State, batch: TrainBatch, X: NDArray[np.float32]) -> Stats:
        stats = super()._accumulate_sample(state, batch, X)
        assert batch.y is not None, "the training stage refuses rows without a label"
        L = len(state.arrays["A"])
        stats.sums |= {
            "G": gram(X),
            "S": class_sums(X, batch.y, L),
            "n": np.bincount(batch.y, minlength=L).astype(np.float64),
        }
        return stats

    def _first_projection(self, state: State, stats: Stats) -> State:
        sums = stats.sums
        empty = state.arrays["names"][sums["n"] == 0]
        if len(empty):
            raise InputError(
                "training classes",
                expected="at least one image of each seen class",
                found=f"none of {', '.join(empty[:5])}{', …' if len(empty) > 5 else ''} "
                f"({len(empty)} in all; mark classes without images as not seen)",
            )
        state = state.then({"_G": sums["G"], "_S": sums["S"], "_n": sums["n"]})
        return state.then(self._embedding(state, moments(state)))


def moments(state: State) -> Moments:
    """The moments that a state holds since its first pass."""
    arrays = state.arrays
    return Moments(
        G=arrays["_G"], S=arrays["_S"], n=arrays["_n"], A=arrays["A"].astype(np.float64).T
    )


def class_sums(X: NDArray[np.float32], y: NDArray[np.int32], L: int) -> Matrix:
    """XYᵀ [dx, L]: the sum of the rows of each class, float64."""
    order = np.argsort(y, kind="stable")
    classes, starts = np.unique(y[order], return_index=True)
    S = np.zeros((X.shape[1], L))
    if len(y):
        S[:, classes] = np.add.reduceat(X[order].astype(np.float64), starts, axis=0).T
    return S


def solve_sylvester(
    A: Matrix, B: Matrix, target: tuple[Matrix, Matrix], a: float, b: float
) -> Matrix:
    """W [p, q] of a·A W + b·W B = (a + b) X Yᵀ, for symmetric A [p, p] and B [q, q] without
    negative eigenvalues, and ``target``, X [p, L] and Y [q, L].

    The eigenvectors of both turn it into a division; where that is by nearly nothing W is zero.
    """
    X, Y = target
    of_A, left = np.linalg.eigh(A)
    of_B, right = np.linalg.eigh(B)
    wanted = (a + b) * (left.T @ X @ Y.T @ right)
    divisor = a * np.maximum(of_A, 0)[:, None] + b * np.maximum(of_B, 0)[None, :]
    floor = _FLOOR * divisor.max()
    return left @ np.where(divisor > floor, wanted / np.maximum(divisor, floor), 0.0) @ right.T


def solve_ridge(
    A: Matrix, ridge: float, B: Matrix, *, setting: str, of: str, images: float | None = None
) -> Matrix:
    """(A + ridge·I)⁻¹ B for a symmetric A [n, n] without negative eigenvalues and B [n, b].

    Args:
        setting: what the ridge is called. of: what A is called.
        images: rows whose products were summed for A in float32 blocks (``gram``); None: float64.

    Raises:
        ConfigError: the matrix is singular up to rounding, so that any answer would be noise.
    """
    left = A + ridge * np.eye(len(A))
    rounding = len(A) * np.finfo(np.float64).eps
    if images is not None:
        # Measured: where A has no rank left its eigenvalues are up to 2e-9 of the trace for one
        # block; the errors of blocks cancel as they add up. Features of real images with three
        # rows a dimension have 1e-8.
        rounding = max(rounding, _GRAM_NOISE / max(1.0, images / PRODUCT_ROWS) ** 0.5)
    noise = rounding * float(np.trace(left))
    try:
        if ridge <= noise and np.linalg.eigvalsh(left)[0] <= noise:
            raise np.linalg.LinAlgError
        return np.linalg.solve(left, B)
    except np.linalg.LinAlgError:
        raise ConfigError(
            f"{setting}: {of} is singular up to rounding with {setting} = {ridge:g}, as where "
            "there are fewer rows than dimensions or dimensions repeat each other; set a larger "
            f"{setting}"
        ) from None
