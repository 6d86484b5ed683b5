"""PQZSL: product quantization and zero-shot embeddings learned together.

Li, Lan, Liu, Wang and Zheng, "Compressing Unknown Images with Product Quantizer for Efficient
Zero-Shot Classification" (CVPR 2019). The objective (eq. 15), with the last term weighted by λ as
the paper's updates have it (eq. 17, 20 and 21; eq. 15 prints αλ, eq. 14 means βλ):

    ‖PX − CB‖² + α‖PX − Z_s‖² + β‖A_s − QᵀZ_s‖² + λ‖QA_s − Z_s‖²,   Z_s ≈ ZY, ZZᵀ = I

Z_s is linear in X plus a constant for each class, Z_s = F·X + H·Y. So the updates need only G =
XXᵀ, S = XYᵀ and the class counts, from one pass, and after each assignment of codes the codeword
sums and Σ q(u)xᵀ: an exact map-reduce. Matrices are as in the paper, with images or classes as
columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypq import kernels
from raypq.config import Metric, Positive
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
from raypq.methods.opq import advance_and_polish
from raypq.methods.pq import PQ, PQModel
from raypq.methods.support.axis_allocation import balanced_axes
from raypq.methods.support.closed_form import (
    ClassScaleSettings,
    Matrix,
    Moments,
    MomentsPQ,
    moments,
    ridge_of,
    solve_ridge,
    solve_sylvester,
)
from raypq.methods.support.linear_model import LinearModel, scaled_by_spread
from raypq.methods.support.matrix_product import product as float32_product
from raypq.methods.support.normalisation import normalise
from raypq.methods.support.parallel_algebra import concurrently, product
from raypq.methods.support.rows import HostRows

# Terms of the objective beside the quantization error.
_TERMS = ("centre", "decode", "encode", "constraint", "ridge")
# Passes that update the embedding see one of so many sampled rows: codes weigh 1 / (1 + α) there.
# Passes of the codebooks alone see all of them.
_JOINT_SHARE = 4
_SHORT = 1e-15  # a length whose square is a normal float32


class PQZSLSettings(ClassScaleSettings):
    """The paper's weights, and settings that it leaves open."""

    M: Positive = Field(37, description="sub-codebooks; the common space is padded to a multiple")
    metric: Metric = "cosine"
    alpha: float = Field(300.0, gt=0, description="weight of the centre loss, eq. 11")
    beta: float = Field(1.0, gt=0, description="weight of reconstructing attributes, eq. 13")
    lam: float = Field(1.0, gt=0, description="weight of projecting attributes, eq. 13")
    gamma: float = Field(1e4, gt=0, description="weight of the constraint Z_s = ZY, eq. 20")
    ridge: float | None = Field(
        None, ge=0, description="added to the diagonal of XXᵀ, eq. 16; default: ridge_share"
    )
    ridge_share: float = Field(1e-3, ge=0, description="ridge as a share of the trace of XXᵀ")
    axes: Literal["embedding", "scores"] = Field(
        "embedding",
        description="axes of the codes: of the embedding as it is learned, or those that scores "
        "depend on, weighted by how much; better with few bytes",
    )
    iterations: Positive = Field(10, description="joint updates of all parameters")
    polish: int = Field(10, ge=0, description="passes for the codebooks alone, embedding fixed")

    def ridge_for(self, data: Moments) -> float:
        """The ridge for these images."""
        return ridge_of(self.ridge, self.ridge_share, data)


