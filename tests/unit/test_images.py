"""Encoded images become rows; what cannot be decoded is named and counted."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
from PIL import Image

from raypq.config import Columns
from raypq.data.features import FeatureStore, read_batches, survey
from raypq.data.images import decode
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
    store = FeatureStore.open([shard], columns)
    return list(read_batches(store.shards[0], columns, width=width))


def test_an_undecodable_image_is_named(shard):
    with pytest.raises(InputError, match=r"row 2 \(id 'i2'\): expected an image that can be"):
        read(shard, COLUMNS)


def test_so_many_may_be_left_out(shard, caplog):
    some = COLUMNS.model_copy(update={"bad_images": 2})
    logging.getLogger("raypq").propagate = True
    (batch,) = read(shard, some)
    assert batch.ids.to_pylist() == ["i0", "i1", "i3", "i4", "i6", "i7"]
    assert batch.labels.to_pylist() == ["c0", "c1", "c3", "c4", "c6", "c7"]
    assert batch.X.shape == (6, 48)
    assert "left out 2 undecodable image(s): 'i2', 'i5'" in caplog.text
    with pytest.raises(InputError, match="at most 1 images of a shard"):
        read(shard, COLUMNS.model_copy(update={"bad_images": 1}))


def test_a_null_or_empty_image(write):
    path = write("images/one.parquet", id=["a", "b"], image=[encoded(pixels(0)), None])
    with pytest.raises(InputError, match=r"\(id 'b'\).*no bytes"):
        read(path, COLUMNS)


def test_a_model_says_the_size(shard):
    some = Columns(feature="image", bad_images=2)
    assert read(shard, some, width=48)[0].X.shape == (6, 48)
    with pytest.raises(InputError, match="a square picture has"):
        read(shard, some, width=50)
    with pytest.raises(JobError, match="--image-size"):
        survey(FeatureStore.open([shard], some))


def test_the_footer_gives_the_width(shard):
    assert survey(FeatureStore.open([shard], COLUMNS)).width == 48
