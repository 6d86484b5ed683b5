"""The four worlds of the classification bench: images and classes that a filter finds easy or hard.

A filter leaves few classes where an image's score for its own class stands out. Each world is one
way in which it may not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raypq.bench import clustered_data
from raypq.bench.clustered_data import Embedded
from raypq.data.classes import ClassTable

_COSINE = 0.74  # of an image and its class, in the worlds of names and of synonyms
_SYNONYMS, _ALIKE = 16, 0.98  # classes of a group, more than a top-10, and their cosine
# The cone of classes and that of images have an axis in common, and images one of their own:
# classes have cosine 0.64 with each other, images 0.46, an image and any class 0.16, and an image
# and its own class 0.31, as with CLIP.
_CLASS_AXIS, _SHARED_AXIS, _IMAGE_AXIS, _OWN = 0.8, 0.2, 0.65, 0.25

NAMES = ("clustered", "names", "cone", "synonyms")


def generate(
    T: int, D: int, N: int, names: ClassTable | None
) -> Iterator[tuple[str, Embedded | str]]:
    """Each world by its name, one at a time; of one that cannot be had, the reason.

    Args:
        T: classes. D: width. N: images. names: class table with the vectors of real names.
    """
    yield "clustered", clustered_data.embedded(N=N, T=T, D=D)
    yield "names", _names(names, T, D, N)
    yield "cone", cone(T, D, N)
    yield "synonyms", synonyms(T, D, N)


def _names(table: ClassTable | None, T: int, D: int, N: int) -> Embedded | str:
    if table is None:
        return "no class table is named: --classes"
    if table.E is None or len(table.E) < T or table.E.shape[1] > D:
        found = "no embeddings" if table.E is None else f"{table.E.shape}"
        return f"expected at least {T:,} class embeddings of width up to {D}, found {found}"
    return of_classes(table.E[:T], D, N)


def of_classes(E: NDArray[np.float32], D: int, N: int) -> Embedded:
    """Given class embeddings E [T, da], da ≤ D, and images of cosine 0.74 to their class.

    A random rotation into D dimensions keeps the cosines of classes.
    """
    rng = np.random.default_rng(1)
    da = E.shape[1]
    V = unit(E)
    if da < D:
        basis, _ = np.linalg.qr(rng.standard_normal((D, da)))
        V = unit(V @ basis.T.astype(np.float32))
    return Embedded(U=_near(V[rng.integers(len(V), size=N)], _COSINE, rng), V=V)


def cone(T: int, D: int, N: int) -> Embedded:
    """Classes in one narrow cone and images in another, as of a network for pictures and texts."""
    rng = np.random.default_rng(2)
    axes, _ = np.linalg.qr(rng.standard_normal((D, 2)))
    shared, image = axes.T.astype(np.float32)
    own = _directions(T, D, rng)
    V = unit(_CLASS_AXIS * shared + np.float32(np.sqrt(1 - _CLASS_AXIS**2)) * own)
    U = _directions(N, D, rng, rank=D)
    U *= np.float32(np.sqrt(1 - _SHARED_AXIS**2 - _IMAGE_AXIS**2 - _OWN**2))
    U += _SHARED_AXIS * shared + _IMAGE_AXIS * image
    U += _OWN * own[rng.integers(T, size=N)]
    return Embedded(U=unit(U), V=V)


def synonyms(T: int, D: int, N: int) -> Embedded:
    """Groups of 16 classes of cosine 0.98, and images of cosine 0.74 to one of them: the ten best
    classes of an image lie within a group."""
    rng = np.random.default_rng(3)
    centre = _directions(-(-T // _SYNONYMS), D, rng)
    # Two vectors of cosine √0.98 to the same centre have cosine 0.98.
    V = _near(np.repeat(centre, _SYNONYMS, axis=0)[:T], float(np.sqrt(_ALIKE)), rng)
    return Embedded(U=_near(V[rng.integers(T, size=N)], _COSINE, rng), V=V)


def _near(X: NDArray[np.float32], cosine: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Unit vectors of about this cosine to the unit vectors X [n, D], in random directions."""
    noise = _directions(len(X), X.shape[1], rng, rank=X.shape[1])
    noise *= np.float32(np.sqrt(1 - cosine**2))
    noise += np.float32(cosine) * X
    return unit(noise)


def _directions(
    n: int, D: int, rng: np.random.Generator, rank: int | None = None
) -> NDArray[np.float32]:
    """Random unit vectors [n, D] of a sub-space of this rank; default: up to 256, as semantic
    vectors have."""
    rank = min(D, 256) if rank is None else rank
    X = rng.standard_normal((n, rank), dtype=np.float32)
    if rank < D:
        X = X @ rng.standard_normal((rank, D), dtype=np.float32)
    return unit(X)


def unit(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of X [n, D] at length 1."""
    return X / np.linalg.norm(X, axis=1, keepdims=True)
