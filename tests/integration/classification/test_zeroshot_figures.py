"""The figures of full trainings on cub100: settings from validation classes, means of 3 seeds.

Slow: many minutes on 2 cores. ``jobs/tables/table.py`` makes the same figures as a table.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import AddClassesJob, ClusterSettings, TrainJob, read_mapping
from raypq.data import arrays
from raypq.data.classes import ClassTable

TABLES = Path(__file__).resolve().parents[3] / "jobs" / "tables"
# ZSL, H and H calibrated by the γ of validation classes, as the issue asks for.
ASKED = {"ESZSL": (0.59, 0.31, 0.64), "PSR": (0.63, 0.46, 0.65), "clusterable": (0.69, 0.62, 0.71)}
LOST = 0.02  # at most, by codes of 64 bytes


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The entry point that makes tables."""
    spec = importlib.util.spec_from_file_location("table", TABLES / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["table"] = module  # its settings classes look their annotations up there
    spec.loader.exec_module(module)
    return module


def test_every_table_is_valid(table: ModuleType) -> None:
    """Rows with settings that their methods know."""
    from raypq.methods import registry

    found = sorted(TABLES.glob("*.yaml"))
    assert {path.stem for path in found} >= {"methods", "psr", "clusterable"}
    for path in found:
        for row in table.Table.parse(read_mapping(path), origin=str(path)).rows.values():
            registry.create(row.method, row.settings)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ASKED)
def test_figures(table: ModuleType, data_root: Path, tmp_path: Path, name: str) -> None:
    rows = table.Table.parse(read_mapping(TABLES / "methods.yaml")).rows
    found: dict[str, Any] = table.run_row(rows[name], {}, data_root / "cub100", tmp_path, 3)
    zsl, H, calibrated = ASKED[name]
    exact, codes = (
        {figure: float(np.mean(values)) for figure, values in found[kind].items()}
        for kind in ("exact", "codes")
    )
    assert exact["zsl"] >= zsl
    assert exact["H"] >= H
    assert exact["H calibrated"] >= calibrated
    for figure in ("zsl", "H", "H calibrated"):
        assert codes[figure] >= exact[figure] - LOST


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_new_classes(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Generation and refit, with the CVAE of the default size; prints the seconds."""
    data = data_root / "cub100"
    where = ClusterSettings(cluster="none", workers=2)
    api.train(
        TrainJob(
            method="clusterable",
            features=[str(data / "train")],
            classes=str(data / "classes.parquet"),
            output=str(tmp_path / "model"),
            settings={"epochs": 2},
            where=where,
        )
    )
    E = ClassTable.open(str(data / "classes.parquet")).embeddings
    rng = np.random.default_rng(0)
    share = rng.random((1000, 1))
    pairs = rng.integers(0, len(E), (2, 1000))
    new = share * E[pairs[0]] + (1 - share) * E[pairs[1]]
    new += 0.5 * E.std(axis=0) * rng.standard_normal(new.shape)
    columns = {
        "class_id": [f"new-{row}" for row in range(1000)],
        "embedding": arrays.fixed_list(new.astype(np.float32)),
    }
    pq.write_table(pa.table(columns), tmp_path / "new.parquet")
    start = time.monotonic()
    summary = api.add_classes(
        AddClassesJob(
            model=str(tmp_path / "model"),
            classes=str(tmp_path / "new.parquet"),
            output=str(tmp_path / "later"),
        )
    )
    with capsys.disabled():
        print(f"\n1,000 new classes: {time.monotonic() - start:.0f} s")
    assert summary["added"] == 1000
    assert summary["classes"] == 1100
