"""A model tuned, or given classes, after its codes were made: its fingerprint is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import AddClassesJob, ReindexJob
from raypq.data.store import snapshot
from raypq.errors import ModelError


def tune(home: Any, name: str, calibration: float | None, model: str = "old") -> str:
    """A copy of a model that differs in its calibration alone."""
    place = Path(home(name))
    place.mkdir()
    for file in Path(home(model)).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    document = json.loads((place / "model.json").read_text())
    document["record"].pop("calibration", None)
    if calibration is not None:
        document["record"]["calibration"] = calibration
    (place / "model.json").write_text(json.dumps(document))
    return str(place)


def night(home: Any, model: str, calibration: Any = "model", **more: Any) -> dict[str, Any]:
    section = {
        "classes": home("classes.parquet"),
        "output": home("predictions"),
        "calibration": calibration,
    }
    return api.reindex(
        ReindexJob(
            model=model,
            features=[home("features")],
            codes=home("codes"),
            classify=[section],
            where=home.where,
            **more,
        )
    )


def calibrations(home: Any) -> set[float]:
    models = snapshot.read(home("predictions")).summary["models"]
    return {about["calibration"] for about in models.values() if about["shards"]}


def test_tuned_after_its_codes_were_made(home: Any) -> None:
    plain, tuned = tune(home, "plain", None), tune(home, "tuned", 0.125)
    night(home, plain, calibration=0.0)
    with pytest.raises(ModelError, match="expected a calibration"):
        night(home, plain)
    assert not night(home, tuned)["codes"]["new"]
    assert calibrations(home) == {0.125}
    assert night(home, tuned)["nothing_to_do"]
    assert night(home, plain)["nothing_to_do"], "its twin beside the codes is tuned"
    # By hand, each shard's own model is the one beside the codes.
    home.classify(output="by-hand", calibration="model")
    assert snapshot.read(home("by-hand")).summary["calibration"] == 0.125
    night(home, tune(home, "again", 0.25))
    assert calibrations(home) == {0.25}


def test_a_dry_run_before_that(home: Any) -> None:
    night(home, tune(home, "plain", None), calibration=0.0)
    told = night(home, tune(home, "tuned", 0.125), dry_run=True)
    assert told["classify"][0]["images"] == 600


def test_a_roll_out_from_a_model_that_is_not_tuned(
    home: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that wait are classified as they were, and that is told."""
    night(home, tune(home, "plain", None), calibration=0.0)
    tuned = tune(home, "tuned", 0.125, model="new")
    night(home, tuned, rollout=0.5)
    assert calibrations(home) == {0.0, 0.125}
    assert "classified without one" in caplog.text
    night(home, tuned)
    assert calibrations(home) == {0.125}


def test_classes_added_after_the_codes_were_made(home: Any) -> None:
    night(home, home("old"), calibration=0.0)
    before = snapshot.read(home("predictions"))
    api.add_classes(
        AddClassesJob(
            model=home("old"), classes=home("classes.parquet"), output=home("more"),
        )
    )  # fmt: skip
    told = night(home, home("more"), calibration=0.0)
    assert not told["codes"]["new"]
    assert snapshot.read(home("predictions")).version == before.version + 1
    assert night(home, home("more"), calibration=0.0)["nothing_to_do"]
    assert night(home, home("old"), calibration=0.0)["nothing_to_do"], "classes are not lost"
    fingerprint = snapshot.read(home("codes")).shards[0].model
    kept = Path(home("codes"), "models", fingerprint, "classes.json")
    ids = pq.read_table(home("classes.parquet"))["class_id"].to_pylist()
    assert json.loads(kept.read_text())["ids"] == ids
