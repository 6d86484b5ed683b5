"""Synthetic features and class tables that behave like those of ImageNet.

Classes form a tree; a class's semantic vector is the sum of random steps along its path, so that
near relatives are alike. What a class looks like is its semantic vector plus a part that no words
tell. An image is that with noise of its own, sent through a fixed random two-layer network, with
noise on top: a noisy non-linear image of the semantics.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq.data import arrays

_BRANCHES = 6  # children of a node
_STEP = 0.75  # how much shorter each level's step is
_UNSEEN_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class SyntheticClasses:
    """A random world of T classes with semantic vectors E [T, da] and features of width dx."""

    E: NDArray[np.float32]
    seen: NDArray[np.bool_]
    hidden: NDArray[np.float32]
    output: NDArray[np.float32]
    looks: NDArray[np.float32]
    within: float

    @classmethod
    def create(
        cls,
        *,
        classes: int,
        dx: int,
        da: int,
        rng: np.random.Generator,
        within: float = 1.6,
        untold: float = 0.6,
    ) -> SyntheticClasses:
        """A world.

        Args:
            within: spread of images around their class, in lengths of a semantic vector.
            untold: length of the part of a class's looks that its vector does not tell.
        """
        depth = max(1, int(np.ceil(np.log(classes) / np.log(_BRANCHES))))
        E = np.zeros((classes, da))
        path = np.arange(classes)
        for level in range(depth, 0, -1):
            steps = rng.standard_normal((int(path.max()) + 1, da)) * _STEP ** (depth - level)
            E += steps[path]
            path = path // _BRANCHES
        E /= np.linalg.norm(E, axis=1, keepdims=True)
        width = 2 * dx
        unseen = rng.permutation(classes)[: round(_UNSEEN_SHARE * classes)]
        seen = np.ones(classes, bool)
        seen[unseen] = False
        return cls(
            E=E.astype(np.float32),
            looks=(E + untold / np.sqrt(da) * rng.standard_normal(E.shape)).astype(np.float32),
            seen=seen,
            hidden=rng.standard_normal((da, width)).astype(np.float32),
            output=(rng.standard_normal((width, dx)) / np.sqrt(width)).astype(np.float32),
            within=within,
        )

    def features(self, y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Features [n, dx] of images of classes y [n]."""
        da = self.E.shape[1]
        noise = rng.standard_normal((len(y), da), dtype=np.float32)
        semantic = self.looks[y] + np.float32(self.within / np.sqrt(da)) * noise
        hidden = np.maximum(semantic @ self.hidden, 0)
        X = hidden @ self.output
        return X + np.float32(0.3 * self.within) * rng.standard_normal(X.shape, dtype=np.float32)


def write_classes(path: Path, world: SyntheticClasses) -> None:
    """The class table of a world."""
    T = len(world.E)
    table = pa.table(
        {
            "class_id": pa.array([f"g{index:05d}" for index in range(T)]),
            "name": pa.array([f"generated class {index}" for index in range(T)]),
            "seen": pa.array(world.seen),
            "embedding": arrays.fixed_list(world.E),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_features(
    folder: Path,
    world: SyntheticClasses,
    *,
    classes: NDArray[np.int64],
    images: int,
    shards: int,
    name: str,
    rng: np.random.Generator,
) -> None:
    """``shards`` feature files of ``images`` images in all, dealt evenly over ``classes``."""
    folder.mkdir(parents=True, exist_ok=True)
    y = rng.permutation(np.resize(classes, images))
    for shard, rows in enumerate(np.array_split(np.arange(images), shards)):
        table = pa.table(
            {
                "id": pa.array([f"{name}/{row:08d}" for row in rows]),
                "label": pa.array([f"g{index:05d}" for index in y[rows]]),
                "feature": arrays.fixed_list(world.features(y[rows], rng)),
            }
        )
        pq.write_table(
            table,
            folder / f"part-{shard:05d}.parquet",
            compression="none",
            use_dictionary=["label"],
            write_page_checksum=True,
        )