@dataclass(frozen=True, kw_only=True, eq=False)
class Products:
    """The products that updates need of Z_s: x = Z_sXᵀ [D, dx], y = Z_sYᵀ [D, L] and z = Z_sZ_sᵀ
    [D, D]."""

    x: Matrix
    y: Matrix
    z: Matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """Parameters other than codebooks: P [D, dx], Q [D, da], Z [D, L], F [D, dx], H [D, L]."""

    P: Matrix
    Q: Matrix
    Z: Matrix
    F: Matrix
    H: Matrix

    @classmethod
    def initial(cls, data: Moments, settings: PQZSLSettings, rng: np.random.Generator) -> Self:
        """Initial values (section 3.2.2): random orthogonal Z, Z_s = ZY, Q and P without codes."""
        L = len(data.n)
        Z, R = np.linalg.qr(rng.standard_normal((L, L)))
        Z = Z * np.sign(np.diag(R))
        zeros = np.zeros((L, data.G.shape[0]))
        start = cls(P=zeros, Q=np.zeros((L, len(data.A))), Z=Z, F=zeros, H=Z)
        products = start.products(data)
        Q, P = concurrently(
            lambda: solve_q(products, data, settings),
            lambda: solve_p(product(Z, data.S.T), data, settings),
        )
        return replace(start, Q=Q, P=P)

    def balanced(self, data: Moments, M: int) -> Self:
        """The embedding rotated so that its parts are easy to quantize, and padded to D.

        The objective is invariant to a common rotation of P, Q, Z and Z_s, so it is free to choose:
        principal axes of PX, allocated so that all M parts have equal products of variances, as in
        parametric OPQ. The zero dimensions that pad L to a multiple of M spread over the parts.
        """
        rotation = balanced_axes(product(product(self.P, data.G), self.P.T), M)
        return replace(self, **{name: product(rotation, getattr(self, name)) for name in "PQZFH"})

    def products(self, data: Moments) -> Products:
        """The products of Z_s, which follow from G, S and n."""
        x = product(self.F, data.G) + product(self.H, data.S.T)
        y = product(self.F, data.S) + self.H * data.n
        return Products(x=x, y=y, z=product(x, self.F.T) + product(y, self.H.T))

    def solve_zs(self, data: Moments, settings: PQZSLSettings) -> tuple[Matrix, Matrix]:
        """Eq. 21 as F and H of Z_s = F·X + H·Y."""
        alpha, beta, lam, gamma = settings.alpha, settings.beta, settings.lam, settings.gamma
        left = (alpha + lam + gamma) * np.eye(len(self.Q)) + beta * self.Q @ self.Q.T
        right = (beta + lam) * self.Q @ data.A + gamma * self.Z
        F, H = concurrently(
            lambda: np.linalg.solve(left, alpha * self.P), lambda: np.linalg.solve(left, right)
        )
        return F, H

    def step(self, qx: Matrix, data: Moments, settings: PQZSLSettings) -> tuple[Self, Products]:
        """Updates Z_s, and by it Z, Q and P, given Σ q(u)xᵀ [D, dx]; and the products of Z_s.

        P and the codebooks are both updated from the codes of the pass before, each with the other
        one fixed. The objective decreases nevertheless: P's own term has weight 1 + α, so the gains
        exceed the cross term of the two updates.
        """
        F, H = self.solve_zs(data, settings)
        new = replace(self, F=F, H=H)
        products = new.products(data)
        target = (qx + settings.alpha * products.x) / (1 + settings.alpha)
        Z, Q, P = concurrently(
            lambda: solve_z(products),
            lambda: solve_q(products, data, settings),
            lambda: solve_p(target, data, settings),
        )
        return replace(new, Z=Z, Q=Q, P=P), products

    def losses(
        self, products: Products, data: Moments, settings: PQZSLSettings
    ) -> dict[str, float]:
        """The weighted terms of the objective other than quantization: those of eq. 15, the relaxed
        constraint of eq. 20, and the ridge of eq. 16 as a penalty."""
        zs_x, zs_y, zs_zs = products.x, products.y, products.z
        zz = float(np.trace(zs_zs))
        pgp = float(np.sum(product(self.P, data.G) * self.P))
        qa = product(self.Q, data.A)
        cross = float(np.sum(zs_y * qa))
        centre = pgp - 2 * float(np.sum(self.P * zs_x)) + zz
        decode = (
            float(np.sum(data.A**2 * data.n))
            - 2 * cross
            + float(np.sum(product(zs_zs, self.Q) * self.Q))
        )
        encode = float(np.sum(qa**2 * data.n)) - 2 * cross + zz
        constraint = zz - 2 * float(np.sum(zs_y * self.Z)) + float(np.sum(self.Z**2 * data.n))
        return {
            "centre": settings.alpha * centre,
            "decode": settings.beta * decode,
            "encode": settings.lam * encode,
            "constraint": settings.gamma * constraint,
            "ridge": (1 + settings.alpha) * settings.ridge_for(data) * float(np.sum(self.P**2)),
        }


def solve_q(products: Products, data: Moments, settings: PQZSLSettings) -> Matrix:
    """Eq. 17, the Sylvester equation β Z_sZ_sᵀ Q + λ Q A_sA_sᵀ = (β + λ) Z_sA_sᵀ: Q [D, da]."""
    return solve_sylvester(
        products.z,
        (data.A * data.n) @ data.A.T,
        (products.y, data.A),
        settings.beta,
        settings.lam,
    )


