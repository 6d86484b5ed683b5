"""Codes that say another shape than their model gives: every verb that reads codes refuses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tinystore

import raypq
from raypq import api
from raypq.config import (
    ClassifyJob,
    DuplicatesJob,
    InferSemanticsJob,
    RetrievalJob,
    SearchJob,
)
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.errors import RaypqError

VERBS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "classify": lambda root, common: api.classify(
        ClassifyJob(classes=classes(root), model=str(root / "model"), **common)
    ),
    "infer": lambda root, common: api.infer_semantics(
        InferSemanticsJob(classes=classes(root), model=str(root / "model"), **common)
    ),
    "search": lambda root, common: api.search(
        SearchJob(queries=[str(root / "f" / "0.parquet")], top_k=3, **common)
    ),
    "duplicates": lambda root, common: api.duplicates(DuplicatesJob(threshold=0.5, **common)),
    "retrieval": lambda root, common: api.evaluate_retrieval(
        RetrievalJob(
            at=[10],
            queries=[str(root / "f" / "0.parquet")],
            **{key: value for key, value in common.items() if key != "output"},
        )
    ),
    "open": lambda root, common: raypq.open(common["codes"]),
}


def classes(root: Path) -> str:
    E = np.random.default_rng(1).standard_normal((3, tinystore.DX)).astype(np.float32)
    path = root / "classes.parquet"
    pq.write_table(pa.table({"class_id": ["a", "b", "c"], "embedding": arrays.fixed_list(E)}), path)
    return str(path)


def relabelled(store: Path, **numbers: int) -> None:
    """Other numbers in the metadata of the code file; the snapshot agrees with the file."""
    (path,) = (store / "data").iterdir()
    table = pq.read_table(path)
    new = {f"raypq.{key}".encode(): str(value).encode() for key, value in numbers.items()}
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | new), path)
    file = store / snapshot.path_of(1)
    document = json.loads(file.read_text())
    document["shards"][0]["bytes"] = path.stat().st_size
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("numbers", [{"M": 3}, {"K": 15}, {"K": 1}], ids=str)
@pytest.mark.parametrize("verb", VERBS)
def test_codes_of_another_shape_are_refused(
    tmp_path: Path, verb: str, numbers: dict[str, int]
) -> None:
    labels = pa.array(["a", "b", "c"] * 10)
    ids = pa.array([str(number) for number in range(30)])
    tinystore.shard(tmp_path / "f" / "0.parquet", tinystore.vectors(30), ids, labels)
    tinystore.encode(tmp_path, str(tmp_path / "f"))
    common = {
        "codes": str(tmp_path / "codes"),
        "output": str(tmp_path / "out"),
        "where": tinystore.ALONE,
    }
    relabelled(tmp_path / "codes", **numbers)
    with pytest.raises(RaypqError) as caught:
        VERBS[verb](tmp_path, common)
    told = str(caught.value)
    assert "/data/" in told
    assert "expected codes of M = 4, K = 16" in told
    assert all(f"{key} = {value}" in told for key, value in numbers.items())
