"""The interface of text encoders, and the embedding of a class from its names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raypq.data.network_info import Logits
from raypq.errors import InputError

_TEXTS = 256  # of one call


class TextEncoder(ABC):
    """A network that makes vectors of texts.

    Attributes:
        weights: sha256 of the network's weights.
        pooling: how the vectors of a text's tokens become one.
        logits: how the network makes logits of cosines, if it was trained with images.
    """

    weights: str
    pooling: str
    logits: Logits | None = None

    @abstractmethod
    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, da] of texts."""


def embed_names(
    encoder: TextEncoder,
    names: Sequence[Sequence[str]],
    templates: Sequence[str],
    *,
    where: str,
    keep: bool = False,
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Embeddings [T, da] of classes by their names: for each class the mean of the unit vectors of
    every name in every template, scaled to length 1 (a prompt ensemble, as in CLIP, Radford et al.
    2021, section 3.1.4). And with ``keep`` the unit vectors [names, da] of all names in each
    template.

    Args:
        names: of each class, one or more.
        where: their file, for errors.

    Raises:
        InputError: a vector that is zero or not finite, naming the text.
    """
    owners = [index for index, several in enumerate(names) for _ in several]
    flat = [name for several in names for name in several]
    total: NDArray[np.float64] | None = None
    units: list[NDArray[np.float32]] = []
    for template in templates:
        parts = []
        for start in range(0, len(flat), _TEXTS):
            texts = [template.replace("{}", name) for name in flat[start : start + _TEXTS]]
            V = encoder.vectors(texts).astype(np.float64)
            length = np.linalg.norm(V, axis=1)
            bad = np.flatnonzero(~np.isfinite(length) | (length == 0))
            if len(bad):
                raise InputError(
                    where,
                    expected=f"a vector of finite length for {texts[bad[0]]!r}",
                    found=f"one of length {length[bad[0]]:g}",
                )
            total = np.zeros((len(names), V.shape[1])) if total is None else total
            unit = V / length[:, None]
            np.add.at(total, owners[start : start + _TEXTS], unit)
            if keep:
                parts.append(unit.astype(np.float32))
        if keep:
            units.append(np.concatenate(parts))
    assert total is not None, "there are names and templates"
    length = np.linalg.norm(total, axis=1)
    if len(bad := np.flatnonzero(length < 1e-9 * len(templates))):
        raise InputError(
            where,
            expected=f"texts of one meaning for each class, such as {names[bad[0]][0]!r}",
            found="vectors that cancel out",
        )
    return (total / length[:, None]).astype(np.float32), units
