"""Codes of images that have not changed since an earlier run, which are kept row by row.

A shard of images changes when one of its images does. Decoding and a network cost thousands of
times what reading a code does, so only the images that are new or changed are encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.codes import CodeFile
from raypq.data.features import KnownImages
from raypq.data.storage import join
from raypq.data.store.shard_writer import Receipt
from raypq.errors import InputError

_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class KnownCodes:
    """Images with their codes B [n, M]."""

    images: KnownImages
    B: NDArray[np.uint8]


def read(store: str, receipts: Sequence[Receipt], *, M: int, K: int) -> KnownCodes | None:
    """The codes in earlier output files of the same work; None if there are none with versions.

    A file that is gone or damaged is left out: its images are encoded again.
    """
    ids: list[pa.Array] = []
    versions: list[pa.Array] = []
    codes: list[NDArray[np.uint8]] = []
    for receipt in receipts:
        try:
            file = CodeFile.open(join(store, receipt.path), size=receipt.bytes)
            if not file.version or (file.M, file.K) != (M, K):
                continue
            batches = list(file.batches(_ROWS, labels=False, versions=True))
        except (InputError, OSError):
            continue
        ids += [batch.ids for batch in batches]
        versions += [batch.versions for batch in batches]
        codes += [batch.B for batch in batches]
    if not ids or len({array.type for array in ids}) > 1:
        return None
    images = KnownImages(ids=pa.concat_arrays(ids), versions=pa.concat_arrays(versions))
    return KnownCodes(images=images, B=np.concatenate(codes))
