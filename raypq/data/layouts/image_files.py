"""Image files as values of a column: their bytes are read when they are needed.

A column of the type ``ImageFile`` names files. ``read`` gives their bytes, several at a time; a
decoder may instead read each file itself, and skip those whose content it knows already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from raypq.data.storage import read_bytes
from raypq.errors import InputError

VERSION_BYTES = 8
READERS = 8  # files read at once, since a remote file takes long to begin


class ImageFile(pa.ExtensionType):  # type: ignore[misc]  # pyarrow has no types
    """The type of a column of image files: the URI of each, and a version that changes with it."""

    def __init__(self) -> None:
        fields = [("uri", pa.string()), ("version", pa.binary(VERSION_BYTES))]
        super().__init__(pa.struct(fields), "raypq.image_file")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> ImageFile:
        return cls()


def column(uris: Sequence[str], versions: pa.Array) -> pa.ExtensionArray:
    """A column of image files.

    Args:
        versions: fixed_size_binary of ``VERSION_BYTES``.
    """
    kind = ImageFile()
    storage = pa.StructArray.from_arrays(
        [pa.array(uris, pa.string()), versions], ["uri", "version"]
    )
    return pa.ExtensionArray.from_storage(kind, storage)


def uris_of(files: pa.ExtensionArray) -> list[str]:
    """The URI of each file of a column."""
    uris: list[str] = files.storage.field("uri").to_pylist()
    return uris


def versions_of(images: pa.Array) -> pa.FixedSizeBinaryArray:
    """A version of each image: of files, as their column has it; of bytes, a digest of them."""
    if isinstance(images.type, ImageFile):
        return images.storage.field("version")
    empty = bytes(VERSION_BYTES)
    digests = [
        hashlib.blake2b(image.as_buffer(), digest_size=VERSION_BYTES).digest()
        if image.is_valid
        else empty
        for image in images
    ]
    return pa.array(digests, pa.binary(VERSION_BYTES))


def read_file(uri: str) -> bytes:
    """The content of an image file.

    Raises:
        InputError: it is gone.
    """
    try:
        return read_bytes(uri)
    except FileNotFoundError:
        raise InputError(
            uri,
            expected="an image file, as it was listed",
            found="no such file; if the folder changes now, run again when it has settled",
        ) from None


def read(files: pa.ExtensionArray) -> pa.LargeBinaryArray:
    """The bytes of each file of a column."""
    with ThreadPoolExecutor(READERS, "raypq-read") as readers:
        return pa.array(list(readers.map(read_file, uris_of(files))), pa.large_binary())