def solve_z(products: Products) -> Matrix:
    """Eq. 22, orthogonal Procrustes: the Z [D, L] nearest to Z_s on the classes."""
    left, _, right = np.linalg.svd(products.y, full_matrices=False)
    return left @ right


def solve_p(target: Matrix, data: Moments, settings: PQZSLSettings) -> Matrix:
    """Eq. 16: P = target (G + ridge·I)⁻¹ [D, dx].

    Raises:
        ConfigError: G is singular and the ridge is too small.
    """
    ridge, images = settings.ridge_for(data), float(data.n.sum())
    return solve_ridge(data.G, ridge, target.T, setting="ridge", of="XXᵀ", images=images).T


class PQZSLModel(PQModel):
    """As ``LinearModel``. With axes=scores, P includes the map of images to the weighted axes,
    ``W`` [D, L'] is that of prototypes, and a score is their dot product."""

    method = "pqzsl"

    @property
    def metric(self) -> Metric:
        return "dot" if "W" in self.tensors else super().metric

    def prototypes(self, E: Array) -> tuple[Array, NDArray[np.float64]]:
        V, bias = super().prototypes(E)
        if "W" not in self.tensors:
            return V, bias
        # The length of an image does not change its order of classes.
        if self.settings.metric == "cosine" and "moment" not in self.tensors:
            length = np.linalg.norm(V, axis=1, keepdims=True)
            in_range = np.isfinite(length).all() and float(length.min(initial=1.0)) > _SHORT
            V = V / length if in_range else normalise(V, "unit")
        return float32_product(V, self.tensors["W"]), bias


