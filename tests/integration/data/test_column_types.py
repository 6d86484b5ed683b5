"""Columns of every type that is read give the same answers in every verb that reads features."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tinystore import ALONE, encode, rows_of, search, shard, vectors

from raypq import api
from raypq.config import (
    ClusterabilityJob,
    Columns,
    RepackJob,
    RetrievalJob,
    SplitJob,
    TrainJob,
)
from raypq.data import arrays

N = 120
X = vectors(N)
TEXTS = [str(uuid.UUID(int=(9 << 120) + 7919 * row)) for row in range(N)]
LABELS = [f"c{row % 3}" for row in range(N)]
LISTS = pa.list_(pa.float32())


def views(values: list[str]) -> pa.Array:
    return pa.array(values, pa.string_view())


PLAIN = {"id": pa.array(TEXTS), "feature": arrays.fixed_list(X), "label": pa.array(LABELS)}
CASES: dict[str, dict[str, Any]] = {
    "uuid": {"id": pa.array([uuid.UUID(text).bytes for text in TEXTS], pa.uuid())},
    "large_string": {"id": pa.array(TEXTS, pa.large_string())},
    "string_view": {"id": views(TEXTS), "label": views(LABELS)},
    "bytes of text": {"id": pa.array([text.encode() for text in TEXTS])},
    "bytes of text, views": {"id": pa.array([t.encode() for t in TEXTS], pa.binary_view())},
    "dictionary": {"id": pa.array(TEXTS).dictionary_encode()},
    "list": {"feature": pa.array(X.tolist(), LISTS)},
    "list_view": {"feature": pa.array(X.tolist(), pa.list_view(pa.float32()))},
    "large_list of float64": {"feature": pa.array(X.tolist(), pa.large_list(pa.float64()))},
    "one list within a list": {"feature": pa.array([[row] for row in X.tolist()], pa.list_(LISTS))},
    "bytes": {"feature": pa.array([row.tobytes() for row in X])},
    "bytes, views": {"feature": pa.array([row.tobytes() for row in X], pa.binary_view())},
    "half bytes": {"feature": pa.array([row.astype("f2").tobytes() for row in X])},
    "fixed bytes": {"feature": pa.array([row.tobytes() for row in X], pa.binary(4 * X.shape[1]))},
}


def answers(root: Path, columns: dict[str, pa.Array]) -> dict[str, Any]:
    """What the verbs say of two shards with such columns."""
    features = root / "features"
    features.mkdir()
    table = pa.table(columns)
    for part in range(2):
        pq.write_table(table.slice(part * 60, 60), features / f"p{part}.parquet")
    pq.write_table(table.slice(0, 5), root / "q.parquet")
    place, queries, width = [str(features)], [str(root / "q.parquet")], Columns(width=X.shape[1])
    model = api.train(
        TrainJob(
            method="pq", features=place, output=str(root / "trained"), columns=width,
            settings={"M": 2, "K": 16, "iterations": 2}, where=ALONE,
        )
    ).model  # fmt: skip
    encode(root, str(features))
    codes = str(root / "codes")
    found = {"C": model.C.tolist(), "codes": rows_of(codes).to_pylist()}
    some = search(codes, root / "out", queries=queries, rerank=20, features=place, top_k=4)
    found["rerank"] = some.to_pylist()
    judged = RetrievalJob(codes=codes, queries=queries, features=place, at=(1, 10), where=ALONE)
    figures = api.evaluate_retrieval(judged)
    found["figures"] = {name: figures[name] for name in figures if name not in ("codes", "run")}
    probe = ClusterabilityJob(features=place, space="raw", columns=width, restarts=1)
    found["clusters"] = api.clusterability(probe)
    api.repack(RepackJob(features=place, output=str(root / "packed"), columns=width, where=ALONE))
    encode(root, str(root / "packed"), output="again")
    found["repacked"] = rows_of(root / "again").to_pylist()
    job = SplitJob(
        protocol=1, features=place, output=str(root / "parts"), queries=10, labelled=5, where=ALONE
    )
    api.split(job)
    for part in ("labelled", "unlabelled", "queries"):
        encode(root, str(root / "parts" / part), output=f"codes-{part}")
        found[part] = rows_of(root / f"codes-{part}").to_pylist()
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answers(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.mark.parametrize("case", CASES)
def test_columns_of_every_type_in_every_verb(plain, tmp_path, case):
    assert answers(tmp_path, PLAIN | CASES[case]) == plain


def test_classes_of_every_type(tmp_path):
    """Views cannot be filtered by pyarrow: a class without embedding must go all the same."""
    from raypq.data.classes import ClassTable

    columns = {
        "class_id": views(["a", "b", "c"]), "name": views(["A", "B", "C"]),
        "embedding": pa.array([[1, 2], None, [3, 4]], pa.list_view(pa.int8())),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "classes.parquet")
    table = ClassTable.open(str(tmp_path / "classes.parquet"))
    assert (table.ids.to_pylist(), table.names, table.excluded) == (["a", "c"], ["A", "C"], ("b",))
    np.testing.assert_array_equal(table.embeddings, [[1, 2], [3, 4]])


def test_bytes_without_a_width_are_refused_by_every_verb(tmp_path):
    shard(tmp_path / "x" / "p.parquet", X, PLAIN["id"])
    table = pq.read_table(tmp_path / "x" / "p.parquet")
    table = table.set_column(1, "feature", CASES["bytes"]["feature"])
    pq.write_table(table, tmp_path / "x" / "p.parquet")
    place = [str(tmp_path / "x")]
    jobs = [
        lambda: api.train(
            TrainJob(method="pq", features=place, output=str(tmp_path / "m"), where=ALONE)
        ),
        lambda: api.repack(RepackJob(features=place, output=str(tmp_path / "r"), where=ALONE)),
        lambda: api.clusterability(ClusterabilityJob(features=place, space="raw")),
    ]
    for job in jobs:
        with pytest.raises(Exception, match=r"column 'feature'.*--feature-width"):
            job()
