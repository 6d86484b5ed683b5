"""A code store carries the models that made its codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypq.data.model_files import ModelFiles
from raypq.errors import ModelError
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.stores import model_store


@pytest.fixture
def models() -> list[Model]:
    settings = registry.find("pq").settings_class(M=2, K=4)
    rng = np.random.default_rng(0)
    return [
        registry.find("pq").model_class(
            settings=settings,
            tensors={"C": rng.standard_normal((2, 4, 3)).astype(np.float32)},
            dx=6,
        )
        for _ in range(2)
    ]


def test_models_come_back_by_fingerprint(tmp_path: Path, models: list[Model]) -> None:
    for model in [*models, models[0]]:
        model_store.save(str(tmp_path), model)
    found = model_store.load(str(tmp_path), [model.fingerprint for model in models])
    assert set(found) == {model.fingerprint for model in models}
    for model in models:
        np.testing.assert_array_equal(found[model.fingerprint].C, model.C)


def test_a_missing_model_is_named(tmp_path: Path, models: list[Model]) -> None:
    with pytest.raises(ModelError, match=models[0].fingerprint):
        model_store.load(str(tmp_path), [models[0].fingerprint])


def test_half_a_model_is_no_model(tmp_path: Path, models: list[Model]) -> None:
    """A crash between the two files: the next writer finishes the job."""
    where = Path(model_store.folder_of(str(tmp_path), models[0].fingerprint))
    model_store.save(str(tmp_path), models[0])
    (where / "model.json").unlink()
    with pytest.raises(ModelError):
        model_store.load(str(tmp_path), [models[0].fingerprint])
    model_store.save(str(tmp_path), models[0])
    assert model_store.load(str(tmp_path), [models[0].fingerprint])


def test_a_model_in_another_models_place_is_refused(tmp_path: Path, models: list[Model]) -> None:
    model_store.save(str(tmp_path), models[0])
    other = model_store.folder_of(str(tmp_path), models[1].fingerprint)
    ModelFiles.load(model_store.folder_of(str(tmp_path), models[0].fingerprint)).save(other)
    with pytest.raises(ModelError, match="expected the model"):
        model_store.load(str(tmp_path), [models[1].fingerprint])


def record_of(store: Path, model: Model) -> object:
    return model_store.load(str(store), [model.fingerprint])[model.fingerprint].record.get(
        "calibration"
    )


def tuned(model: Model, calibration: float | None) -> Model:
    return model.with_record({} if calibration is None else {"calibration": calibration}, None)


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        ([None, 0.5], 0.5),
        ([0.5, None], 0.5),
        ([0.5, 0.25], 0.25),
        ([None, 0.5, None, 0.25], 0.25),
        ([0.0, None], 0.0),
    ],
)
def test_the_calibration_that_came_last_is_kept(
    tmp_path: Path, models: list[Model], order: list[float | None], kept: float
) -> None:
    for calibration in order:
        model_store.save(str(tmp_path), tuned(models[0], calibration))
    assert record_of(tmp_path, models[0]) == kept
    assert (
        model_store.completed(str(tmp_path), tuned(models[0], None)).record["calibration"] == kept
    )
    given = model_store.completed(str(tmp_path), tuned(models[0], 7.0))
    assert given.record["calibration"] == 7.0
    assert given.fingerprint == models[0].fingerprint


def test_a_model_without_its_arrays_is_made_whole(tmp_path: Path, models: list[Model]) -> None:
    model_store.save(str(tmp_path), models[0])
    where = Path(model_store.folder_of(str(tmp_path), models[0].fingerprint))
    (where / "model.safetensors").unlink()
    model_store.save(str(tmp_path), models[0])
    assert model_store.load(str(tmp_path), [models[0].fingerprint])


def test_what_is_there_is_not_written_again(tmp_path: Path, models: list[Model]) -> None:
    model_store.save(str(tmp_path), tuned(models[0], 0.5))
    where = Path(model_store.folder_of(str(tmp_path), models[0].fingerprint)) / "model.json"
    before = where.stat().st_ino
    for calibration in (0.5, None):
        model_store.save(str(tmp_path), tuned(models[0], calibration))
    assert where.stat().st_ino == before
