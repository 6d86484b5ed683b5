"""The rows that are held out of training, and the accuracy on them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data import holdout
from raypq.data.holdout import Hits, held_out

SIZES = {"a": 1, "b": 2, "c": 3, "d": 9, "e": 10, "f": 25}
ROWS = [(f"{label}{at}", label) for label, size in SIZES.items() for at in range(size)]


def test_a_fifth_of_each_class_is_held_out() -> None:
    chosen = held_out(ROWS)
    counts = {label: sum(key.startswith(label) for key in chosen) for label in SIZES}
    assert counts == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": 5}
    assert held_out(ROWS[::-1]) == chosen, "in any order"
    assert held_out([("x", None), ("y", None), ("z", None)]) == set()


def test_training_part_and_accuracy(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            pa.field("id", pa.string()),
            pa.field("feature", pa.binary(4), metadata={"raypq.width": "1"}),
            pa.field("label", pa.string()),
        ]
    )
    keys, labels = zip(*ROWS, strict=True)
    table = pa.table([list(keys), [b"1234"] * len(ROWS), list(labels)], schema=schema)
    files = []
    for part, rows in enumerate((table[:20], table[20:], table.drop_columns("label")[:0])):
        files.append(str(tmp_path / f"{part}.parquet"))
        pq.write_table(rows, files[-1])
    folder = str(tmp_path / "training")
    (tmp_path / "training").mkdir()
    pq.write_table(table, tmp_path / "training" / "old.parquet")
    chosen = held_out(ROWS)
    assert holdout.write_training_part(files, folder) == len(ROWS) - len(chosen)
    learned = holdout.training_ids(folder)
    assert learned == {*keys} - chosen
    stored = pq.read_schema(tmp_path / "training" / "000000.parquet")
    assert stored.field("feature").metadata == {b"raypq.width": b"1"}
    answers = pa.table(
        {
            "id": list(keys),
            "class_id": [[label if key in learned else "no", "x"] for key, label in ROWS],
            "label": list(labels),
        }
    )
    pq.write_table(answers, tmp_path / "answers.parquet")
    places = [str(tmp_path / "answers.parquet")]
    others, known = holdout.hits(places, learned, {"d", "f"})
    assert others == Hits(0, 6)
    assert known == Hits(28, 28)
    assert known.share == pytest.approx(1.0)
