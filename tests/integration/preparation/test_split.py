"""Splits: every row in one part, drawn by id and seed alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from click.testing import CliRunner

from raypq import api
from raypq.cli import main
from raypq.config import ClusterSettings, SplitJob
from raypq.data import arrays
from raypq.errors import ConfigError, InputError

HERE = ClusterSettings(cluster="none", workers=2)
N = 400


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "id": [f"i{i:03d}" for i in range(N)],
            "feature": arrays.fixed_list(rng.normal(size=(N, 3)).astype(np.float32)),
            "label": [f"c{i % 8}" for i in range(N)],
            "note": np.arange(N),
        }
    )


def stored(write: Any, name: str, table: pa.Table) -> str:
    columns = {key: table.column(key) for key in table.column_names}
    return str(Path(write(f"{name}/part.parquet", **columns)).parent)


def cut(tmp_path: Path, protocol: int, features: list[str], **changes: Any) -> dict[str, Any]:
    values = {"labelled": 5, "queries": 30, **changes} if protocol == 1 else changes
    api.split(
        SplitJob(protocol=protocol, features=features, output=str(tmp_path), where=HERE, **values)
    )
    return {
        part.name: ds.dataset(part).to_table().sort_by("id")
        for part in tmp_path.iterdir()
        if part.is_dir()
    }


def test_protocol_1(write, table, tmp_path):
    parts = cut(tmp_path / "s", 1, [stored(write, "f", table)])
    assert {name: len(part) for name, part in parts.items()} == {
        "labelled": 40, "unlabelled": 330, "queries": 30,
    }  # fmt: skip
    label = parts["labelled"].column("label").to_pylist()
    assert {name: label.count(name) for name in set(label)} == {f"c{i}": 5 for i in range(8)}
    assert pa.concat_tables(parts.values()).sort_by("id").equals(table)


def test_the_parts_follow_from_the_ids_and_the_seed(write, table, tmp_path):
    one = cut(tmp_path / "one", 1, [stored(write, "f", table)])
    pieces = [
        stored(write, f"g/{at}", table.slice(at, 100).take(np.arange(100)[::-1]))
        for at in (300, 0, 200, 100)
    ]
    many = cut(tmp_path / "many", 1, pieces)
    for name, part in one.items():
        assert part.equals(many[name])
    changed = cut(tmp_path / "seed", 1, pieces, seed=1)
    assert not changed["labelled"].equals(one["labelled"])


def test_queries_come_from_the_test_store(write, table, tmp_path):
    train, test = table.slice(0, 300), table.slice(300)
    places = stored(write, "f", train), stored(write, "t", test)
    parts = cut(tmp_path / "s", 1, [places[0]], test=[places[1]], labelled=None)
    assert {name: len(part) for name, part in parts.items()} == {
        "labelled": 300, "queries": 30, "other": 70,
    }  # fmt: skip
    assert set(parts["queries"].column("note").to_pylist()) <= set(range(300, 400))


@pytest.mark.parametrize("apart", [True, False])
def test_protocol_2(write, table, tmp_path, apart):
    """train75 is labelled, train25 and test75 are the database, test25 asks."""
    if apart:
        test = [stored(write, "t", table.slice(240))]
        parts = cut(tmp_path / "s", 2, [stored(write, "f", table.slice(0, 240))], test=test)
    else:
        parts = cut(tmp_path / "s", 2, [stored(write, "f", table)])
    classes = {name: set(part.column("label").to_pylist()) for name, part in parts.items()}
    assert len(classes["labelled"]) == 6
    assert len(classes["queries"]) == 2
    assert not classes["labelled"] & classes["queries"]
    assert len(classes["unlabelled"]) == 8
    assert pa.concat_tables(parts.values()).sort_by("id").equals(table)
    if apart:
        note = parts["labelled"].column("note").to_pylist()
        assert max(note) < 240
        assert min(parts["queries"].column("note").to_pylist()) >= 240


@pytest.mark.parametrize(
    ("protocol", "changes", "error", "reason"),
    [
        (1, {"labelled": 49}, InputError, "class 'c.': expected at least 49 rows to label, found"),
        (1, {"queries": 401}, ConfigError, "queries: asked for 401 rows, found 400"),
        (2, {"share": 0.1}, ConfigError, "share: 0.1 of 8 classes leaves none known"),
    ],
)
def test_more_than_there_is(write, table, tmp_path, protocol, changes, error, reason):
    with pytest.raises(error, match=reason):
        cut(tmp_path / "s", protocol, [stored(write, "f", table)], **changes)


def test_rows_without_a_label_are_named(write, table, tmp_path):
    label = table.column("label").to_pylist()
    label[7] = None
    broken = table.set_column(2, "label", pa.array(label))
    with pytest.raises(InputError, match="row 7: expected a label, found none"):
        cut(tmp_path / "s", 1, [stored(write, "f", broken)])
    with pytest.raises(InputError, match="a column 'label', found columns id, feature, note"):
        cut(tmp_path / "s", 1, [stored(write, "g", table.drop_columns(["label"]))])


def test_from_the_command_line(write, table, tmp_path):
    run = CliRunner().invoke(
        main,
        ["split", "--protocol", "1", "--features", stored(write, "f", table), "--labelled", "5",
         "--queries", "30", "--output", str(tmp_path / "s"), "--cluster", "none", "--quiet"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["parts"]["labelled"] == {"rows": 40, "classes": 8}


EMPTY = {
    "no label": {},
    "labels of floats": {"label": pa.array([], pa.float64())},
    "labels of the type null": {"label": pa.nulls(0)},
    "labels of lists": {"label": pa.array([], pa.list_(pa.int8()))},
    "ids of floats": {"id": pa.array([], pa.float64())},
    "ids of whole numbers": {"id": pa.array([], pa.int64())},
}


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("kind", EMPTY)
def test_a_shard_without_rows_changes_nothing(write, table, tmp_path, kind, protocol, test):
    train, rest = table.slice(0, 300), table.slice(300)
    nothing = {"id": pa.array([], pa.string()), "feature": table["feature"].slice(0, 0)}
    empty = str(Path(write("e/part.parquet", **nothing | EMPTY[kind])).parent)
    stores = [stored(write, "f", train)], [stored(write, "t", rest)]
    wanted = cut(tmp_path / "a", protocol, stores[0], test=stores[1])
    stores[test].insert(0, empty)
    assert cut(tmp_path / "b", protocol, stores[0], test=stores[1]) == wanted
