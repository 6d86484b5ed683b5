"""The contract of what reads a Parquet file: a column that it uses is there once, or is named;
columns that it does not use may be of any type, of one name, or encrypted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tinystore import ALONE, DX, encode, encrypted, quantizer, vectors

from raypq import api
from raypq.config import Columns, RepackJob, RetrievalJob, SplitJob
from raypq.data import arrays, predictions
from raypq.data.classes import ClassTable
from raypq.data.codes import CodeFile
from raypq.data.codes import schema as code_schema
from raypq.data.features import read_batches
from raypq.data.storage import list_shards
from raypq.data.store.sources import open_sources
from raypq.data.survey import survey
from raypq.errors import InputError, JobError
from raypq.stages.retrieval.rerank import read_rows

N = 8
NAMES = [f"c{row}" for row in range(N)]
X = arrays.fixed_list(vectors(N))
FEATURES = {"id": pa.array(range(N)), "feature": X, "label": [f"c{row % 2}" for row in range(N)]}
CLASSES = {
    "class_id": NAMES, "embedding": X, "seen": [True, False] * 4, "name": NAMES,
    "image_count": list(range(N)), "in_2hops": [True, False] * 4, "in_3hops": [True] * N,
}  # fmt: skip
CODES = {"id": pa.array(range(N)), "code": arrays.fixed_binary(np.zeros((N, 2), np.uint8)),
         "label": NAMES}  # fmt: skip
ANSWERS = {
    "id": pa.array(range(N)), "class_id": [[name] for name in NAMES],
    "score": pa.array([[1.0]] * N, pa.list_(pa.float32())), "label": NAMES,
} | {f"{group}_{part}": NAMES if part == "class_id" else np.ones(N, "f4")
     for group in ("seen", "unseen") for part in ("class_id", "score")}  # fmt: skip


def candidates(path: Path) -> Any:
    table = path.parent / "table.parquet"
    pq.write_table(pa.table(CLASSES), table)
    return ClassTable.open(str(table)).select(str(path)).tolist()


def class_table(path: Path) -> Any:
    found = ClassTable.open(str(path))
    return found.ids.to_pylist(), found.names, found.embeddings.tolist(), found.select("seen")[0]


def features(path: Path) -> Any:
    survey(open_sources([str(path)]))
    (shard,) = list_shards([str(path)])
    return [batch.labels.to_pylist() for batch in read_batches(shard, Columns(), width=DX)]


def encoded(path: Path) -> Any:
    return encode(path.parent, str(path)).rows


def rows(path: Path) -> Any:
    (shard,) = list_shards([str(path)])
    found = read_rows(shard, Columns(), quantizer(), np.arange(3), "int64")
    return [part[2].to_pylist() for part in found]


def codes(path: Path) -> Any:
    found = CodeFile.open(str(path))
    return [(part.ids.to_pylist(), part.labels.to_pylist()) for part in found.batches(100)]


def answers(path: Path) -> Any:
    table = path.parent / "table.parquet"
    pq.write_table(pa.table(CLASSES), table)
    return [batch.y.tolist() for batch in predictions.read(str(path), ClassTable.open(str(table)))]


def queries(path: Path) -> Any:
    pq.write_table(pa.table(FEATURES), path.parent / "f.parquet")
    encode(path.parent, str(path.parent / "f.parquet"))
    store = str(path.parent / "codes")
    job = RetrievalJob(codes=store, queries=[str(path)], at=(1,), where=ALONE)
    return api.evaluate_retrieval(job)["queries"]


def repacked(path: Path) -> Any:
    job = RepackJob(features=[str(path)], output=str(path.parent / "packed"), where=ALONE)
    return api.repack(job)["images"]


def parts(path: Path) -> Any:
    job = SplitJob(
        protocol=2, share=0.5, features=[str(path)], output=str(path.parent / "s"), where=ALONE
    )
    return api.split(job)["parts"]


READERS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], list[str]]] = {
    "class table": (class_table, CLASSES, [*CLASSES]),
    "candidates": (candidates, CLASSES, ["class_id"]),
    "features": (features, FEATURES, ["id", "feature", "label"]),
    "encode": (encoded, FEATURES, ["id", "feature", "label"]),
    "rerank": (rows, FEATURES, ["id", "feature"]),
    "codes": (codes, CODES, ["id", "code", "label"]),
    "predictions": (answers, ANSWERS, [name for name in ANSWERS if name != "id"]),
    "queries": (queries, FEATURES, ["id", "feature", "label"]),
    "repack": (repacked, FEATURES, ["id", "feature", "label"]),
    "split": (parts, FEATURES, ["id", "feature", "label"]),
}
USED = [(name, column) for name, (_, _, used) in READERS.items() for column in used]
CARRY = ("repack", "split")  # these read every column
VIEW = pa.array([f"a text of some length {row}" for row in range(N)], pa.string_view())
OTHERS = {
    "text views": VIEW,
    "lists of views": pa.array([["a", "b"]] * N, pa.list_(pa.string())).cast(
        pa.list_(pa.string_view())
    ),
    "large lists of views": pa.array([[b"a"]] * N).cast(pa.large_list(pa.binary_view())),
    "pairs of views": pa.FixedSizeListArray.from_arrays(pa.concat_arrays([VIEW, VIEW]), 2),
    "a struct of views": pa.StructArray.from_arrays([VIEW, VIEW], ["x", "y"]),
    "a map of views": pa.array([[("a", "b")]] * N, pa.map_(pa.string(), pa.string_view())),
    "views in structs": pa.StructArray.from_arrays(
        [pa.StructArray.from_arrays([VIEW], ["x"])], ["y"]
    ),
    "views of lists": pa.array([[row] for row in range(N)], pa.list_view(pa.int32())),
    "views of lists of views": pa.ListViewArray.from_arrays(list(range(N)), [1] * N, VIEW),
    "JSON": pa.ExtensionArray.from_storage(pa.json_(), VIEW.cast(pa.string())),
    "dates": pa.array(range(N), pa.date32()),
}


def written(path: Path, columns: dict[str, Any], *more: tuple[str, Any]) -> Path:
    """A file of these columns; ``more`` may repeat their names."""
    schema = code_schema(fingerprint="x", M=2, K=256, id_type=pa.int64(), label=True)
    pairs = [*columns.items(), *more]
    values = [pa.array(one) if isinstance(one, list | np.ndarray) else one for _, one in pairs]
    table = pa.Table.from_arrays(values, [name for name, _ in pairs])
    path.parent.mkdir(exist_ok=True)
    metadata = schema.metadata if "code" in columns else None
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(("reader", "column"), USED)
def test_two_columns_of_one_name_are_named(tmp_path, reader, column):
    read, columns, _ = READERS[reader]
    path = written(tmp_path / "x.parquet", columns, (column, columns[column]))
    with pytest.raises((InputError, JobError)) as caught:
        read(path)
    assert f"expected one column '{column}', found 2 of that name" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("reader", READERS)
def test_columns_of_any_type_beside_those_that_are_used(tmp_path, reader, kind):
    read, columns, _ = READERS[reader]
    wanted = read(written(tmp_path / "a" / "x.parquet", columns))
    more = [(name, OTHERS[kind]) for name in ("more", "twice", "twice")]
    assert read(written(tmp_path / "b" / "x.parquet", columns, *more)) == wanted
    for made in [*tmp_path.glob("b/packed/*.parquet"), *tmp_path.glob("b/s/*/*.parquet")]:
        table = pq.ParquetFile(made).read()
        places = [columns["id"].to_pylist().index(name) for name in table["id"].to_pylist()]
        values = OTHERS[kind].to_pylist()
        assert table["more"].to_pylist() == [values[place] for place in places]


@pytest.mark.parametrize("reader", READERS)
def test_an_encrypted_column_beside_those_that_are_used(tmp_path, reader):
    read, columns, _ = READERS[reader]
    wanted = read(written(tmp_path / "a" / "x.parquet", columns))
    path = written(tmp_path / "b" / "x.parquet", columns, ("secret", NAMES))
    encrypted(path, pq.read_table(path), "secret")
    if reader not in CARRY:
        assert read(path) == wanted
        return
    with pytest.raises(JobError, match=r"not encrypted.*found encrypted secret"):
        read(path)


def test_a_column_that_no_row_can_be_taken_of_is_named(tmp_path):
    views = pa.ExtensionArray.from_storage(pa.json_(pa.string_view()), VIEW)
    for column in (views, pa.ListArray.from_arrays(list(range(N + 1)), views)):
        path = written(tmp_path / "x.parquet", FEATURES, ("json", column))
        with pytest.raises(JobError, match=r"x\.parquet, column 'json'.*json.*drop the column"):
            parts(path)
