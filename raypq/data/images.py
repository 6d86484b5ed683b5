"""Encoded images as rows of features: an image of S × S pixels is a vector of 3·S² values.

Order: channels (red, green, blue), rows, columns; values in [0, 1]. So every stage that reads
features reads images, and a network reshapes its input.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from raypq.config import Interpolation, Scaling
from raypq.data.storage import StorageSettings
from raypq.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# Raster formats whose header gives the decoded size. Left out are formats that start programs (EPS
# runs Ghostscript) and containers of other images, whose size the header only claims.
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA",
    "TIFF", "WEBP",
)  # fmt: skip
_ORIENTATION = 0x0112  # the EXIF tag
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
# Formats with distinctive magic bytes.
_SIGNED = tuple(name for name in _FORMATS if name not in ("DIB", "PCX", "TGA"))


def is_image(data: bytes, *, signed: bool = False) -> bool:
    """Whether bytes are an encoded image; with ``signed``, only in formats with magic bytes."""
    try:
        with _opened(data, _SIGNED if signed else _FORMATS):
            return True
    except Exception as error:  # decoders raise anything for invalid bytes
        return type(error).__name__ == "DecompressionBombError"


def row_width(side: int) -> int:
    """Values of an image of side × side pixels."""
    return 3 * side * side


def side_of(width: int, *, where: str) -> int:
    """Pixels on a side of a square image of ``width`` values.

    Raises:
        InputError: no square image has so many values.
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
    """One image as values [3·S²]: rotated upright, cropped to a square, scaled, in RGB.

    Grayscale, CMYK and palettes are converted to RGB; transparency is ignored. Of an animation the
    first frame is decoded.

    Args:
        most_pixels: largest width × height, checked before pixels are decoded; by default that of
            ``StorageSettings``.

    Raises:
        ValueError: an unsupported format, too many pixels, or grey values of 32 bits.
        Exception: any error of Pillow for bytes that are no image.
    """
    with _opened(data) as picture:
        picture = _decoded(picture, most_pixels)
        if picture.size != (side, side):
            picture = _crop_and_resize(picture, side)
        pixels = np.asarray(picture, dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1) / np.float32(255)


def thumbnail(data: bytes, longest: int, *, most_pixels: int | None = None) -> Picture:
    """One image to look at: upright and in RGB as ``decode`` gives it, whole, without metadata.

    Args:
        longest: pixels of the longer side, to which a larger image is scaled down.
        most_pixels: as in ``decode``, with its errors.
    """
    with _opened(data) as picture:
        _check_pixels(picture, most_pixels)
        picture.draft("RGB", (2 * longest, 2 * longest))  # a JPEG is decoded at a reduced scale
        picture = _rgb(_upright(picture))
        picture.thumbnail((longest, longest), _pillow().Resampling.BILINEAR)
        plain: Picture = _pillow().new("RGB", picture.size)
        plain.paste(picture)
    return plain


class ImageFormat(Protocol):
    """How an image becomes a row.

    Attributes:
        width: values of a row. dtype: of the values.
    """

    @property
    def width(self) -> int:
        """Values of a row."""

    @property
    def dtype(self) -> type[np.generic]:
        """Type of the values."""

    def decode(self, data: bytes, most_pixels: int) -> NDArray[Any]:
        """The row of an encoded image; raises any error for bytes that are no image."""


