"""Repacking keeps every value, name and column; reading ahead keeps order and errors."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.config import Columns, RepackJob
from raypq.data.features import read_batches
from raypq.data.prefetch import prefetch
from raypq.data.storage import stem_of
from raypq.data.store.sources import open_sources
from raypq.data.survey import survey
from raypq.errors import InputError, JobError
from raypq.execution.local import LocalExecutor
from raypq.stages.preparation.repack import repack

X = np.random.default_rng(0).standard_normal((300, 24)).astype(np.float32)


def _read(folder: str) -> np.ndarray:
    store = open_sources([folder])
    parts = [b.X for s in store.shards for b in read_batches(s, store.columns, width=None)]
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["fixed_size_list", "list", "large_list"])
def test_values_names_and_other_columns_stay(
    write, column, tmp_path: Path, layout: str, dtype: str
) -> None:
    values = X.astype(dtype)
    for part, rows in enumerate((slice(0, 120), slice(120, 300))):
        n = len(values[rows])
        write(
            f"in/a{part}.parquet",
            row_group=50,
            id=list(range(n)),
            feature=column(layout, dtype, values[rows]),
            note=[f"n{row}" for row in range(n)],
        )
    out = str(tmp_path / "out")
    told = repack(
        RepackJob(features=[str(tmp_path / "in")], output=out, dtype=dtype), LocalExecutor()
    )
    assert (told["images"], told["shards"]) == (300, 2)
    made = [f"{stem_of(str(tmp_path / 'in' / f'a{part}.parquet'))}.parquet" for part in range(2)]
    assert sorted(path.name for path in Path(out).iterdir()) == ["_repack.json", *made]
    np.testing.assert_array_equal(_read(out), values.astype(np.float32))
    assert survey(open_sources([out])).width == 24
    table = pq.read_table(f"{out}/{made[1]}")
    assert table.schema.field("feature").type == pa.binary(24 * values.itemsize)
    assert table.column("note")[3].as_py() == "n3"


def test_an_empty_shard_stays_empty(write, tmp_path: Path) -> None:
    write("in/a.parquet", id=["x"], feature=X[:1])
    write("in/b.parquet", id=pa.array([], pa.string()), feature=X[:0])
    out = str(tmp_path / "out")
    told = repack(RepackJob(features=[str(tmp_path / "in")], output=out), LocalExecutor())
    assert told["images"] == 1
    name = stem_of(str(tmp_path / "in" / "b.parquet"))
    assert pq.read_table(f"{out}/{name}.parquet").num_rows == 0


def test_too_large_for_float16_is_an_error_and_leaves_no_file(write, tmp_path: Path) -> None:
    write("in/a.parquet", id=["x", "y"], feature=np.array([[1, 2], [3, 7e4]], np.float32))
    out = tmp_path / "out"
    job = RepackJob(features=[str(tmp_path / "in")], output=str(out), dtype="float16")
    with pytest.raises(JobError, match="range of float16, found 70000"):
        repack(job, LocalExecutor())
    assert not out.exists() or not list(out.iterdir())


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise ValueError("at twenty")

    found = []
    with pytest.raises(ValueError, match="at twenty"):
        found.extend(prefetch(items()))  # extend keeps what came before the error
    assert found == list(range(20))


def test_reading_ahead_stops_with_its_consumer() -> None:
    made = []

    def items() -> Iterator[int]:
        for item in range(1000):
            made.append(item)
            yield item

    for item in prefetch(items()):
        if item == 3:
            break
    time.sleep(0.05)
    assert len(made) <= 7


BAD_NAMES = {
    "dates": pa.array([0] * 300, pa.date32()),
    "decimals": pa.array([1] * 300, pa.decimal128(20, 0)),
    "booleans": pa.array([True] * 300),
    "floats": pa.array([1.0] * 300),
    "times": pa.array([0] * 300, pa.timestamp("us")),
    "large integers": pa.array([*range(299), 1 << 63], pa.uint64()),
    "nulls": pa.nulls(300),
    "a null": pa.array([*range(299), None], pa.int64()),
    "lists": pa.array([[1]] * 300),
    "structs": pa.array([{"a": 1}] * 300),
    "no text": pa.array([*[b"ok"] * 299, b"\xff\xfe"]),
}
AS_LABELS = [kind for kind in BAD_NAMES if kind not in ("nulls", "a null", "large integers")]


@pytest.mark.parametrize(
    ("column", "kind"),
    [("id", kind) for kind in BAD_NAMES] + [("label", kind) for kind in AS_LABELS],
)
def test_what_encode_would_refuse_is_refused_in_its_words(write, tmp_path, column, kind):
    columns = {"id": list(range(300)), "feature": X} | {column: BAD_NAMES[kind]}
    path = write("in/a.parquet", **columns)
    store = open_sources([path])
    with pytest.raises(InputError) as caught:
        list(read_batches(store.shards[0], store.columns, width=24))
    with pytest.raises(JobError, match=re.escape(str(caught.value).removeprefix(path))):
        repack(RepackJob(features=[path], output=str(tmp_path / "out")), LocalExecutor())


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            Columns(label="lable"),
            r"'lable' \(--label-column, columns.label\).*found columns id, feature",
        ),
        (Columns(id="idd"), r"a column 'idd', found columns id, feature, label"),
        (Columns(feature="vec"), r"a column 'vec', found columns id, feature, label"),
    ],
)
def test_a_mistyped_column_is_refused(write, tmp_path, columns, says):
    path = write("in/a.parquet", id=list(range(300)), feature=X, label=["a"] * 300)
    job = RepackJob(features=[path], output=str(tmp_path / "out"), columns=columns)
    with pytest.raises((InputError, JobError), match=says):
        repack(job, LocalExecutor())
    assert not list(tmp_path.glob("out/*"))
