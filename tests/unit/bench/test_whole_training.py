"""The bench of whole commands over generated rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from raypq.bench import whole_training
from raypq.cli import main


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_L": 60, "_DX": 48, "_DA": 16, "_M": 4, "_SHARD_ROWS": 500}.items():
        monkeypatch.setattr(whole_training, name, value)


@pytest.mark.usefixtures("narrow")
def test_rows_are_the_same_every_time(tmp_path: Path) -> None:
    tables = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        whole_training.write(tmp_path / name, 1200)
        files = sorted((tmp_path / name / "features").iterdir())
        assert [pq.read_metadata(file).num_rows for file in files] == [400, 400, 400]
        tables.append(pq.read_table(tmp_path / name / "features"))
    assert tables[0].equals(tables[1])
    X = np.stack(tables[0]["feature"].to_numpy())
    assert X.dtype == np.float16
    assert X.shape == (1200, 48)
    assert len(set(tables[0]["label"].to_pylist())) == 60


@pytest.mark.usefixtures("narrow")
def test_commands_are_timed(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = CliRunner().invoke(main, ["bench", "train", "--rows", "3000", "--json", str(file)])
    assert done.exit_code == 0, done.output
    (result,) = json.loads(file.read_text())["results"]
    assert [line["name"] for line in result["lines"]] == ["raypq train pqzsl", "raypq encode"]
    for line in result["lines"]:
        assert line["rate"] == pytest.approx(3000 / line["seconds"])
    assert result["checks"]["raypq train pqzsl, peak memory, GB"] > 0.05


def test_rows_are_for_train_only() -> None:
    done = CliRunner().invoke(main, ["bench", "encode", "--rows", "3000"])
    assert done.exit_code == 2
    assert "--rows is for bench train" in done.output
