"""The clusters of a version: centres, sizes and scores, in a sidecar; and centres being found.

The sidecar is a Parquet file with a row for each cluster: ``cluster`` (from 0), ``size`` (images),
``mean_score`` of its images (NaN without any) and ``centre``. The next run takes its centres over.
The state of a fit is a file without a version, so that a rerun goes on after a crash; ``gc``
removes it if nobody does.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from raypq import console
from raypq.config import Settings
from raypq.data import arrays
from raypq.data.storage import delete, exists, join, read_bytes, write_bytes
from raypq.data.store import sidecars
from raypq.data.store.names import Id
from raypq.data.store.sidecars import Sidecar
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError

_KIND = "clusters"


class About(Settings):
    """What is known of centres without reading them.

    Attributes:
        settings, fit: work ids of the settings, and of the settings and the codes, by which they
            were found.
        codes_version, rows: of the code store then. iterations: passes over them.
        mean_distance: mean squared distance of the rows to the centres before the last pass moved
            them (rows of unit length for cosine).
    """

    settings: Id
    fit: Id
    codes_version: int
    rows: int
    iterations: int
    mean_distance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Centres:
    """Centres C [k, D], float32, and how they were found."""

    C: NDArray[np.float32]
    about: About

    @classmethod
    def of_version(cls, store: str, version: Snapshot, settings: str) -> Self | None:
        """The centres of a version; None where they are of other settings or cannot be read."""
        named = version.sidecars(store).get(_KIND, ())
        if not named:
            return None
        try:
            about = About.model_validate(named[0].about)
            if about.settings != settings:
                return None
            table = pq.read_table(io.BytesIO(sidecars.read(store, named[0])), columns=["centre"])
            C = arrays.matrix(arrays.whole(table["centre"]), width=None, where=store)
        except (InputError, ValidationError, pa.ArrowException) as error:
            console.warn(
                f"{store}: the centres of version {version.version} cannot be used again, so new "
                f"ones are found: {error}"
            )
            return None
        return cls(C=np.ascontiguousarray(C, np.float32), about=about)


def write(
    store: str,
    centres: Centres,
    *,
    size: NDArray[np.int64],
    mean_score: NDArray[np.float32],
    metadata: dict[str, str],
) -> dict[str, list[Sidecar]]:
    """Writes the clusters of the next version, with sizes and mean scores [k], as its sidecar."""
    k, D = centres.C.shape
    fields = [
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mean_score", pa.float32(), nullable=False),
        pa.field("centre", pa.list_(pa.float32(), D), nullable=False),
    ]
    table = pa.Table.from_arrays(
        [
            pa.array(np.arange(k, dtype=np.int32)),
            pa.array(size),
            pa.array(mean_score),
            arrays.fixed_list(centres.C),
        ],
        schema=pa.schema(fields, metadata={"raypq.format": "1", **metadata}),
    )
    with sidecars.create(store, _KIND, "parquet") as draft:
        pq.write_table(table, draft.file, write_page_checksum=True)
        draft.about |= centres.about.model_dump(mode="json")
    return {_KIND: [draft.sidecar()]}


@dataclass(frozen=True, kw_only=True, eq=False)
class FitState:
    """Centres C [k, D] after passes with these mean squared distances."""

    C: NDArray[np.float32]
    errors: list[float]

    @classmethod
    def read(cls, store: str, fit: str, *, shape: tuple[int, int]) -> Self | None:
        """The state of an interrupted fit of this work id, with centres [k, D] of this shape."""
        uri = _state(store, fit)
        if not exists(uri):
            return None
        try:
            tensors = load_tensors(read_bytes(uri))
            C, errors = tensors["C"], tensors["errors"]
            if C.shape != shape or C.dtype != np.float32 or errors.ndim != 1:
                raise ValueError(f"centres of shape {C.shape}, expected {shape}")
            if not (np.isfinite(C).all() and np.isfinite(errors).all()):
                raise ValueError("NaN or Inf")
            return cls(C=C, errors=errors.tolist())
        except (SafetensorError, KeyError, ValueError) as error:
            console.warn(f"{uri}: not a state to go on from, so the fit starts anew: {error}")
            return None

    def write(self, store: str, fit: str) -> None:
        """Replaces the state in one step."""
        tensors: dict[str, Any] = {"C": self.C, "errors": np.array(self.errors)}
        write_bytes(_state(store, fit), save_tensors(tensors))


def remove_state(store: str, fit: str) -> None:
    """Removes the state of a fit."""
    delete(_state(store, fit))


def _state(store: str, fit: str) -> str:
    return join(store, f"{sidecars.FOLDER}/fit-{fit}.safetensors")
