"""Warnings on class tables whose classes cannot be distinguished."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data.class_advice import advice, alike
from raypq.data.classes import ClassTable


def table_of(
    folder: Path, E: list[list[float] | None], seen: list[bool] | None = None
) -> ClassTable:
    path = str(folder / "classes.parquet")
    columns = {
        "class_id": [f"n{number}" for number in range(len(E))],
        "name": ["crane" if number in (1, 3) else f"name {number}" for number in range(len(E))],
        "embedding": pa.array(E, pa.list_(pa.float32())),
    }
    pq.write_table(pa.table({**columns, **({"seen": seen} if seen else {})}), path)
    return ClassTable.open(path)


def test_classes_with_equal_embeddings_are_named(tmp_path):
    table = table_of(tmp_path, [[0, 1], [1, 2], [3, 4], [1, 2], [5, 6], [-0.0, 1]])
    every = np.arange(len(table))
    assert alike(table, every) == [[0, 5], [1, 3]]
    (warning,) = advice(table, every)
    assert "4 of 6 classes" in warning
    assert "'crane' (n1) and 'crane' (n3)" in warning


def test_only_candidates_are_compared(tmp_path):
    table = table_of(tmp_path, [[0, 1], [1, 2], [3, 4], [1, 2]])
    assert not advice(table, np.array([0, 1, 2]))
    assert alike(table, np.array([1, 3])) == [[1, 3]]


@pytest.mark.parametrize("null", [True, False])
def test_unseen_classes_without_embeddings_are_told(tmp_path, null):
    table = table_of(tmp_path, [[0, 1], [1, 2], None if null else [2, 2]], [True, True, False])
    found = advice(table, np.arange(len(table)))
    assert len(found) == null
    if null:
        assert "all 2 classes with an embedding are seen (1 have none)" in found[0]
