"""Intermediate results that workers exchange: Arrow files in the output store.

They outlive the worker that wrote them. No version names them, so ``raypq snapshots gc`` removes
those of a crash.
"""

from __future__ import annotations

import uuid

import pyarrow as pa

from raypq.data.storage import is_local, join, local_path, read_bytes, write_bytes


def write(store: str, table: pa.Table) -> str:
    """Writes a table to a new file; returns its path in the store."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    path = f"data/partial-{uuid.uuid4().hex}.arrow"
    write_bytes(join(store, path), sink.getvalue())
    return path


def read(store: str, path: str) -> pa.Table:
    """Reads a table that ``write`` wrote."""
    uri = join(store, path)
    if is_local(uri):
        data = pa.OSFile(str(local_path(uri)), "rb").read_buffer()
    else:
        data = pa.py_buffer(read_bytes(uri))
    return pa.ipc.open_file(data).read_all()
