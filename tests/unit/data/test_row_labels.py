"""Files of labels by id."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal

from raypq.config import Columns
from raypq.data.row_labels import RowLabels
from raypq.errors import InputError

Write = Callable[..., str]


def test_labels_are_found_by_id(write: Write) -> None:
    path = write("l.parquet", id=["x", "y", "z"], label=["a", None, "b"])
    found = RowLabels.open(path, Columns(), "string")
    assert found.labels.to_pylist() == ["a", None, "b"]
    assert_array_equal(found.positions(pa.array(["z", "no", "x"])), [2, -1, 0])


def test_columns_have_other_names_and_labels_are_integers(write: Write) -> None:
    path = write("l.parquet", key=[5, 6], what=[1, 2])
    found = RowLabels.open(path, Columns(id="key", label="what"), "int64")
    assert found.ids.to_pylist() == [5, 6]
    assert found.labels.to_pylist() == ["1", "2"]
    assert RowLabels.open(path, Columns(id="key", label="what"), "string").ids.to_pylist() == [
        "5", "6",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "kind", "says"),
    [
        ({"id": ["x"], "class": ["a"]}, "string", "expected a column 'label', found columns id"),
        ({"label": ["a"]}, "string", "expected a column 'id', found columns label"),
        ({"id": ["x", "y", "x"], "label": ["a", "b", "a"]}, "string", "found 'x' 2 times"),
        ({"id": ["x"], "label": ["a"]}, "int64", "column 'id': expected int64 ids, found string"),
        ({"id": ["x", None], "label": ["a", "b"]}, "string", "column 'id', row 1: expected no nu"),
        ({"id": ["x"], "label": [0.5]}, "string", "column 'label': expected strings or integers"),
    ],
)
def test_what_cannot_be_used_is_refused(
    columns: dict[str, list[object]], kind: str, says: str, write: Write
) -> None:
    with pytest.raises(InputError, match=says):
        RowLabels.open(write("l.parquet", **columns), Columns(), kind)  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: object) -> None:
    with pytest.raises(InputError, match=r"none\.parquet"):
        RowLabels.open(f"{tmp_path}/none.parquet", Columns(), "string")
