"""Encoded images as rows of features: an image of S × S pixels is a vector of 3·S² values.

Order: channels (red, green, blue), rows, columns; values in [0, 1]. So every stage that reads
features reads images, and a network reshapes its input.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from threading import Semaphore
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.data.layouts.image_files import ImageFile, read_file, uris_of
from raypq.data.storage import StorageSettings, is_local
from raypq.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_SHOWN = 5  # images named in a warning
_READERS = 8  # image files read at the same time, since a remote one takes long to begin
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
    max_pixels = StorageSettings().image_pixels if most_pixels is None else most_pixels
    with _opened(data) as picture:
        width, height = _decoded_size(picture)
        if width * height > max_pixels:
            raise ValueError(
                f"{width} x {height} pixels, more than {max_pixels / 1e6:g} million may be decoded "
                "(RAYPQ_STORAGE_IMAGE_MEGAPIXELS)"
            )
        picture = _upright(picture)
        picture = _rgb(picture)
        if picture.size != (side, side):
            picture = _crop_and_resize(picture, side)
        pixels = np.asarray(picture, dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1) / np.float32(255)


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
    from PIL.Image import Transpose

    picture.load()  # rotates a TIFF, and removes its tag
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


@dataclass
class Decoder:
    """Decodes the images of one shard; leaves out up to ``allowed`` that cannot be decoded.

    Attributes:
        threads: that decode at the same time.
        left_out: images that were left out so far.
    """

    side: int
    allowed: int
    where: str
    threads: int = 1
    left_out: int = 0
    most_pixels: int = field(default_factory=lambda: StorageSettings.current().image_pixels)

    def __post_init__(self) -> None:
        self._decoding = Semaphore(self.threads)  # more threads may read

    def rows(
        self, column: pa.Array, ids: pa.Array, row0: int, wanted: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Values [m, 3·S²] of the m images that could be decoded, and a mask [n] of those that
        could not.

        Args:
            column: n encoded images, or image files, which are read here.
            wanted: mask [n] of the images to decode; None for all.

        Raises:
            InputError: more images than allowed could not be decoded, naming the first.
        """
        chosen = np.arange(len(column)) if wanted is None else np.flatnonzero(wanted)
        images = column.take(pa.array(chosen))
        named = isinstance(images.type, ImageFile)
        values = uris_of(images) if named else [image.as_py() for image in images]
        decode_one = partial(self._try, read_file if named else None)
        remote = named and any(not is_local(uri) for uri in values[:1])
        readers = max(self.threads, _READERS if remote else 1)
        if readers > 1:
            with ThreadPoolExecutor(readers, "raypq-decode") as pool:
                decoded = list(pool.map(decode_one, values))
        else:
            decoded = [decode_one(value) for value in values]
        undecodable = np.zeros(len(column), bool)
        bad = [
            (int(at), result)
            for at, result in zip(chosen, decoded, strict=True)
            if isinstance(result, str)
        ]
        if bad:
            undecodable[[at for at, _ in bad]] = True
            self._count(bad, ids, row0)
        rows = [result for result in decoded if not isinstance(result, str)]
        X = np.stack(rows) if rows else np.empty((0, row_width(self.side)), np.float32)
        return X, undecodable

    def _try(self, read: Callable[[str], bytes] | None, value: Any) -> NDArray[np.float32] | str:
        """A decoded image, or why it cannot be decoded."""
        data = value if read is None else read(value)  # errors of reading are no bad image
        try:
            if not data:
                raise ValueError("no image" if data is None else "no bytes")
            with self._decoding:
                return decode(data, self.side, most_pixels=self.most_pixels)
        except MemoryError:
            raise  # not the image's fault
        except Exception as error:  # decoders raise anything for invalid bytes
            return f"{type(error).__name__}: {error}"

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
        names = ", ".join(repr(ids[place].as_py()) for place, _ in bad[:_SHOWN])
        more = ", …" if len(bad) > _SHOWN else ""
        console.warn(f"{self.where}: left out {len(bad)} undecodable image(s): {names}{more}")
