"""``.npz`` archives: vectors, and columns of one value a row; with a Parquet file, DataComp's.

An archive is read as a stream, so that a compressed one takes no more memory than a batch, and its
checksums are verified. Arrays that a job does not name are not read.
"""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data.layouts.array_source import ArraySource, Read, StoredArray
from raypq.data.layouts.npy import check_size, check_vectors, read_exactly, read_header, to_native
from raypq.data.layouts.source import Source
from raypq.data.storage import Shard, is_local, open_bytes
from raypq.errors import DamagedError, InputError

_DEFAULT = Columns().feature
_SKIPPED = 1 << 20  # bytes read at once to reach a row
_MOST_ARRAYS = 100  # that are opened to find the only one with vectors
_WIDEST = 1 << 12  # bytes of an id or label


@contextmanager
def open_source(shard: Shard, columns: Columns, metadata: Source | None) -> Iterator[ArraySource]:
    """Opens a ``.npz`` shard.

    Its array of the name of the feature column holds the vectors; if that is the default name and
    there is none, the only array [n, d] does. Arrays named as the id and label columns are these.

    Raises:
        InputError: no such array, or several that may be meant; arrays of other row counts.
    """
    with open_bytes(shard.uri) as (file, _):
        with _errors(shard.uri):
            archive = zipfile.ZipFile(file)
        with archive:
            members = _members(archive, shard.uri)
            yield ArraySource(shard.uri, _columns(archive, members, columns, shard.uri), metadata)


def _members(archive: zipfile.ZipFile, uri: str) -> dict[str, zipfile.ZipInfo]:
    """The arrays by name.

    Raises:
        InputError: two of one name.
    """
    names = Counter(info.filename.removesuffix(".npy") for info in archive.infolist())
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(uri, expected=f"one array '{twice[0]}'", found=f"{names[twice[0]]}")
    return {
        info.filename.removesuffix(".npy"): info
        for info in archive.infolist()
        if info.filename.endswith(".npy")
    }


def _columns(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], columns: Columns, uri: str
) -> dict[str, StoredArray]:
    """The vectors, ids and labels by the names of their columns."""
    name = columns.feature
    if name not in members:
        name = _only_vectors(archive, members, columns, uri)
    vectors = _array(archive, members[name], uri)
    check_vectors(vectors.shape, vectors.dtype, vectors.where)
    found = {columns.feature: vectors}
    for other in (columns.id, columns.label):
        if other in members and other != name:
            found[other] = _array(archive, members[other], uri)
            _check_values(found[other], vectors.shape[0])
    return found


def _only_vectors(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], columns: Columns, uri: str
) -> str:
    """The name of the only array [n, d] that is no id or label.

    Raises:
        InputError: the feature column was named, or there are several or none.
    """
    vectors = []
    if columns.feature == _DEFAULT and len(members) <= _MOST_ARRAYS:
        for name, info in members.items():
            if name not in (columns.id, columns.label):
                try:
                    array = _array(archive, info, uri)
                except InputError:  # not read
                    continue
                vectors += [name] if len(array.shape) == 2 else []
    if len(vectors) != 1:
        names = list(members)[:_MOST_ARRAYS]
        raise InputError(
            uri,
            expected=f"an array '{columns.feature}' (--feature-column, columns.feature)",
            found=f"arrays {', '.join(names)}" if names else "no array",
        )
    return vectors[0]


def _check_values(array: StoredArray, rows: int) -> None:
    """Refuses ids or labels that are not one value a row.

    Raises:
        InputError: another shape, or a type that no column of ids or labels has.
    """
    if array.shape != (rows,):
        raise InputError(
            array.where,
            expected=f"{rows} values, one for each vector",
            found=f"an array of shape {array.shape}",
        )
    if array.dtype.kind not in "iufbUS" or not 0 < array.dtype.itemsize <= _WIDEST:
        raise InputError(
            array.where,
            expected=f"integers, or text of at most {_WIDEST} bytes",
            found=f"{array.dtype}; write the array as integers or text",
        )


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, uri: str) -> StoredArray:
    """An array of the archive, by its header.

    Raises:
        InputError: see ``read_header``; a member of another size than its header says.
    """
    where = f"{uri}, array '{info.filename.removesuffix('.npy')}'"
    with _errors(uri), archive.open(info) as file:
        shape, dtype = read_header(file, where)
        start = file.tell()
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    check_size(info.file_size, start, shape, dtype, where)

    def open_at(row: int) -> Read:
        with _errors(uri):
            stream = archive.open(info)
            read_header(stream, where)
            left = row * row_bytes
            while left:
                left -= len(read_exactly(stream, min(left, _SKIPPED), where))

        def read(rows: int) -> NDArray[Any]:
            nonlocal row
            with _errors(uri):
                data = read_exactly(stream, rows * row_bytes, where)
                row += rows
                if row == shape[0]:
                    stream.read(1)  # at its end the checksum is verified
            return to_native(np.frombuffer(data, dtype).reshape(rows, *shape[1:]))

        return read

    return StoredArray(where=where, shape=shape, dtype=dtype, open_at=open_at)


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Names the archive in errors of the libraries that read it."""
    damaged = (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
        RuntimeError,  # an encrypted member
        UnicodeError,
    )  # fmt: skip
    try:
        yield
    except damaged as error:
        raise _damaged(uri, error) from None
    except OSError as error:  # of bz2, without a number
        if error.errno is not None or not is_local(uri):
            raise
        raise _damaged(uri, error) from None


def _damaged(uri: str, error: Exception) -> DamagedError:
    reason = str(error) or type(error).__name__
    return DamagedError(uri, expected="a complete .npz archive that is not encrypted", found=reason)
