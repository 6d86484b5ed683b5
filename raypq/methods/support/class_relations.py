"""Classes that were not trained on, as combinations of trained ones.

ConSE (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014)
answers unseen classes by the probabilities of seen ones. Here a class with the embedding e is the
combination of the L training classes that ridge regression gives, with S [L, da] their embeddings,
all at unit length:

    w(e) = (S Sᵀ + λ I)⁻¹ S e,    score(e) = Σ_t w_t(e) P(t|x)

A training class, too, has a part of its neighbours' probabilities, so that scores of trained and of
new classes are of the same kind.

Codes are fitted to these scores. With W [T, L] the weights of all classes of the table of training,
the squared error of the scores of P̂ in place of P is (P − P̂) WᵀW (P − P̂)ᵀ, so what codes store is
P R, where R Rᵀ = WᵀW + ε I, and nearest codewords are those of the least error.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LEAST = 1e-6  # of a class probability; a code's estimate may be below 0
_LEAST_ERROR = 0.1  # ε: of classes with the same embedding, which scores do not distinguish
_RIDGE = 0.1  # λ; H hardly depends on it between 0.05 and 0.3 (docs/results-zeroshot.md)


class ClassRelations(nn.Module):
    """Embeddings of the training classes, ``S`` [L, da] of unit length, with ``R`` and its inverse
    [L, L]: the identity, unless other classes compete."""

    S: Tensor
    R: Tensor
    inverse: Tensor

    def __init__(
        self,
        L: int,
        da: int,
        A: NDArray[np.float32] | None = None,
        others: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        S, R = np.zeros((L, da)), np.eye(L)
        if A is not None:
            S = _unit(A)
            if others is not None and len(others):
                R = _root(S, np.concatenate([A, others]))
        for name, array in (("S", S), ("R", R), ("inverse", np.linalg.inv(R))):
            self.register_buffer(name, torch.from_numpy(array.astype(np.float32)))

    def weights(self, e: Tensor) -> Tensor:
        """Weights of the training classes [T, L] of classes with embeddings e [T, da]."""
        w = weights(self.S.cpu().numpy(), e.cpu().numpy())
        return torch.from_numpy(w.astype(np.float32)).to(self.S.device)


def _root(S: NDArray[np.floating], A: NDArray[np.floating]) -> NDArray[np.float64]:
    """R [L, L] of the classes of a table, with embeddings A [T, da]."""
    W = weights(S, A)
    return np.asarray(np.linalg.cholesky(W.T @ W + _LEAST_ERROR * np.eye(len(S))), np.float64)


def weights(S: NDArray[np.floating], E: NDArray[np.floating]) -> NDArray[np.float64]:
    """w [T, L] of embeddings E [T, da] over classes with embeddings S [L, da]."""
    s, e = _unit(S), _unit(E)
    w = np.linalg.solve(s @ s.T + _RIDGE * np.eye(len(s)), s @ e.T).T
    return np.asarray(w, np.float64)


def without(P: NDArray[np.floating], left_out: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Class probabilities P [n, L] as if some of the L classes [L] had not been trained on: those
    of the L' others [n, L']."""
    kept = np.maximum(P[:, ~left_out].astype(np.float64), _LEAST)
    kept /= kept.sum(axis=1, keepdims=True)
    return kept


def _unit(E: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = np.asarray(E, np.float64).copy()
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    wide /= np.where(length > 0, length, 1.0)
    return wide
