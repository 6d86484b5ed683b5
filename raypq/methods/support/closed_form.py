"""Methods whose embeddings are solved in closed form from second moments of the data.

One pass gives G = XXᵀ, S = XYᵀ and the class counts, and the rows that seed the codebooks. Matrices
are as in the papers, with images or classes as columns.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypq.config import Positive
from raypq.errors import ConfigError, InputError
from raypq.methods.base import (
    Array,
    MethodSettings,
    Normalise,
    Rows,
    State,
    Stats,
    TrainBatch,
    TrainingSetInfo,
)
from raypq.methods.pq import PQ, PQSettings
from raypq.methods.support.linear_model import LinearModel, class_scaling
from raypq.methods.support.normalisation import Attributes, normalise
from raypq.methods.support.statistics import PRODUCT_ROWS, check_embeddings, scale

Matrix = NDArray[Any]  # float64; NumPy's linear algebra is typed loosely
_FLOOR = 1e-10  # divisors below this share of the largest one count as zero
_GRAM_NOISE = 4e-9  # rounding errors of ``gram`` in the eigenvalues, as a share of the trace


class MomentsSettings(PQSettings):
    """Settings of pq, for methods that learn from class embeddings."""

    normalise: Normalise = "unit"
    attributes: Attributes = Field(
        "centre-unit", description="normalisation of class embeddings; unit: as published"
    )


class ClassScaleSettings(MomentsSettings):
    """Settings of methods whose class scores may be scaled by their spread (``MomentsPQ``)."""

    score_scale: Literal["class", "none"] = Field(
        "class",
        description="divide the scores of each class by their root mean square over the training "
        "images, and compare by dot product; none (and metric l2): as published",
    )

    @property
    def scales_scores(self) -> bool:
        """Whether scores are scaled."""
        return self.score_scale == "class" and self.metric != "l2"


class SpanSettings(MomentsSettings):
    """Settings of methods whose common space is the span of the prototypes."""

    M: Positive = Field(64, description="sub-codebooks; the common space is padded to a multiple")


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Second moments of the training data.

    Attributes:
        G: XXᵀ [dx, dx]. S: XYᵀ [dx, L]. n: images of each class [L]. A: attributes [da, L].
    """

    G: Matrix
    S: Matrix
    n: Matrix
    A: Matrix


