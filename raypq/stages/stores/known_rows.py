"""Codes and features of images that have not changed since an earlier run, kept row by row.

A shard of images changes when one of its images does. Decoding and a network cost thousands of
times what reading a code does, so only the images that are new or changed are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.features import FeatureBatch
from raypq.data.image_changes import ImageChanges
from raypq.data.known_images import KnownImages
from raypq.data.layouts.arrow_types import fixed_bytes
from raypq.data.layouts.image_files import VERSION_BYTES
from raypq.data.storage import join, stream
from raypq.data.store.shard_writer import Receipt
from raypq.data.stored import Kind, open_stored
from raypq.errors import InputError

_ROWS = 1 << 14
_MOST_BYTES = 1 << 30  # of a file's values, which are held in memory: 130,000 features of 2,048
_VERSION = {"version": pa.binary(VERSION_BYTES)}
_COLUMNS: dict[Kind, str] = {"codes": "code", "features": "feature"}


@dataclass(frozen=True, kw_only=True)
class KnownRows:
    """Images with their stored values [n, w], bytes."""

    images: KnownImages
    values: NDArray[np.uint8]

    def complete(self, batch: FeatureBatch, computed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The values of all images of a batch: those ``computed`` [m, w], and those known."""
        if batch.known is None:
            return computed
        values = self.values[batch.known]
        values[batch.known < 0] = computed
        return values


def read(store: str, kind: Kind, receipts: Sequence[Receipt], *, width: int) -> KnownRows | None:
    """The rows in earlier output files of the same work; None if there are none with versions.

    A file that is gone, damaged or very large is left out: its images are computed again.

    Args:
        width: bytes of a value.
    """
    column = _COLUMNS[kind]
    found: list[pa.RecordBatch] = []
    for receipt in receipts:
        if receipt.rows * width <= _MOST_BYTES:
            found += _columns(store, kind, receipt, {column: pa.binary(width), **_VERSION}) or []
    if not found or not _usable(found):
        return None
    images = KnownImages(
        ids=pa.concat_arrays([batch.column("id") for batch in found]),
        versions=pa.concat_arrays([batch.column("version") for batch in found]),
    )
    values = pa.concat_arrays([batch.column(column) for batch in found])
    return KnownRows(images=images, values=fixed_bytes(values))


def changes(store: str, receipts: Sequence[Receipt]) -> ImageChanges | None:
    """A comparison with the images of code files of the last version; None where there are none,
    or one of them is gone, damaged or without versions of images."""
    found: list[pa.RecordBatch] = []
    for receipt in receipts:
        batches = _columns(store, "codes", receipt, _VERSION)
        if batches is None:
            return None
        found += batches
    if not found or not _usable(found):
        return None
    return ImageChanges(
        pa.concat_arrays([batch.column("id") for batch in found]),
        pa.concat_arrays([batch.column("version") for batch in found]),
    )


def _columns(
    store: str, kind: Kind, receipt: Receipt, types: Mapping[str, pa.DataType]
) -> list[pa.RecordBatch] | None:
    """Ids and columns of a file; None if it cannot be read, or has none of these types."""
    try:
        with open_stored(join(store, receipt.path), kind, size=receipt.bytes) as file:
            if any(not file.has(name) or file.field(name).type != types[name] for name in types):
                return None
            return list(stream(file, _ROWS, columns=["id", *types]))
    except (InputError, OSError):
        return None


def _usable(batches: Sequence[pa.RecordBatch]) -> bool:
    """Whether ids have one type, and no value is null."""
    return len({batch.column("id").type for batch in batches}) == 1 and not any(
        array.null_count for batch in batches for array in batch.columns
    )
