"""Class tables from the names of classes, by a text encoder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq import console, kernels, machine
from raypq.backbones.text_encoder import embed_names
from raypq.backbones.text_networks import load_text_encoder
from raypq.config import EmbedClassesJob
from raypq.data import arrays
from raypq.data.class_names import ClassNames, read_names, read_synsets
from raypq.data.network_info import EncoderInfo
from raypq.data.storage import atomic_write, exists
from raypq.errors import ConfigError


def embed_classes(job: EmbedClassesJob) -> dict[str, Any]:
    """Writes a class table with an embedding of each class.

    Returns:
        What was done, as plain values.

    Raises:
        ConfigError: an encoder that cannot be loaded, or a table exists at the output.
        InputError: names that cannot be read, or whose vectors are not finite.
    """
    start = time.monotonic()
    if not job.overwrite and exists(job.output):
        raise ConfigError(
            f"output: {job.output} exists; name another file, or pass --overwrite (overwrite: "
            "true) to replace it"
        )
    names = read_names(job.names) if job.names is not None else read_synsets(job.synsets or "")
    kernels.set_threads(machine.usable().workers())
    encoder = load_text_encoder(job.encoder, weights=job.weights, device=job.device)
    info = EncoderInfo(
        name=job.encoder,
        weights=encoder.weights,
        templates=tuple(job.template),
        pooling=encoder.pooling,
    )
    several = job.prototypes == "all"
    E, units = embed_names(encoder, names.names, job.template, where=names.uri, keep=several)
    column = arrays.fixed_list(E)
    notes = info.note | (encoder.logits.note if encoder.logits else {})
    table = _others(names).append_column(
        pa.field("embedding", column.type, nullable=False, metadata=notes), column
    )
    if several:
        table = table.append_column("prototypes", _prototypes(names, units))
    with atomic_write(job.output) as sink:
        pq.write_table(table, sink, write_page_checksum=True)
    seconds = time.monotonic() - start
    console.say(f"embedded {len(E)} classes in {seconds:.1f} s: {job.output}")
    return {
        "classes": job.output,
        "count": len(E),
        "da": E.shape[1],
        "encoder": info.model_dump(mode="json"),
        "seconds": seconds,
    }


def _prototypes(names: ClassNames, units: Sequence[NDArray[np.float32]]) -> pa.Array:
    """The vectors of every name in every template, a list for each class."""
    counts = np.array([len(several) for several in names.names])
    owner = np.tile(np.repeat(np.arange(len(counts)), counts), len(units))
    order = np.argsort(owner, kind="stable")
    values = arrays.fixed_list(np.concatenate(units)[order])
    offsets = np.concatenate([[0], np.cumsum(counts * len(units))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _others(names: ClassNames) -> pa.Table:
    """The columns besides the embedding: class_id, name, and those of the file of names."""
    table = pa.table({"class_id": pa.array(names.ids, pa.string())})
    if names.others is None:
        return table.append_column("name", pa.array([several[0] for several in names.names]))
    for column in names.others.schema:
        table = table.append_column(column, names.others.column(column.name))
    if not pa.types.is_string(table.schema.field("name").type):
        first = pa.array([several[0] for several in names.names])
        table = table.set_column(table.schema.get_field_index("name"), "name", first)
    return table
