"""``.npz`` archives: vectors, and columns of one value a row; with a Parquet file, DataComp's.

An archive is read as a stream, so that a compressed one takes no more memory than a batch, and its
checksums are verified.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data.layouts.array_source import ArraySource, Read, StoredArray
from raypq.data.layouts.npy import check_vectors, read_exactly, read_header, to_native
from raypq.data.layouts.source import Source
from raypq.data.storage import Shard, open_bytes
from raypq.errors import DamagedError, InputError

_DEFAULT = Columns().feature
_SKIPPED = 1 << 20  # bytes read at once to reach a row


@contextmanager
def open_source(shard: Shard, feature: str, metadata: Source | None) -> Iterator[ArraySource]:
    """Opens a ``.npz`` shard.

    Its array ``feature`` holds the vectors; if that is the default name and there is none, the only
    array of vectors does. Arrays of one value a row are columns.

    Raises:
        InputError: no such array, or several that may be meant; arrays of other row counts.
    """
    with open_bytes(shard.uri) as (file, _):
        try:
            with zipfile.ZipFile(file) as archive:
                found = {
                    name.removesuffix(".npy"): _array(archive, name, shard.uri)
                    for name in archive.namelist()
                }
                yield ArraySource(shard.uri, _columns(found, feature, shard.uri), metadata)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise DamagedError(
                shard.uri, expected="a complete .npz archive", found=str(error)
            ) from None


def _array(archive: zipfile.ZipFile, member: str, uri: str) -> StoredArray:
    where = f"{uri}, array '{member.removesuffix('.npy')}'"
    with archive.open(member) as file:
        shape, dtype = read_header(file, where)

    def open_at(row: int) -> Read:
        stream = archive.open(member)
        read_header(stream, where)
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        left = row * row_bytes
        while left:
            left -= len(read_exactly(stream, min(left, _SKIPPED), where))

        def read(rows: int) -> NDArray[Any]:
            data = read_exactly(stream, rows * row_bytes, where)
            return to_native(np.frombuffer(data, dtype).reshape(rows, *shape[1:]))

        return read

    return StoredArray(shape=shape, dtype=dtype, open_at=open_at)


def _columns(found: dict[str, StoredArray], feature: str, uri: str) -> dict[str, StoredArray]:
    """The arrays that are columns, the vectors under the name ``feature``.

    Raises:
        InputError: see ``open_source``.
    """
    vectors = [name for name, array in found.items() if len(array.shape) == 2]
    name = feature
    if name not in found and feature == _DEFAULT and len(vectors) == 1:
        (name,) = vectors
    if name not in found:
        raise InputError(
            uri,
            expected=f"an array '{feature}' (--feature-column, columns.feature)",
            found=f"arrays {', '.join(found) or 'of no name'}",
        )
    array = found[name]
    check_vectors(array.shape, array.dtype, f"{uri}, array '{name}'")
    columns = {feature: array}
    for other, values in found.items():
        if other == name or len(values.shape) != 1 or values.dtype.kind not in "iubUS":
            continue
        if values.shape != array.shape[:1]:
            raise InputError(
                f"{uri}, array '{other}'",
                expected=f"{array.shape[0]} values, one for each row of '{name}'",
                found=f"{values.shape[0]}",
            )
        columns[other] = values
    return columns
