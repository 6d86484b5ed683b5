"""Encoded images become rows; what cannot be decoded is named and counted."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from raypq.config import Columns
from raypq.data.features import read_batches
from raypq.data.images import decode, thumbnail
from raypq.data.store.sources import open_sources
from raypq.data.survey import survey
from raypq.errors import InputError, JobError

SIDE = 4
COLUMNS = Columns(feature="image", image_size=SIDE)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def pixels(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_values_are_channels_first_in_0_to_1():
    P = pixels(0)
    found = decode(encoded(P), SIDE)
    assert (found.dtype, found.shape) == (np.float32, (48,))
    np.testing.assert_allclose(found.reshape(3, SIDE, SIDE), P.transpose(2, 0, 1) / 255, rtol=1e-6)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        picture = Image.fromarray(np.zeros((SIDE, SIDE), np.uint16))
    else:
        picture = Image.fromarray(pixels(1)).convert(mode)
    found = decode(encoded(picture, "TIFF" if mode == "CMYK" else "PNG"), SIDE)
    assert found.shape == (48,)
    assert np.isfinite(found).all()
    if mode == "L":
        red, green, blue = found.reshape(3, -1)
        np.testing.assert_array_equal(red, green)
        np.testing.assert_array_equal(red, blue)


def test_grey_of_16_bits_is_scaled_and_not_cut_off():
    grey = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 4096
    for kind in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(grey), kind), SIDE).reshape(3, SIDE, SIDE)
        np.testing.assert_allclose(found, np.stack([grey >> 8] * 3) / 255, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_grey_of_32_bits_needs_values_of_8(kind):
    good = encoded(Image.fromarray(np.full((SIDE, SIDE), 200, kind)), "TIFF")
    np.testing.assert_allclose(decode(good, SIDE), 200 / 255, rtol=1e-6)
    with pytest.raises(ValueError, match="32-bit grey values from 300 to 300"):
        decode(encoded(Image.fromarray(np.full((SIDE, SIDE), 300, kind)), "TIFF"), SIDE)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_pictures_are_turned_upright(mode, orientation):
    from PIL import ImageOps

    picture = Image.fromarray(np.kron(pixels(4, 3), np.ones((16, 24, 1), np.uint8))).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    picture.save(data, "TIFF" if mode in ("CMYK", "P") else "JPEG", exif=exif)
    with Image.open(data) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    wanted = np.asarray(ImageOps.fit(upright, (8, 8), Image.Resampling.BILINEAR)) / np.float32(255)
    np.testing.assert_array_equal(
        decode(data.getvalue(), 8).reshape(3, 8, 8), wanted.transpose(2, 0, 1)
    )


def test_another_size_is_cut_to_a_square_and_scaled():
    grey = np.full((10, 30, 3), 128, np.uint8)
    grey[:, :8] = 0  # cut away
    found = decode(encoded(grey), SIDE)
    np.testing.assert_allclose(found, 128 / 255, atol=0.01)


@pytest.fixture
def shard(write):
    """Eight images of which two are none."""
    data = [encoded(pixels(i)) for i in range(8)]
    data[2], data[5] = b"not an image", data[5][:30]
    names = [f"i{i}" for i in range(8)]
    return write("images/part.parquet", id=names, image=data, label=[f"c{i}" for i in range(8)])


def read(shard: str, columns: Columns, width: int | None = None):
    store = open_sources([shard], columns)
    return list(read_batches(store.shards[0], columns, width=width))


def test_an_undecodable_image_is_named(shard):
    with pytest.raises(InputError, match=r"row 2 \(id 'i2'\): expected an image that can be"):
        read(shard, COLUMNS)


def test_so_many_may_be_left_out(shard, caplog):
    some = COLUMNS.model_copy(update={"bad_images": 2})
    (batch,) = read(shard, some)
    assert batch.ids.to_pylist() == ["i0", "i1", "i3", "i4", "i6", "i7"]
    assert batch.labels.to_pylist() == ["c0", "c1", "c3", "c4", "c6", "c7"]
    assert batch.X.shape == (6, 48)
    assert "left out 2 undecodable image(s): 'i2', 'i5'" in caplog.text
    with pytest.raises(InputError, match="at most 1 images of a shard"):
        read(shard, COLUMNS.model_copy(update={"bad_images": 1}))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int) -> bytes:
    fields = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", fields)


def png(width: int, height: int, *more: bytes, rows: int = 0) -> bytes:
    """A PNG of few bytes, black; with other chunks, and rows beyond its height."""
    pack = zlib.compressobj(9)
    line = bytes(1 + 3 * width)
    data = b"".join(pack.compress(line) for _ in range(height + rows)) + pack.flush()
    return header(width, height) + b"".join([*more, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def tiled_tiff(tile: int) -> bytes:
    """A TIFF of 8 x 8 pixels in one tile that is larger than they are."""
    pixels = zlib.compress(bytes(1000))
    tags = {
        256: 8,
        257: 8,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: tile,
        323: tile,
        324: 134,
        325: len(pixels),
    }
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return head + fields + bytes(4) + pixels


PACKED = zlib.compress(bytes(80 << 20), 9)  # 80 MB in 80 KB
GREY = Image.new("L", (40, 40), 7)
HOSTILE = {
    "png": (png(40, 40), "40 x 40 pixels, more than 0.001 million"),
    "a thin one": (png(1, 1001), "1 x 1001 pixels"),
    "jpeg": (encoded(GREY, "JPEG"), "40 x 40 pixels"),
    "tiff": (encoded(GREY, "TIFF"), "40 x 40 pixels"),
    "a tile of tiff": (tiled_tiff(16_000), "16000 x 16000 pixels"),
    "gif": (encoded(GREY, "GIF"), "40 x 40 pixels"),
    "webp": (encoded(GREY, "WEBP"), "40 x 40 pixels"),
    "bmp": (encoded(GREY, "BMP"), "40 x 40 pixels"),
    "jpeg 2000": (encoded(GREY, "JPEG2000"), "40 x 40 pixels"),
    "avif": (encoded(GREY, "AVIF"), "40 x 40 pixels"),
    "a header alone": (header(40_000, 40_000) + chunk(b"IDAT", b""), "exceeds limit"),
    "another header alone": (header(4_000, 4_000) + chunk(b"IDAT", b""), "4000 x 4000 pixels"),
    "text": (png(4, 4, chunk(b"iTXt", b"k\0\1\0\0\0" + PACKED)), "too large"),
    "old text": (png(4, 4, chunk(b"zTXt", b"k\0\0" + PACKED)), "too large"),
    "a profile": (png(4, 4, chunk(b"iCCP", b"k\0\0" + PACKED)), "too large"),
    "cut off": (encoded(pixels(0, 30))[:300], "truncated"),
    "jpeg cut off": (encoded(pixels(0, 30), "JPEG")[:700], "truncated"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", "cannot"),
    "an icon": (encoded(GREY, "ICO"), "cannot"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_asks_for_too_much_is_a_bad_image(name, write, monkeypatch):
    """Of the good neighbours nothing is lost, and the id is named."""
    data, told = HOSTILE[name]
    monkeypatch.setenv("RAYPQ_STORAGE_IMAGE_MEGAPIXELS", "0.001")
    good = encoded(pixels(0))
    path = write("images/one.parquet", id=["a", "b", "c"], image=[good, data, good])
    with pytest.raises(InputError, match=rf"row 1 \(id 'b'\).*{told}"):
        read(path, COLUMNS)
    (batch,) = read(path, COLUMNS.model_copy(update={"bad_images": 1}))
    assert batch.ids.to_pylist() == ["a", "c"]


def test_a_small_file_of_many_pixels_is_not_decoded():
    """88 million pixels, just below what Pillow warns of, in 258 KB."""
    with pytest.raises(ValueError, match=r"more than 50 million .*RAYPQ_STORAGE_IMAGE_MEGAPIXELS"):
        decode(png(9400, 9400), SIDE)


def test_only_the_first_picture_of_several_is_decoded():
    first, *rest = (Image.fromarray(pixels(i)) for i in range(5))
    for kind in ("TIFF", "WEBP", "GIF", "PNG"):
        data = io.BytesIO()
        first.save(
            data,
            kind,
            save_all=True,
            append_images=rest,
            **{"lossless": True} if kind == "WEBP" else {},
        )
        if kind != "GIF":  # whose palette changes colours
            np.testing.assert_array_equal(
                decode(data.getvalue(), SIDE), decode(encoded(first), SIDE)
            )
        assert decode(data.getvalue(), SIDE).shape == (48,)


def test_no_memory_is_no_fault_of_the_image(write, monkeypatch):
    """A limit of the machine fails the shard; images must not go missing for it."""

    def no_memory(*_, **__):
        raise MemoryError

    path = write("images/one.parquet", id=["a"], image=[encoded(pixels(0, 9))])
    monkeypatch.setattr(Image.Image, "load", no_memory)
    with pytest.raises(MemoryError):
        read(path, COLUMNS.model_copy(update={"bad_images": 1}))


def test_a_null_or_empty_image(write):
    path = write("images/one.parquet", id=["a", "b"], image=[encoded(pixels(0)), None])
    with pytest.raises(InputError, match=r"\(id 'b'\).*no image"):
        read(path, COLUMNS)


def test_a_model_says_the_size(shard):
    some = Columns(feature="image", bad_images=2)
    assert read(shard, some, width=48)[0].X.shape == (6, 48)
    with pytest.raises(InputError, match="a square picture has"):
        read(shard, some, width=50)
    with pytest.raises(JobError, match="--image-size"):
        survey(open_sources([shard], some))


def test_the_footer_gives_the_width(shard):
    assert survey(open_sources([shard], COLUMNS)).width == 48


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_thumbnail_is_upright_whole_and_without_metadata(kind):
    picture = Image.fromarray(np.kron(pixels(4, 3), np.ones((200, 300, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a private place"
    data = io.BytesIO()
    picture.save(data, kind, exif=exif)
    small = thumbnail(data.getvalue(), 128)
    assert small.size == (85, 128), "turned, and in proportion"
    assert small.mode == "RGB"
    assert not small.info
    wanted = picture.transpose(Image.Transpose.ROTATE_270).resize(small.size)
    assert np.abs(np.asarray(small, float) - np.asarray(wanted, float)).mean() < 12
    saved = io.BytesIO()
    small.save(saved, "JPEG")
    assert b"private" not in saved.getvalue()


def test_a_thumbnail_is_never_enlarged_and_keeps_the_limit_of_pixels():
    assert thumbnail(encoded(pixels(1)), 128).size == (SIDE, SIDE)
    assert thumbnail(encoded(pixels(1, 64)), 16).size == (16, 16)
    with pytest.raises(ValueError, match="64 x 64 pixels, more than"):
        thumbnail(encoded(pixels(1, 64)), 16, most_pixels=100)
    large = encoded(Image.new("RGB", (4096, 4096)), "JPEG")
    with pytest.raises(ValueError, match="4096 x 4096 pixels, more than"):
        thumbnail(large, 16, most_pixels=4096)  # not those of the reduced scale
