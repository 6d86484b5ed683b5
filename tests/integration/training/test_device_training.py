"""Training by reduction on a device: the model of the CPU up to rounding, for any workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from devices import DEVICE

from raypq import api
from raypq.config import ClusterSettings, TrainJob
from raypq.data import arrays
from raypq.errors import JobError
from raypq.kernels.device import REHEARSAL
from raypq.methods import registry
from raypq.methods.base import Model, ReductionMethod
from raypq.methods.gradient import GradientMethod

METHODS = [name for name in registry.METHODS if issubclass(registry.find(name), ReductionMethod)]
N, DX, DA, L = 1500, 32, 8, 10
SETTINGS: dict[str, Any] = {"K": 16, "M": 4, "iterations": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of float16 features, and a class table."""
    root = tmp_path_factory.mktemp("device")
    rng = np.random.default_rng(3)
    E = rng.standard_normal((L, DA)).astype(np.float32)
    centres = E @ rng.standard_normal((DA, DX))
    names = np.array([f"c{t}" for t in range(L)])
    spread = np.geomspace(3, 0.1, DX)  # axes that differ, so that rounding does not choose them
    (root / "rows").mkdir()
    for part in range(3):
        y = rng.integers(0, L, N // 3)
        X = (centres[y] + spread * rng.standard_normal((len(y), DX))).astype(np.float16)
        columns = {"id": np.arange(len(y)) + 1000 * part, "feature": arrays.fixed_list(X)}
        pq.write_table(pa.table(columns | {"label": names[y]}), root / f"rows/{part}.parquet")
    pq.write_table(
        pa.table({"class_id": names, "embedding": arrays.fixed_list(E)}), root / "classes.parquet"
    )
    return root


def train(store: Path, output: Path, name: str, device: str, **more: Any) -> Model:
    """The model of a job on one device."""
    classes = registry.find(name).needs_classes
    settings = SETTINGS | ({"M": 1} if name == "vq" else {})
    where = ClusterSettings(cluster="none", **more).model_copy(update={"device": device})
    job = TrainJob(
        method=name, features=[str(store / "rows")], output=str(output), settings=settings,
        classes=str(store / "classes.parquet") if classes else None, where=where,
    )  # fmt: skip
    return api.train(job).model


@pytest.mark.parametrize("name", METHODS)
def test_the_model_of_a_device_is_that_of_the_cpu(store: Path, tmp_path: Path, name: str) -> None:
    ours = train(store, tmp_path / "device", name, DEVICE, workers=1)
    theirs = train(store, tmp_path / "cpu", name, "cpu", workers=1)
    X = np.concatenate(
        [np.stack(pq.read_table(path)["feature"].to_numpy()) for path in
         sorted((store / "rows").glob("*.parquet"))]
    ).astype(np.float32)  # fmt: skip
    assert (ours.encode(X) != theirs.encode(X)).mean() < 1e-3
    objective = [model.record["history"][-1]["objective"] for model in (ours, theirs)]
    assert objective[0] == pytest.approx(objective[1], rel=1e-6)
    again = train(store, tmp_path / "three", name, DEVICE, workers=3)
    for tensor, value in ours.tensors.items():
        np.testing.assert_array_equal(value, again.tensors[tensor], err_msg=tensor)


@pytest.mark.parametrize("name", ["pq", "pqzsl"])
def test_a_value_that_is_not_finite_is_named(store: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "rows").mkdir()
    table = pq.read_table(store / "rows/0.parquet")
    X = np.stack(table["feature"].to_numpy())
    X[123, 4] = np.nan
    column = arrays.fixed_list(X)
    pq.write_table(table.set_column(1, "feature", column), tmp_path / "rows/0.parquet")
    (tmp_path / "classes.parquet").write_bytes((store / "classes.parquet").read_bytes())
    with pytest.raises(JobError, match=r"0\.parquet.*row 123 \(id 123\).*finite values"):
        train(tmp_path, tmp_path / "model", name, DEVICE, workers=1)


GRADIENT = [name for name in registry.METHODS if issubclass(registry.find(name), GradientMethod)]


@pytest.mark.parametrize("name", GRADIENT)
def test_networks_train_and_encode_on_a_device(store: Path, tmp_path: Path, name: str) -> None:
    """The rehearsal gives the CPU's own codes; a GPU finite ones, the same again."""
    method = registry.find(name)
    rows, where = [str(store / "rows")], ClusterSettings(cluster="none", workers=1)
    settings = {"epochs": 2, "batch": 100, "M": 4}
    codes = []
    for run, device in enumerate((DEVICE, "cpu" if DEVICE == REHEARSAL else DEVICE)):
        job = TrainJob(
            method=name, features=rows, output=str(tmp_path / str(run)), settings=settings,
            unlabelled=rows if method.needs_unlabelled else [],
            classes=str(store / "classes.parquet"),
            where=where.model_copy(update={"device": device}),
        )  # fmt: skip
        model = api.train(job).model
        X = np.random.default_rng(1).standard_normal((300, DX), dtype=np.float32)
        codes.append(model.encode(X, device=device))
    assert codes[0].shape == (300, model.M)
    np.testing.assert_array_equal(*codes)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_training_learns_as_well(store: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        output = tmp_path / str(compiled)
        job = TrainJob(
            method="dpq", features=[str(store / "rows")], output=str(output),
            settings={"epochs": 3, "batch": 100, "compile": compiled},
            classes=str(store / "classes.parquet"),
            where=ClusterSettings(cluster="none", workers=1).model_copy(update={"device": DEVICE}),
        )  # fmt: skip
        losses.append(api.train(job).model.record["history"][-1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.25)
