"""Plain ``.npy`` files, and those of clip-retrieval beside their Parquet metadata.

Rows are read, not mapped: a mapped file that another process cuts short would end this one by
SIGBUS, and mapped pages count as a worker's memory. Reading costs one copy from the page cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data.layouts.array_source import ArraySource, Read, StoredArray
from raypq.data.layouts.source import Source
from raypq.data.storage import Shard, open_bytes
from raypq.errors import DamagedError, InputError

_MOST_BYTES = 1 << 60
_MAX_HEADER = 10_000  # bytes; that of a plain array is 118


@contextmanager
def open_source(shard: Shard, columns: Columns, metadata: Source | None) -> Iterator[ArraySource]:
    """Opens a ``.npy`` shard, whose array is the feature column.

    Raises:
        InputError: no array [n, d] of numbers in C order, or one that is cut off.
    """
    with open_bytes(shard.uri) as (file, size):
        shape, dtype = read_header(file, shard.uri)
        check_vectors(shape, dtype, shard.uri)
        start = file.tell()
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        check_size(size, start, shape, dtype, shard.uri)

        def open_at(row: int) -> Read:
            place = start + row * row_bytes

            def read(rows: int) -> NDArray[Any]:
                nonlocal place
                file.seek(place)  # several readers may share the file
                data = read_exactly(file, rows * row_bytes, shard.uri)
                place += len(data)
                return to_native(np.frombuffer(data, dtype).reshape(rows, *shape[1:]))

            return read

        array = StoredArray(where=shard.uri, shape=shape, dtype=dtype, open_at=open_at)
        yield ArraySource(shard.uri, {columns.feature: array}, metadata)


def read_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array in C order; the file is then at its first value.

    Raises:
        InputError: no ``.npy`` format, Fortran order, or Python objects, which are never unpickled.
    """
    try:
        version = npy_format.read_magic(file)
        readers: dict[tuple[int, int], Callable[..., Any]] = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        shape, fortran, dtype = readers[version](file, max_header_size=_MAX_HEADER)
        if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize > _MOST_BYTES:
            raise ValueError(f"an array of shape {shape}")
    except OSError:  # of the storage
        raise
    except Exception as error:  # the header is a Python literal, whose parser may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(
            where, expected="an array in the .npy format, version 1 or 2", found=reason
        ) from None
    if dtype.hasobject:
        raise InputError(
            where,
            expected="an array of numbers",
            found="Python objects, which raypq does not unpickle; write np.stack(...) of the rows",
        )
    if fortran and len(shape) > 1 and min(shape) > 1:
        raise InputError(
            where,
            expected="an array in C order (row by row)",
            found="Fortran order; write np.ascontiguousarray(X)",
        )
    return shape, dtype


def check_size(
    size: int, start: int, shape: tuple[int, ...], dtype: np.dtype[Any], where: str
) -> None:
    """Refuses a file that is not as long as its header says.

    Args:
        size: of the file in bytes. start: place of its first value.

    Raises:
        DamagedError: naming both sizes.
    """
    expected = start + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise DamagedError(
            where,
            expected=f"{expected} bytes for an array of shape {shape} of {dtype.name}",
            found=f"{size} bytes",
        )


def check_vectors(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Refuses an array that is not one vector of numbers a row.

    Raises:
        InputError: naming the shape or the type.
    """
    if len(shape) != 2 or not shape[1]:
        raise InputError(
            where, expected="an array [n, d], one vector a row", found=f"one of shape {shape}"
        )
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        note = ""
        if dtype.kind == "V" and dtype.itemsize == 2:
            note = " (bfloat16 is saved so; write it as float32)"
        raise InputError(
            where,
            expected="float16, float32 or float64 values, or integers",
            found=f"{dtype}{note}",
        )


def read_exactly(file: IO[bytes], size: int, where: str) -> bytes:
    """So many bytes of a file.

    Raises:
        DamagedError: it ends before.
    """
    data = file.read(size)
    if len(data) != size:
        raise DamagedError(where, expected=f"{size} more bytes", found=f"{len(data)}, then its end")
    return data


def to_native(values: NDArray[Any]) -> NDArray[Any]:
    """Values in this machine's byte order; no copy if they are."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)