class MomentsPQ(PQ):
    """PQ over an embedding computed from the moments before the first assignment."""

    settings_class: ClassVar[type[MethodSettings]] = MomentsSettings
    needs_classes = True
    needs_embeddings = True
    settings: MomentsSettings

    # Over all images, scores of some classes vary more than those of others, of seen classes more
    # than of unseen ones. Without ``score_scale`` they win more often than they should.

    @abstractmethod
    def _embedding(self, state: State, data: Moments) -> dict[str, Array]:
        """Arrays ``P`` [D, dx] and ``Q`` [D, da], and others that the method needs."""

    def _check_width(self, dataset_info: TrainingSetInfo) -> None:
        if dataset_info.A is None:
            raise ConfigError(f"{self.name} needs a class table: pass --classes (classes)")
        check_embeddings(dataset_info.A)
        rank = self._rank(dataset_info)
        if rank < self.settings.M:
            raise ConfigError(
                f"M: {self.settings.M} sub-codebooks are more than the {rank} dimensions of the "
                f"common space ({dataset_info.L} training classes, class embeddings of width "
                f"{dataset_info.A.shape[1]}); set M to {rank} at most (--set M={rank}, settings.M)"
            )

    def _rank(self, dataset_info: TrainingSetInfo) -> int:
        """Dimensions of the common space before padding."""
        assert dataset_info.A is not None, "checked before"
        return min(dataset_info.L, dataset_info.A.shape[1], dataset_info.dx)

    def _constants(self, dataset_info: TrainingSetInfo) -> dict[str, Array]:
        assert dataset_info.A is not None, "checked before"
        raw = dataset_info.A.astype(np.float64)
        fitted = scale(np.array(float(len(raw))), raw.sum(axis=0), (raw * raw).sum(axis=0))
        scheme = self.settings.attributes
        constants = {f"class_{name}": value for name, value in fitted.items()}
        A = normalise(dataset_info.A, scheme, fitted["mean"], fitted["inverse_std"])
        names = np.array(dataset_info.names or range(dataset_info.L), dtype=np.str_)
        return {"A": A, "names": names, **{name: constants[name] for name in class_scaling(scheme)}}

    def _accumulate_sample(self, state: State, batch: TrainBatch, X: Rows) -> Stats:
        stats = super()._accumulate_sample(state, batch, X)
        assert batch.y is not None, "the training stage refuses rows without a label"
        L = len(state.arrays["A"])
        stats.sums |= {
            "G": X.gram(),
            "S": X.class_sums(batch.y, L),
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
        state = state.with_arrays({"_G": sums["G"], "_S": sums["S"], "_n": sums["n"]})
        return state.with_arrays(self._embedding(state, moments(state)))

    def _build(self, state: State) -> LinearModel:
        settings = self.settings
        if isinstance(settings, ClassScaleSettings) and settings.scales_scores:
            state = state.with_arrays({"moment": self._moment(state)})
        return super()._build(state)

    def _moment(self, state: State) -> Matrix:
        """Second moment of the training images in the space of prototypes [D, D]."""
        data, P = moments(state), self._image_map(state)
        return P @ data.G @ P.T / float(data.n.sum())

    def _image_map(self, state: State) -> Matrix:
        """The map of images to the space of prototypes, float64."""
        P: Matrix = state.arrays["P"].astype(np.float64)
        return P


def moments(state: State) -> Moments:
    """The moments in a state, after the first pass."""
    arrays = state.arrays
    return Moments(
        G=arrays["_G"], S=arrays["_S"], n=arrays["_n"], A=arrays["A"].astype(np.float64).T
    )


def ridge_of(ridge: float | None, share: float, data: Moments) -> float:
    """``ridge``, or if it is None this share of the trace of XXᵀ, which is the number of images if
    rows have unit length; and taken to be that if all rows are zero."""
    return share * (float(np.trace(data.G)) or float(data.n.sum())) if ridge is None else ridge


def solve_sylvester(
    A: Matrix, B: Matrix, target: tuple[Matrix, Matrix], a: float, b: float
) -> Matrix:
    """W [p, q] of a·A W + b·W B = (a + b) X Yᵀ, for symmetric A [p, p] and B [q, q] without
    negative eigenvalues, and ``target``, X [p, L] and Y [q, L].

    In the eigenbases of A and B it is a division by element; W is zero where a divisor nearly is.
    """
    X, Y = target
    of_A, left = np.linalg.eigh(A)
    of_B, right = np.linalg.eigh(B)
    rhs = (a + b) * (left.T @ X @ Y.T @ right)
    divisor = a * np.maximum(of_A, 0)[:, None] + b * np.maximum(of_B, 0)[None, :]
    floor = _FLOOR * divisor.max()
    return left @ np.where(divisor > floor, rhs / np.maximum(divisor, floor), 0.0) @ right.T


def solve_ridge(
    A: Matrix, ridge: float, B: Matrix, *, setting: str, of: str, images: float | None = None
) -> Matrix:
    """(A + ridge·I)⁻¹ B for a symmetric A [n, n] without negative eigenvalues and B [n, b].

    Args:
        setting, of: names of the ridge and of A, for errors.
        images: rows of which A is the ``gram`` (float32 blocks); None: A is exact to float64.

    Raises:
        ConfigError: the matrix is singular up to rounding, so that a solution would be noise.
    """
    left = A + ridge * np.eye(len(A))
    rounding = len(A) * np.finfo(np.float64).eps
    if images is not None:
        # Measured: eigenvalues that should be zero are up to 2e-9 of the trace for one block, and
        # the errors of several blocks partly cancel. The least eigenvalue of features of real
        # images, three rows a dimension, is 1e-8 of the trace.
        rounding = max(rounding, _GRAM_NOISE / max(1.0, images / PRODUCT_ROWS) ** 0.5)
    noise = rounding * float(np.trace(left))
    try:
        if ridge <= noise and np.linalg.eigvalsh(left)[0] <= noise:
            raise np.linalg.LinAlgError
        return np.linalg.solve(left, B)
    except np.linalg.LinAlgError:
        raise ConfigError(
            f"{setting}: {of} is singular up to rounding with {setting} = {ridge:g}, as with fewer "
            f"rows than dimensions or with dimensions that repeat; set a larger {setting}"
        ) from None
