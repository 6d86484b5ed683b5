"""Intermediate results that workers exchange: Arrow files in the output store.

They outlive the worker that wrote them. No version names them, so ``raypq snapshots gc`` removes
those of a crash.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.storage import (
    atomic_write,
    is_local,
    join,
    local_path,
    open_bytes,
    read_bytes,
    write_bytes,
)


def write(store: str, table: pa.Table) -> str:
    """Writes a table to a new file; returns its path in the store."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    path = _new_path()
    write_bytes(join(store, path), sink.getvalue())
    return path


def _new_path() -> str:
    return f"data/partial-{uuid.uuid4().hex}.arrow"


def read(store: str, path: str) -> pa.Table:
    """Reads a table that ``write`` wrote."""
    uri = join(store, path)
    if is_local(uri):
        data = pa.OSFile(str(local_path(uri)), "rb").read_buffer()
    else:
        data = pa.py_buffer(read_bytes(uri))
    return pa.ipc.open_file(data).read_all()


class PartitionedFile:
    """A file whose rows are in partitions, of which any can be read alone.

    Rows arrive in parts of any size, and are written as they arrive: a part becomes one record
    batch for each partition.
    """

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter, path: str, partitions: int) -> None:
        self._writer, self._partitions = writer, partitions
        self.path = path
        self.rows = 0

    def write(self, table: pa.Table, partition: NDArray[np.integer]) -> None:
        """Writes rows, each with the number of its partition [n]."""
        order = np.argsort(partition, kind="stable")
        ends = np.cumsum(np.bincount(partition, minlength=self._partitions))
        ordered = table.take(pa.array(order)).combine_chunks()
        start = 0
        for end in ends.tolist():
            part = ordered.slice(start, end - start).combine_chunks()
            (batch,) = part.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
            self._writer.write_batch(batch)
            start = end
        self.rows += len(table)


@contextmanager
def partitioned(store: str, schema: pa.Schema, partitions: int) -> Iterator[PartitionedFile]:
    """A new intermediate file of rows in so many partitions."""
    path = _new_path()
    with atomic_write(join(store, path)) as file, pa.ipc.new_file(file, schema) as writer:
        yield PartitionedFile(writer, path, partitions)


def read_partitions(
    store: str, paths: Iterable[str], schema: pa.Schema, partitions: int, chosen: range
) -> pa.Table:
    """The rows of some consecutive partitions of several files, in the order of the files."""
    batches = []
    for path in paths:
        with open_bytes(join(store, path)) as (file, _), pa.ipc.open_file(file) as reader:
            for part in range(0, reader.num_record_batches, partitions):
                batches += [reader.get_batch(part + number) for number in chosen]
    return pa.Table.from_batches([batch for batch in batches if len(batch)], schema)
