"""Decoding the images of a shard, several at a time; those that cannot be decoded are counted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Semaphore
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.data.images import ImageFormat
from raypq.data.layouts.image_files import READERS, ImageFile, read_file, uris_of
from raypq.data.storage import StorageSettings, is_local
from raypq.errors import InputError

_SHOWN = 5  # images named in a warning


@dataclass
class Decoder:
    """Decodes the images of one shard; leaves out up to ``allowed`` that cannot be decoded.

    Attributes:
        format: of the rows.
        threads: that decode at the same time.
        left_out: images that were left out so far.
    """

    format: ImageFormat
    allowed: int
    where: str
    threads: int = 1
    left_out: int = 0
    most_pixels: int = field(default_factory=lambda: StorageSettings.current().image_pixels)

    def __post_init__(self) -> None:
        self._decoding = Semaphore(self.threads)  # more threads may read

    def rows(
        self, column: pa.Array, ids: pa.Array, row0: int, wanted: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Rows [m, width] of the m images that could be decoded, and a mask [n] of those that
        could not.

        Args:
            column: n encoded images, or image files, which are read here.
            wanted: mask [n] of the images to decode; None for all.

        Raises:
            InputError: more images than allowed could not be decoded, naming the first.
        """
        chosen = np.arange(len(column)) if wanted is None else np.flatnonzero(wanted)
        named = isinstance(column.type, ImageFile)
        uris = uris_of(column) if named else []
        values = [uris[at] if named else column[int(at)].as_py() for at in chosen]
        decode_one = partial(self._try, read_file if named else None)
        remote = named and any(not is_local(uri) for uri in values[:1])
        readers = max(self.threads, READERS if remote else 1)
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
        X = np.stack(rows) if rows else np.empty((0, self.format.width), self.format.dtype)
        return X, undecodable

    def _try(self, read: Callable[[str], bytes] | None, value: Any) -> NDArray[Any] | str:
        """A decoded image, or why it cannot be decoded."""
        data = value if read is None else read(value)  # errors of reading are no bad image
        try:
            if not data:
                raise ValueError("no image" if data is None else "no bytes")
            with self._decoding:
                return self.format.decode(data, self.most_pixels)
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
                expected="an image that can be decoded (--bad-images, columns.bad_images: leave "
                "some out)"
                if not self.allowed
                else f"at most {self.allowed} images of a shard that cannot be decoded",
                found=f"{reason} ({self.left_out} such image(s) so far)",
            )
        names = ", ".join(repr(ids[place].as_py()) for place, _ in bad[:_SHOWN])
        more = ", …" if len(bad) > _SHOWN else ""
        console.warn(f"{self.where}: left out {len(bad)} undecodable image(s): {names}{more}")
