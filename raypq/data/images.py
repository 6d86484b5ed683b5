"""Encoded images as rows of features: a picture of S × S pixels is a vector of 3·S² values.

Channels come first (red, green, blue), then rows, then columns; values are in 0 … 1. So every
stage that takes features takes pictures, and a network reshapes its input.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.errors import InputError

_NAMED = 5  # images that an error or a warning names


def is_images(kind: pa.DataType) -> bool:
    """Whether a column of this type holds encoded images."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def row_width(side: int) -> int:
    """Values of a picture of side × side pixels."""
    return 3 * side * side


def side_of(width: int, *, where: str) -> int:
    """Pixels on a side of a picture of so many values.

    Raises:
        InputError: no square picture has so many.
    """
    side = math.isqrt(width // 3)
    if row_width(side) != width:
        raise InputError(
            where,
            expected=f"features of width {width}",
            found="encoded images (a square picture has 3·S² values)",
        )
    return side


def decode(data: bytes, side: int) -> NDArray[np.float32]:
    """One image as 3·S² values: turned upright, cut to a square, scaled, and made RGB.

    Grayscale, CMYK, palettes and transparency (on black) all become RGB.

    Raises:
        Exception: whatever Pillow raises for bytes that are no image.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened)
        picture = upright.convert("RGB")
        if picture.size != (side, side):
            picture = ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1) / np.float32(255)


@dataclass
class Decoder:
    """Decodes the images of one shard, and leaves out at most ``allowed`` that cannot be."""

    side: int
    allowed: int
    where: str
    left_out: int = 0

    def rows(
        self, column: pa.Array, ids: pa.Array, row0: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rows [n, 3·S²] of the images that could be decoded, and which of all those are.

        Raises:
            InputError: more could not be decoded than are allowed, naming the first of them.
        """
        good = np.ones(len(column), bool)
        rows = []
        bad: list[tuple[int, str]] = []
        for at, value in enumerate(column):
            try:
                data = value.as_py()
                if not data:
                    raise ValueError("no bytes")
                rows.append(decode(data, self.side))
            except Exception as error:  # whatever the decoder makes of these bytes
                good[at] = False
                bad.append((at, f"{type(error).__name__}: {error}"))
        if bad:
            self._count(bad, ids, row0)
        X = np.stack(rows) if rows else np.empty((0, row_width(self.side)), np.float32)
        return X, good

    def _count(self, bad: list[tuple[int, str]], ids: pa.Array, row0: int) -> None:
        self.left_out += len(bad)
        at, reason = bad[0]
        if self.left_out > self.allowed:
            raise InputError(
                f"{self.where}, row {row0 + at} (id {ids[at].as_py()!r})",
                expected="an image that can be decoded"
                if not self.allowed
                else f"at most {self.allowed} images of a shard that cannot be decoded",
                found=f"{reason} ({self.left_out} such image(s) so far)",
            )
        names = ", ".join(repr(ids[place].as_py()) for place, _ in bad[:_NAMED])
        more = ", …" if len(bad) > _NAMED else ""
        console.warn(f"{self.where}: left out {len(bad)} undecodable image(s): {names}{more}")
