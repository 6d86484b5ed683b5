"""Synthetic features and class tables that behave like those of ImageNet.

Classes form a tree; a class's semantic vector (its embedding E) is the sum of random steps along
its path, so that siblings are similar. Its visual mean is the semantic vector plus a random part
that the embedding does not predict. An image is the visual mean plus noise, mapped by a fixed
random two-layer network, plus noise: a noisy non-linear function of the semantics.
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
_STEP = 0.75  # ratio of the step lengths of consecutive levels
_UNSEEN_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class SyntheticClasses:
    """T random classes with semantic vectors, and the network that makes features of width dx.

    Attributes:
        E: semantic vectors [T, da]. visual: visual means [T, da]. seen: [T].
        hidden: weights of the first layer [da, 2·dx]. output: of the second layer [2·dx, dx].
        within: standard deviation of images around their class.
    """

    E: NDArray[np.float32]
    seen: NDArray[np.bool_]
    hidden: NDArray[np.float32]
    output: NDArray[np.float32]
    visual: NDArray[np.float32]
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
        unpredicted: float = 0.6,
    ) -> SyntheticClasses:
        """Draws classes and a network.

        Args:
            within: spread of images around their class, relative to the length of E.
            unpredicted: length of the part of the visual mean that E does not predict.
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
            visual=(E + unpredicted / np.sqrt(da) * rng.standard_normal(E.shape)).astype(
                np.float32
            ),
            seen=seen,
            hidden=rng.standard_normal((da, width)).astype(np.float32),
            output=(rng.standard_normal((width, dx)) / np.sqrt(width)).astype(np.float32),
            within=within,
        )

    def features(self, y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Features [n, dx] of images of classes y [n]."""
        da = self.E.shape[1]
        noise = rng.standard_normal((len(y), da), dtype=np.float32)
        semantic = self.visual[y] + np.float32(self.within / np.sqrt(da)) * noise
        hidden = np.maximum(semantic @ self.hidden, 0)
        X = hidden @ self.output
        return X + np.float32(0.3 * self.within) * rng.standard_normal(X.shape, dtype=np.float32)


def write_classes(path: Path, data: SyntheticClasses) -> None:
    """Writes the class table."""
    T = len(data.E)
    table = pa.table(
        {
            "class_id": pa.array([f"g{index:05d}" for index in range(T)]),
            "name": pa.array([f"generated class {index}" for index in range(T)]),
            "seen": pa.array(data.seen),
            "embedding": arrays.fixed_list(data.E),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_features(
    folder: Path,
    data: SyntheticClasses,
    *,
    classes: NDArray[np.int64],
    images: int,
    shards: int,
    name: str,
    rng: np.random.Generator,
) -> None:
    """Writes ``shards`` feature files with ``images`` images, evenly divided over ``classes``."""
    folder.mkdir(parents=True, exist_ok=True)
    y = rng.permutation(np.resize(classes, images))
    for shard, rows in enumerate(np.array_split(np.arange(images), shards)):
        table = pa.table(
            {
                "id": pa.array([f"{name}/{row:08d}" for row in rows]),
                "label": pa.array([f"g{index:05d}" for index in y[rows]]),
                "feature": arrays.fixed_list(data.features(y[rows], rng)),
            }
        )
        pq.write_table(
            table,
            folder / f"part-{shard:05d}.parquet",
            compression="none",
            use_dictionary=["label"],
            write_page_checksum=True,
        )
