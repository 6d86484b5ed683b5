"""The published benchmarks: MATLAB files of their layout, made of some real birds, to a table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from raypq.cli import main
from raypq.data.classes import ClassTable

scipy_io = pytest.importorskip("scipy.io")

TABLE = Path(__file__).resolve().parents[3] / "jobs" / "tables" / "table.py"
CLASSES, DX = 12, 64  # 9 seen, 3 unseen
Mats = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rows(data_root: Path) -> dict[str, Any]:
    """Rows of twelve species: X [N, dx], y from 0, split names, and the attributes."""
    data = data_root / "cub100"
    table = ClassTable.open(str(data / "classes.parquet"))
    assert table.seen is not None
    seen, unseen = np.flatnonzero(table.seen)[:9], np.flatnonzero(~table.seen)[:3]
    place = {table.ids[int(index)].as_py(): at for at, index in enumerate([*seen, *unseen])}
    X, y, part = [], [], []
    for name in ("train", "test_seen", "test_unseen"):
        for path in sorted((data / name).glob("*.parquet")):
            file = pq.read_table(path)
            for feature, label in zip(
                file["feature"].to_pylist(), file["label"].to_pylist(), strict=True
            ):
                if label in place:
                    X.append(feature[:DX])
                    y.append(place[label])
                    part.append(name)
    chosen = [*seen, *unseen]
    return {
        "X": np.array(X),
        "y": np.array(y),
        "part": np.array(part),
        "A": table.embeddings[chosen],
        "names": [f"{at + 1:03d}.{table.names[index]}" for at, index in enumerate(chosen)],
    }


def matlab(rows: dict[str, Any]) -> Mats:
    """The variables of both files as the benchmarks have them: columns, numbers from 1, cells."""

    def cells(values: list[str]) -> np.ndarray:
        found = np.empty((len(values), 1), object)
        found[:, 0] = values
        return found

    def loc(*parts: str) -> np.ndarray:
        return 1.0 + np.flatnonzero(np.isin(rows["part"], parts))[:, None]

    files = [f"/BS/images/{rows['names'][y]}/{n:04d}.jpg" for n, y in enumerate(rows["y"])]
    features = {
        "features": rows["X"].T.astype(np.float64),
        "labels": 1.0 + rows["y"][:, None],
        "image_files": cells(files),
    }
    splits = {
        "att": rows["A"].T.astype(np.float64),
        "original_att": 100 * rows["A"].T.astype(np.float64),
        "allclasses_names": cells(rows["names"]),
        "trainval_loc": loc("train"),
        "train_loc": loc("train")[::2],
        "val_loc": loc("train")[1::2],
        "test_seen_loc": loc("test_seen"),
        "test_unseen_loc": loc("test_unseen"),
    }
    return {"res101.mat": features, "att_splits.mat": splits}


def save(folder: Path, mats: Mats) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in mats.items():
        scipy_io.savemat(folder / name, content)
    return str(folder)


def convert(source: str, output: Path) -> Any:
    return CliRunner().invoke(main, ["import-xlsa17", source, "--output", str(output)])


def test_a_benchmark_becomes_stores_and_a_table(rows, tmp_path):
    done = convert(save(tmp_path / "mat", matlab(rows)), tmp_path / "out")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    counts = {part: int((rows["part"] == part).sum()) for part in np.unique(rows["part"])}
    assert {part: told[part] for part in counts} == counts
    assert (told["classes"], told["seen"], told["dx"], told["da"]) == (12, 9, DX, 312)
    table = ClassTable.open(str(tmp_path / "out" / "classes.parquet"))
    assert table.ids.to_pylist() == rows["names"]
    assert table.names[0] == "Black footed Albatross"
    assert table.seen.tolist() == [True] * 9 + [False] * 3
    np.testing.assert_array_equal(table.embeddings, rows["A"])
    for part in counts:
        file = pq.read_table(tmp_path / "out" / part)
        chosen = rows["part"] == part
        np.testing.assert_array_equal(
            np.stack(file["feature"].to_numpy()), rows["X"][chosen].astype(np.float32)
        )
        assert file["label"].to_pylist() == [rows["names"][y] for y in rows["y"][chosen]]
        assert len(set(file["id"].to_pylist())) == len(file)
        assert file["id"][0].as_py().startswith("0"), "folder and name of the image"


def test_a_table_of_the_paper_by_one_command(rows, tmp_path):
    """From the files to the figures: mean and deviation over seeds, Markdown and JSON."""
    save(tmp_path / "mat", matlab(rows))
    assert convert(str(tmp_path / "mat"), tmp_path / "data").exit_code == 0
    words = [
        sys.executable, str(TABLE), str(TABLE.parent / "methods.yaml"), "--data",
        str(tmp_path / "data"), "--output", str(tmp_path / "work"), "--seeds", "2",
        "--only", "ESZSL", "--only", "SAE", "--set", "M=4", "--set", "K=16",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("| SAE | 0.")
    assert lines[-1].startswith("| ESZSL | 0.")
    assert "±" in lines[-1]
    figures = json.loads((tmp_path / "work" / "methods.json").read_text())
    assert set(figures) == {"ESZSL", "SAE"}
    exact = figures["ESZSL"]["exact"]
    assert len(exact["zsl"]) == 2
    assert exact["tr"][0] > 0.7, "of twelve birds"
    assert exact["best H"][0] >= exact["H calibrated"][0]
    again = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert again.stdout == done.stdout
    assert "trained" not in again.stderr, "nothing is trained twice"


def drop(name: str, key: str) -> Callable[[Mats], None]:
    return lambda mats: mats[name].pop(key)


def put(name: str, key: str, change: Callable[[Any], Any]) -> Callable[[Mats], None]:
    def break_it(mats: Mats) -> None:
        mats[name][key] = change(mats[name][key])

    return break_it


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda mats: mats.pop("res101.mat"), "res101.mat: expected a MATLAB file, found none"),
        (drop("att_splits.mat", "att"), "att_splits.mat: expected variables att, found allclasses"),
        (put("res101.mat", "labels", lambda y: y[:-1]), "labels, found"),
        (put("res101.mat", "labels", lambda y: y + 0.5), "'labels': expected whole numbers"),
        (put("res101.mat", "labels", lambda y: y + 5), "names of the classes 1 to 17, found"),
        (put("res101.mat", "features", lambda x: np.where(x == x[0, 0], np.nan, x)), "finite num"),
        (put("att_splits.mat", "test_seen_loc", lambda r: r + 1e6), "expected row numbers from 1"),
        (put("att_splits.mat", "test_seen_loc", lambda r: r[:0]), None),
    ],
)
def test_files_that_are_not_of_the_layout(rows, tmp_path, change, says):
    mats = matlab(rows)
    change(mats)
    done = convert(save(tmp_path / "mat", mats), tmp_path / "out")
    if says is None:  # an empty part is an empty store
        assert done.exit_code == 0, done.output
        assert len(pq.read_table(tmp_path / "out" / "test_seen")) == 0
        return
    assert done.exit_code == 1, done.output
    assert says in done.stderr


def test_a_split_that_contradicts_itself(rows, tmp_path):
    mats = matlab(rows)
    splits = mats["att_splits.mat"]
    both = np.concatenate([splits["test_unseen_loc"], splits["trainval_loc"][:1]])
    splits["test_unseen_loc"] = both
    done = convert(save(tmp_path / "mat", mats), tmp_path / "out")
    assert "expected parts without common rows, found a row in two" in done.stderr
    splits["test_unseen_loc"] = both[:-1]
    splits["test_seen_loc"] = both[:1]
    splits["test_unseen_loc"] = both[1:-1]
    done = convert(save(tmp_path / "mat", mats), tmp_path / "out")
    assert "'test_seen_loc': expected images of seen classes, found 1 other" in done.stderr
    (tmp_path / "mat" / "res101.mat").write_bytes(b"not a file of MATLAB")
    assert (
        "res101.mat: expected a MATLAB file"
        in convert(str(tmp_path / "mat"), tmp_path / "out").stderr
    )


def test_files_of_an_earlier_import_are_refused(rows, tmp_path):
    source, output = save(tmp_path / "mat", matlab(rows)), tmp_path / "out"
    command = ["import-xlsa17", source, "--output", str(output)]
    assert CliRunner().invoke(main, [*command, "--rows", "20"]).exit_code == 0
    before = sorted(path.name for path in (output / "train").iterdir())
    again = CliRunner().invoke(main, [*command, "--rows", "5000"])
    assert again.exit_code == 2, "its parts would hold every row twice"
    assert "part-00001.parquet" in again.output
    assert sorted(path.name for path in (output / "train").iterdir()) == before
    assert CliRunner().invoke(main, [*command, "--rows", "20"]).exit_code == 0