class PQZSL(MomentsPQ):
    """The joint learning of P, Q, C, B, Z_s and Z (section 3.2)."""

    name = "pqzsl"
    settings_class: ClassVar[type[MethodSettings]] = PQZSLSettings
    model_class: ClassVar[type[LinearModel]] = PQZSLModel
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "normalise": ("unit", "zscore-unit"),
        "attributes": ("centre-unit", "unit", "zscore-unit"),
        "ridge_share": (3e-4, 1e-3, 3e-3),
        "lam": (0.3, 1.0, 3.0),
    }
    # The quantization term has weight 1 / (1 + alpha): one crude pass of it is enough.
    trial_settings: ClassVar[Mapping[str, Any]] = {"M": 1, "K": 16, "iterations": 2, "polish": 0}
    settings: PQZSLSettings

    def _check_width(self, dataset_info: TrainingSetInfo) -> None:
        if dataset_info.A is not None and dataset_info.L < self.settings.M:
            raise ConfigError(
                f"M: {self.settings.M} sub-codebooks are more than the {dataset_info.L} training "
                "classes (the common space has one dimension for each)"
            )
        super()._check_width(dataset_info)

    def _rank(self, dataset_info: TrainingSetInfo) -> int:
        return dataset_info.L

    def _image_map(self, state: State) -> Matrix:
        return _parameters(state).P

    def _embedding(self, state: State, data: Moments) -> dict[str, Array]:
        rng = np.random.default_rng([self.settings.seed, 3])
        return _arrays(Embedding.initial(data, self.settings, rng).balanced(data, self.settings.M))

    def _updates_projection(self, state: State) -> bool:
        return state.iteration < self.settings.iterations

    def _next_projection(self, state: State, stats: Stats) -> State:
        if not self._updates_projection(state):
            return state
        data, embedding = moments(state), _parameters(state)
        qx = stats.sums["qx"]
        if "sampled" in state.arrays:
            if "G" in stats.sums:
                state = state.with_arrays({"_sampled_G": stats.sums["G"]})
            qx = _of_all_rows(qx, float(stats.sums["count"][0].sum()), state)
        embedding, products = embedding.step(qx, data, self.settings)
        return state.with_arrays({**_arrays(embedding), **_kept(products)})

    def _objective(self, state: State, stats: Stats) -> dict[str, Any]:
        entry = super()._objective(state, stats)
        quantization = entry["quantization_error"]
        if state.iteration > self.settings.iterations:  # the embedding is that of the last entry
            terms = {name: state.history[-1][name] for name in _TERMS}
        else:
            data, embedding = moments(state), _parameters(state)
            products = _products(state) or embedding.products(data)
            rows = float(data.n.sum())
            losses = embedding.losses(products, data, self.settings)
            terms = {name: losses[name] / rows for name in _TERMS}
        return {**entry, **terms, "objective": quantization + sum(terms.values())}

    def _advance(self, state: State) -> State:
        iterations, polish = self.settings.iterations, self.settings.polish
        after = advance_and_polish(self, state, iterations, polish)
        if self.settings.axes == "embedding" or after.iteration < iterations:
            return after
        if "W" not in state.arrays:  # the embedding is final: change axes and re-seed the codebooks
            rotated = after.with_arrays(self._score_axes(state), phase="axes")
            return replace(rotated, iteration=iterations)
        # The first error on these axes: cannot converge yet.
        if state.iteration == iterations and polish > 1:
            return replace(after, phase="assign")
        return after

    def _score_axes(self, state: State) -> dict[str, Array]:
        """P and W along the axes that scores depend on (``support.score_axes``)."""
        import torch  # here, since it takes seconds to import, and the default axes do without it
        from torch.nn import functional

        from raypq.methods.support.score_axes import (
            code_width,
            interpolated_classes,
            whiten_by_prototypes,
        )

        kernels.apply_thread_limit()
        data, embedding = moments(state), _parameters(state)
        A = torch.from_numpy(np.ascontiguousarray(data.A.T))
        V = torch.cat([A, interpolated_classes(A)]) @ torch.from_numpy(embedding.Q.T)
        if self.settings.scales_scores:
            V = torch.from_numpy(scaled_by_spread(V.numpy(), self._moment(state)))
        elif self.settings.metric == "cosine":
            V = functional.normalize(V)
        of_images, of_prototypes = (
            axes.numpy()
            for axes in whiten_by_prototypes(
                V, code_width(len(embedding.P), V.shape[1], self.settings.M)
            )
        )
        P = of_images @ embedding.P
        rotation = balanced_axes(P @ data.G @ P.T, self.settings.M)
        return {
            "P": (rotation @ P).astype(np.float32, order="C"),
            "W": (rotation @ of_prototypes).astype(np.float32, order="C"),
        }

    def accumulate(self, state: State, batch: TrainBatch, rows: Rows | None = None) -> Stats:
        if state.phase == "axes":  # only rows to seed the codebooks; the moments are known
            X = self._normalised(state, HostRows(batch.X) if rows is None else rows)
            return PQ._accumulate_sample(self, state, batch, X)
        return super().accumulate(state, batch, rows)

    def _embeds_finally(self, state: State) -> bool:
        if state.phase == "axes" or (self.settings.axes == "scores" and "W" not in state.arrays):
            return False
        return super()._embeds_finally(state)

    def rows_of_pass(self, state: State) -> NDArray[np.int64] | None:
        rows = super().rows_of_pass(state)
        if rows is None or not self._updates_projection(state):
            return rows
        return rows[::_JOINT_SHARE]

    def _accumulate_assign(self, state: State, U: Rows, X: Rows) -> Stats:
        stats = super()._accumulate_assign(state, U, X)
        if "sampled" in state.arrays and state.iteration == 0:
            stats.sums["G"] = X.gram()
        return stats

    def update(self, state: State, stats: Stats) -> State:
        if state.phase != "axes":
            return super().update(state, stats)
        seeded = self._seed_codebooks(state, self._sample(stats), stream=4)
        return seeded if self.settings.polish else replace(seeded, phase="done")


def _arrays(embedding: Embedding) -> dict[str, Array]:
    """The embedding in float64, and P and Q in the float32 that workers use."""
    return {
        "P": embedding.P.astype(np.float32, order="C"),
        "Q": embedding.Q.astype(np.float32, order="C"),
        **{f"_{name}": getattr(embedding, name) for name in "PQZFH"},
    }


def _kept(products: Products) -> dict[str, Array]:
    """The products in a state."""
    return {"_zs_x": products.x, "_zs_y": products.y, "_zs_z": products.z}


def _products(state: State) -> Products | None:
    """The products of the embedding in a state; None before its first update."""
    arrays = state.arrays
    if "_zs_x" not in arrays:
        return None
    return Products(x=arrays["_zs_x"], y=arrays["_zs_y"], z=arrays["_zs_z"])


def _of_all_rows(qx: Matrix, n: float, state: State) -> Matrix:
    """Σ q(u)xᵀ [D, dx] of all N rows, from that of n of them.

    Only Σ (q − u)xᵀ, which is small, is taken in proportion; Σ u xᵀ = P·XXᵀ is known for all rows.
    """
    data, P = moments(state), state.arrays["P"].astype(np.float64)
    share = float(data.n.sum()) / n
    return product(P, data.G - share * state.arrays["_sampled_G"]) + share * qx


def _parameters(state: State) -> Embedding:
    return Embedding(**{name: state.arrays[f"_{name}"] for name in "PQZFH"})
