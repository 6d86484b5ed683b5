"""The interface of backbones."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data import arrays
from raypq.data.features import FeatureBatch
from raypq.data.images import ImageFormat, ImageInput
from raypq.data.network_info import BackboneInfo

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(ABC):
    """A network that makes features of images.

    Attributes:
        info: its identity.
        image_format: of the rows that it takes.
        block: images of one call of the network.
    """

    info: BackboneInfo
    image_format: ImageFormat
    block: int

    def features(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Features [n, dx] of images [n, width], as rows of ``image_format``.

        The features of an image do not depend on the other images.
        """
        parts = [self._block(block)[:n] for block, n in _in_blocks(rows, self.block)]
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)

    def features_of(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Finite features [m, dx] of the images of a batch that are not known.

        Raises:
            InputError: a feature that is not finite, naming the image.
        """
        ids = batch.ids if batch.known is None else batch.ids.filter(pa.array(batch.known < 0))
        where = f"{batch.where}, features"
        return arrays.finite_float32(self.features(batch.X), where=where, ids=ids, row0=batch.row)

    @cached_property
    def width(self) -> int:
        """dx, from one black image."""
        black = np.zeros((1, self.image_format.width), self.image_format.dtype)
        return int(self._block(black).shape[1])

    @abstractmethod
    def _block(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Features of the rows of one call of the network."""


def image_input(info: BackboneInfo) -> ImageInput:
    """The input of a network, as its identity says."""
    return ImageInput(
        size=info.size,
        resize=info.resize,
        interpolation=info.interpolation,
        scaling=info.scaling,
    )


def digest_of(arrays: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """sha256 of named arrays, in name order."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays, key=lambda item: item[0]):
        array = np.ascontiguousarray(array)
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _in_blocks(rows: NDArray[Any], block: int) -> Iterable[tuple[NDArray[Any], int]]:
    """Rows in blocks of one size, the last one padded with zeros, each with its number of rows.

    Other shapes may add in another order, and the bits of a row must not depend on the others.
    """
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        if len(part) == block:
            yield part, block
            continue
        padded = np.zeros((block, rows.shape[1]), rows.dtype)
        padded[: len(part)] = part
        yield padded, len(part)


def first_line(error: BaseException) -> str:
    """The line of a library's error that says what is wrong: the first one, or after a trace of
    TorchScript the last one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]
