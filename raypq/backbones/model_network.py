"""Models of raypq that read images, whose embedding is the features of another model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypq.backbones.backbone import Backbone
from raypq.data.images import SquareImages, side_of
from raypq.data.network_info import BackboneInfo
from raypq.methods import registry
from raypq.methods.base import Model

_BLOCK = 64


class ModelNetwork(Backbone):
    """The embedding of a model of images."""

    def __init__(self, uri: str) -> None:
        self._model: Model = registry.load(uri)
        self.block = _BLOCK
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

    def _block(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.embed(rows)
