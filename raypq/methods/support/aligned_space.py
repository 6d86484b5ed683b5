"""Codes for classes that are vectors of the features' own space (CLIP, SigLIP).

A score is the inner product of an image x and a class v, so an error δ of the code adds δ·v. What
is the same for all classes changes no order, so with their covariance R the mean squared error that
counts is δᵀRδ. But thresholds and sigmoids need the scores themselves: so R also has the direction
of the classes' mean v̄, with the weight of its largest eigenvalue. Codes are of u = E R^½ x, in
which the error is the squared length, with prototypes v' = E R^-½ v, where the rows of E [D, dx]
are the axes of u with the largest variance. Where some axes are left out, a bias keeps the mean
score of each class exact, x̄·v − (P x̄)·v'.
"""

from __future__ import annotations

import numpy as np

from raypq.methods.support.axis_allocation import allocate, fix_signs
from raypq.methods.support.closed_form import Matrix

_FLOOR = 0.01  # added to eigenvalues of R relative to their mean, for classes beyond those known
_TINY = 1e-150


def score_maps(V: Matrix, covariance: Matrix, D: int, M: int) -> tuple[Matrix, Matrix]:
    """The maps of images and of classes, [D, dx] each, with axes balanced over M parts.

    Args:
        V: classes [T, dx]. covariance: of images [dx, dx].
    """
    mean = V.mean(axis=0)
    R = (V - mean).T @ (V - mean) / len(V)
    if length := np.linalg.norm(mean):
        R += np.linalg.eigvalsh(R)[-1] * np.outer(mean, mean) / length**2
    weight, axes = np.linalg.eigh(R)
    weight = np.maximum(weight, 0.0)
    root = np.sqrt(np.maximum(weight + _FLOOR * weight.mean(), _TINY))
    of_images, of_classes = (axes * root) @ axes.T, (axes / root) @ axes.T
    variance, kept = np.linalg.eigh(of_images @ covariance @ of_images)
    order = np.argsort(variance)[::-1][:D]
    E = fix_signs(kept.T[order])[allocate(np.maximum(variance[order], 0.0), M)]
    return E @ of_images, E @ of_classes
