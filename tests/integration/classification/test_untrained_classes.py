"""Classes that codes of classes were not trained on: what cannot be answered is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import (
    AddClassesJob,
    ClassifyJob,
    ClusterSettings,
    EncodeJob,
    TrainJob,
)
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError, ModelError
from raypq.methods import registry

SETTINGS = {"M": 2, "K": 16, "hidden": 32, "epochs": 4, "batch": 50, "rate": 0.01, "width": 16}
SEEN = 8  # of the 12 classes of the table
Table = Callable[..., str]


def trained(world: Any, root: Path, classes: str, where: ClusterSettings) -> Path:
    """A model of DPQ, and the codes of the test images."""
    train = TrainJob(
        method="dpq", features=[world.train], classes=classes, output=str(root / "model"),
        settings=SETTINGS, where=where,
    )  # fmt: skip
    api.train(train)
    encode = EncodeJob(
        model=str(root / "model"), features=[world.test], output=str(root / "codes"), where=where
    )
    api.encode(encode)
    return root


@pytest.fixture(scope="module")
def root(world: Any, alone: ClusterSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(world, tmp_path_factory.mktemp("trained"), world.classes, alone)


@pytest.fixture
def table(world: Any, tmp_path: Path) -> Table:
    """The class table with other columns; None drops one: ``table(seen=None)``."""

    def table(**columns: Any) -> str:
        changed = pq.read_table(world.classes)
        for name, values in columns.items():
            if name in changed.column_names:
                changed = changed.drop_columns(name)
            if values is not None:
                changed = changed.append_column(name, values)
        pq.write_table(changed, tmp_path / "classes.parquet")
        return str(tmp_path / "classes.parquet")

    return table


@pytest.fixture
def classify(root: Path, alone: ClusterSettings, tmp_path: Path) -> Callable[..., Snapshot]:
    def classify(classes: str, codes: Path = root, **more: Any) -> Snapshot:
        job = ClassifyJob(
            codes=str(codes / "codes"), classes=classes, output=str(tmp_path / "predictions"),
            where=alone, **more,
        )  # fmt: skip
        return api.classify(job)

    return classify


def test_several_prototypes_are_refused_where_classes_depend_on_one_another(
    world: Any, table: Table, classify: Callable[..., Snapshot]
) -> None:
    E = np.stack(pq.read_table(world.classes)["embedding"].to_numpy())
    several = table(embedding=None, prototypes=pa.array([[row.tolist()] * 2 for row in E]))
    with pytest.raises(ModelError, match=r"classes\.parquet: expected one embedding of each class"):
        classify(several)
    assert classify(several, candidates="seen").rows  # known by class_id alone


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (None, "no column 'seen'"),
        ([t >= SEEN for t in range(12)], "12 classes are not as in the training .* 'c00'"),
        ([True] * 12, "4 classes are not as in the training .* 'c08', which it was not trained on"),
    ],
)
def test_a_table_that_contradicts_the_training_is_named(
    table: Table,
    classify: Callable[..., Snapshot],
    caplog: pytest.LogCaptureFixture,
    seen: list[bool] | None,
    says: str,
) -> None:
    with caplog.at_level("WARNING", logger="raypq"):
        classify(table(seen=None if seen is None else pa.array(seen)))
    (record,) = [r for r in caplog.records if "trained on" in r.message]
    assert re.search(says, record.message)


def test_a_model_without_calibration_says_that_new_classes_are_not_predicted(
    world: Any,
    alone: ClusterSettings,
    tmp_path: Path,
    classify: Callable[..., Snapshot],
    caplog: pytest.LogCaptureFixture,
) -> None:
    narrow = pq.read_table(world.classes).slice(0, SEEN)
    pq.write_table(narrow, tmp_path / "seen.parquet")
    root = trained(world, tmp_path, str(tmp_path / "seen.parquet"), alone)
    with caplog.at_level("WARNING", logger="raypq"):
        classify(world.classes, root)
    (record,) = [r for r in caplog.records if "hardly be predicted" in r.message]
    assert "4 classes, such as 'c08'" in record.message
    assert "has no calibration" in record.message
    caplog.clear()
    with caplog.at_level("WARNING", logger="raypq"):
        classify(world.classes, root, calibration=0.1)
        classify(world.classes, root, no_calibration=True)
        classify(str(tmp_path / "seen.parquet"), root)
    assert not [r for r in caplog.records if "predicted" in r.message]


def test_embeddings_of_another_width_name_the_table(
    world: Any, table: Table, classify: Callable[..., Snapshot]
) -> None:
    E = [row[:4].tolist() for row in pq.read_table(world.classes)["embedding"].to_numpy()]
    with pytest.raises(ModelError, match=r"classes\.parquet.*width 6, found 4"):
        classify(table(embedding=pa.array(E, pa.list_(pa.float32()))))


def test_added_classes_are_counted_with_trained_ones(
    world: Any, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def add(classes: pa.Table, name: str) -> dict[str, Any]:
        pq.write_table(classes, tmp_path / f"{name}.parquet")
        job = AddClassesJob(
            model=str(root / "model"),
            classes=str(tmp_path / f"{name}.parquet"),
            output=str(tmp_path / name),
        )
        return api.add_classes(job)

    every = pq.read_table(world.classes)
    done = add(every, "all")
    assert (done["added"], done["replaced"], done["classes"]) == (4, 8, 12)
    done = add(every.slice(SEEN), "new")
    assert (done["added"], done["replaced"], done["classes"]) == (4, 0, 12)
    with pytest.raises(InputError, match="a table without rows"):
        add(every.slice(0, 0), "none")
    with pytest.raises(InputError, match="column 'bias'"):
        add(every.append_column("bias", pa.array(np.ones(12))), "bias")
    zero = every.slice(SEEN)
    E = [row.tolist() for row in zero["embedding"].to_numpy()]
    E[1] = [0.0] * len(E[1])
    column = pa.array(E, pa.list_(pa.float32()))
    with caplog.at_level("WARNING", logger="raypq"):
        add(zero.drop_columns("embedding").append_column("embedding", column), "zero")
    assert "the embedding of 1 of 4 classes is zero, such as of 'c09'" in caplog.text


def test_model_of_a_training_has_a_baseline_for_norms_alone(root: Path) -> None:
    """The error of training rows is no measure of other rows."""
    assert registry.load(str(root / "model")).record["baseline"]["optimism"] > 2
