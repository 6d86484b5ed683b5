"""A large class table is read in batches into a file, with what a small one holds."""

from __future__ import annotations

import errno
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data import classes
from raypq.data.class_advice import advice
from raypq.data.classes import ClassTable
from raypq.data.stored_rows import StoredRows
from raypq.errors import InputError, WriteError
from raypq.kernels.stored_tables import RowFile


def write(path, E, kind, *, null=()):
    rows = [None if at in null else row.tolist() for at, row in enumerate(E)]
    ids = [f"c{at}" for at in range(len(E))]
    pq.write_table(pa.table({"class_id": ids, "embedding": pa.array(rows, kind)}), path)
    return str(path)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 3)], ids=["list", "fixed float16"]
)
def test_a_large_table_equals_a_small_one(tmp_path, monkeypatch, kind):
    E = np.random.default_rng(0).standard_normal((9000, 3)).astype(np.float16)
    E[5], E[7] = E[2], 0
    uri = write(tmp_path / "classes.parquet", E, kind, null={1, 8999})
    small = ClassTable.open(uri)
    monkeypatch.setattr(classes, "STREAMED_BYTES", 0)
    large = ClassTable.open(uri)
    assert isinstance(large.E, StoredRows)
    assert large.E.shape == (8998, 3)
    assert large.digest == small.digest
    assert large.excluded == small.excluded == ("c1", "c8999")
    assert large.ids.equals(small.ids)
    assert (large.embeddings == small.embeddings).all()
    every = np.arange(8998)
    assert advice(large, every) == advice(small, every) != []
    assert (pickle.loads(pickle.dumps(large)).embeddings == small.embeddings).all()


def test_rows_are_read_as_an_array_gives_them(tmp_path, monkeypatch):
    E = np.arange(60, dtype=np.float32).reshape(20, 3)
    monkeypatch.setattr(classes, "STREAMED_BYTES", 0)
    stored = ClassTable.open(write(tmp_path / "c.parquet", E, pa.list_(pa.float32()))).E
    assert stored is not None
    for index in (3, slice(2, 9), slice(9, 2), [4, 2, 2], [0, 19], []):
        at = np.array(index, np.int64) if isinstance(index, list) else index
        assert (stored[at] == E[at]).all()


def test_what_is_no_vector_is_refused_in_a_large_table_too(tmp_path, monkeypatch):
    monkeypatch.setattr(classes, "STREAMED_BYTES", 0)
    E = np.ones((3, 2), np.float32)
    E[2, 0] = np.nan
    uri = write(tmp_path / "classes.parquet", E, pa.list_(pa.float32()))
    with pytest.raises(InputError, match=r"id 'c2'.*finite"):
        ClassTable.open(uri)


def test_a_table_that_changes_during_a_job_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(classes, "STREAMED_BYTES", 0)
    E = np.ones((3, 2), np.float32)
    uri = write(tmp_path / "classes.parquet", E, pa.list_(pa.float32()))
    pickled = pickle.dumps(ClassTable.open(uri))
    E[1, 1] = 2
    write(tmp_path / "classes.parquet", E, pa.list_(pa.float32()))
    table = pickle.loads(pickled)
    with pytest.raises(InputError, match=r"classes\.parquet.*that the job began with"):
        table.embeddings  # noqa: B018


def test_a_full_disk_is_named(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(WriteError, match=r"temporary file in .*TMPDIR.*No space left"):
        RowFile(3).write(0, np.ones((2, 3), np.float32))
