"""Encoded images as rows of features: a picture of S × S pixels is a vector of 3·S² values.

Channels come first (red, green, blue), then rows, then columns; values are in 0 … 1. So every
stage that takes features takes pictures, and a network reshapes its input.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.data.storage import StorageSettings
from raypq.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_NAMED = 5  # images that an error or a warning names
# Raster formats whose header tells the size of what is decoded. Left out are those that start
# programs (EPS runs Ghostscript) and containers of other images, whose size the header only claims.
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA",
    "TIFF", "WEBP",
)  # fmt: skip
_ORIENTATION = 0x0112  # the EXIF tag
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags


_SIGNED = tuple(name for name in _FORMATS if name not in ("DIB", "PCX", "TGA"))  # by first bytes


def is_image(data: bytes, *, signed: bool = False) -> bool:
    """Whether bytes are an encoded image; ``signed`` only by formats that no vector looks like."""
    try:
        with _opened(data, _SIGNED if signed else _FORMATS):
            return True
    except Exception as error:  # whatever a decoder makes of bytes that are none of its own
        return type(error).__name__ == "DecompressionBombError"


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


def decode(data: bytes, side: int, *, most_pixels: int | None = None) -> NDArray[np.float32]:
    """One image as 3·S² values: turned upright, cut to a square, scaled, and made RGB.

    Grayscale, CMYK and palettes become RGB; transparency is ignored: the stored colours count. The
    first frame of an animation is taken.

    Args:
        most_pixels: width × height that the image may have, which is checked before pixels are
            decoded; by default that of ``StorageSettings``.

    Raises:
        ValueError: not in a format that is read, more pixels than that, or grey values of 32 bits.
        Exception: whatever Pillow raises for bytes that are no image.
    """
    most = StorageSettings().image_pixels if most_pixels is None else most_pixels
    with _opened(data) as picture:
        width, height = _decoded(picture)
        if width * height > most:
            raise ValueError(
                f"{width} x {height} pixels, more than {most / 1e6:g} million may be decoded "
                "(RAYPQ_STORAGE_IMAGE_MEGAPIXELS)"
            )
        picture = _upright(picture)
        picture = _rgb(picture)
        if picture.size != (side, side):
            picture = _fitted(picture, side)
        pixels = np.asarray(picture, dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1) / np.float32(255)


def _decoded(picture: Picture) -> tuple[int, int]:
    """Width and height of what is decoded at once: the picture, or a larger tile of a TIFF."""
    tags = getattr(picture, "tag_v2", {})
    tile = int(tags.get(_TILE_WIDTH, 0)), int(tags.get(_TILE_LENGTH, 0))
    return max(picture.size, tile, key=lambda size: size[0] * size[1])


def _opened(data: bytes, formats: Sequence[str] = _FORMATS) -> Picture:
    pillow = _pillow()
    try:
        return pillow.open(io.BytesIO(data), formats=formats)
    except pillow.UnidentifiedImageError:
        formats = ", ".join(_FORMATS)
        raise ValueError(f"cannot identify the format; read are {formats}") from None


@cache
def _pillow() -> Any:
    """Pillow, without its warning about large images: the limit of raypq is an error."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image


def _upright(picture: Picture) -> Picture:
    """The picture turned as its EXIF data says. No copy where there is nothing to turn."""
    from PIL.Image import Transpose

    picture.load()  # a TIFF turns itself by that, and forgets the tag
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(picture.getexif().get(_ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Picture) -> Picture:
    """The picture as 8-bit RGB. Pillow itself would cut grey values at 255, not scale them.

    Raises:
        ValueError: grey values of 32 bits beyond 255, whose white nobody knows.
    """
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint16) >> 8  # the high byte, as of 16-bit RGB
        return _pillow().fromarray(grey.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        low, high = cast(tuple[float, float], picture.getextrema())
        if not 0 <= low <= high <= 255:
            raise ValueError(f"32-bit grey values from {low:g} to {high:g}; 8 or 16 bits are read")
    return picture.convert("RGB")


def _fitted(picture: Picture, side: int) -> Picture:
    from PIL import ImageOps

    return ImageOps.fit(picture, (side, side), _pillow().Resampling.BILINEAR)


@dataclass
class Decoder:
    """Decodes the images of one shard, and leaves out at most ``allowed`` that cannot be."""

    side: int
    allowed: int
    where: str
    left_out: int = 0
    most_pixels: int = field(default_factory=lambda: StorageSettings.current().image_pixels)

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
                rows.append(decode(data, self.side, most_pixels=self.most_pixels))
            except MemoryError:
                raise  # of this machine, not of the image
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