@dataclass(frozen=True, kw_only=True)
class SquareImages:
    """Rows of ``decode``: images of side × side pixels, float32 in [0, 1]."""

    side: int
    dtype: ClassVar[type[np.generic]] = np.float32

    @property
    def width(self) -> int:
        """3·S²."""
        return row_width(self.side)

    def decode(self, data: bytes, most_pixels: int) -> NDArray[np.float32]:
        """See ``decode``."""
        return decode(data, self.side, most_pixels=most_pixels)


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The input of a network: images are scaled until the shorter side has ``resize`` pixels (or
    with ``squash`` both sides), then ``size`` × ``size`` pixels in the middle are taken, as
    torchvision, timm and open_clip do.

    Rows are bytes [3·size²]: channels (red, green, blue), rows, columns.
    """

    size: int
    resize: int
    interpolation: Interpolation = "bilinear"
    scaling: Scaling = "shortest"
    dtype: ClassVar[type[np.generic]] = np.uint8

    @property
    def width(self) -> int:
        """3·S²."""
        return row_width(self.size)

    def decode(self, data: bytes, most_pixels: int) -> NDArray[np.uint8]:
        """The row of an image; errors as in ``decode``.

        A JPEG of at least four times the size is decoded at a half, a quarter or an eighth, but to
        no less than twice the size, so that it is scaled down by an average as before.

        Raises:
            ValueError: an image so thin that it would have too many pixels when scaled.
        """
        with _opened(data) as picture:
            _check_pixels(picture, most_pixels)
            whole, orientation = picture.size, picture.getexif().get(_ORIENTATION, 1)
            reduced = picture.draft("RGB", (2 * self.resize, 2 * self.resize))  # JPEG alone can
            if reduced is not None and picture.size != whole:
                picture = self._scaled(_rgb(picture), whole, most_pixels, box=reduced[1])
                picture = _turned(picture, orientation)
            else:
                picture = _decoded(picture, most_pixels)
                picture = self._scaled(picture, picture.size, most_pixels)
            left, top = (round((length - self.size) / 2.0) for length in picture.size)
            if picture.size != (self.size, self.size):  # beyond the edge: black
                picture = picture.crop((left, top, left + self.size, top + self.size))
            pixels = np.asarray(picture, dtype=np.uint8)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1)

    def _scaled(
        self,
        picture: Picture,
        whole: tuple[int, int],
        most_pixels: int,
        box: tuple[float, float, float, float] | None = None,
    ) -> Picture:
        """The image scaled; ``box`` is the place in it of the image of ``whole`` pixels."""
        short = min(whole)
        width, height = (self.resize * length // short for length in whole)
        if self.scaling == "squash":
            width = height = self.resize
        if width * height > most_pixels:
            raise ValueError(
                f"{whole[0]} x {whole[1]} pixels, which are {width} x {height} when the shorter "
                f"side is scaled to {self.resize}: too thin"
            )
        if picture.size == (width, height) and box is None:
            return picture
        filters = _pillow().Resampling
        return picture.resize((width, height), filters[self.interpolation.upper()], box=box)


def _decoded(picture: Picture, most_pixels: int | None) -> Picture:
    """The pixels of an opened image, upright and in RGB."""
    _check_pixels(picture, most_pixels)
    return _rgb(_upright(picture))


def _check_pixels(picture: Picture, most_pixels: int | None) -> None:
    most = StorageSettings().image_pixels if most_pixels is None else most_pixels
    width, height = _decoded_size(picture)
    if width * height > most:
        raise ValueError(
            f"{width} x {height} pixels, more than {most / 1e6:g} million may be decoded "
            "(RAYPQ_STORAGE_IMAGE_MEGAPIXELS)"
        )


def _decoded_size(picture: Picture) -> tuple[int, int]:
    """Width and height that are decoded at once: the image, or a larger tile of a TIFF."""
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
    """Pillow, without its warning about large images, which raypq limits itself."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image


def _upright(picture: Picture) -> Picture:
    """The image rotated by its EXIF orientation; no copy if there is nothing to rotate."""
    picture.load()  # rotates a TIFF, and removes its tag
    return _turned(picture, picture.getexif().get(_ORIENTATION, 1))


def _turned(picture: Picture, orientation: int) -> Picture:
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Picture) -> Picture:
    """The image as 8-bit RGB; Pillow would clip 16-bit grey values at 255 rather than scale them.

    Raises:
        ValueError: grey values of 32 bits beyond 255, whose range is not known.
    """
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint16) >> 8  # the high byte, as for 16-bit RGB
        return _pillow().fromarray(grey.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        low, high = cast(tuple[float, float], picture.getextrema())
        if not 0 <= low <= high <= 255:
            raise ValueError(f"32-bit grey values from {low:g} to {high:g}; 8 or 16 bits are read")
    return picture.convert("RGB")


def _crop_and_resize(picture: Picture, side: int) -> Picture:
    from PIL import ImageOps

    return ImageOps.fit(picture, (side, side), _pillow().Resampling.BILINEAR)
