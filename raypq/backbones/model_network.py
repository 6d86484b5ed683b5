"""Models of raypq that read images, whose embedding is the features of another model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq.backbones.backbone import Backbone, in_blocks
from raypq.data.images import SquareImages, side_of
from raypq.data.network_info import BackboneInfo
from raypq.methods import registry
from raypq.methods.base import Model

_BLOCK = 64


class ModelNetwork(Backbone):
    """The embedding of a model of images."""

    def __init__(self, uri: str) -> None:
        self._model: Model = registry.load(uri)
        side = side_of(self._model.dx, where=uri)
        self.image_format = SquareImages(side=side)
        self.info = BackboneInfo(
            name=uri,
            weights=self._model.fingerprint,
            size=side,
            resize=0,
            interpolation="bilinear",
            mean=(0, 0, 0),
            std=(1, 1, 1),
        )

    def features(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See ``Backbone``."""
        parts = [self._model.embed(block)[:n] for block, n in in_blocks(rows, _BLOCK)]
        return np.concatenate(parts) if parts else np.empty((0, self._model.D), np.float32)
