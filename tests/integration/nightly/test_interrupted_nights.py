"""What a night reports of shards that an interrupted run finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypq
from raypq.config import ClassificationTarget, ClusterSettings, ReindexJob, TrainJob
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.errors import DriftError, InputError, JobError

ALONE = ClusterSettings(cluster="none", workers=1)


class Features:
    """A source of vectors, its model, and nights over it."""

    def __init__(self, root: Path) -> None:
        self.root, self.rng = root, np.random.default_rng(0)
        self.write("train/a", 400)
        raypq.train(
            TrainJob(
                method="pq",
                features=[str(root / "train")],
                output=str(root / "model"),
                settings={"M": 4, "K": 16},
                where=ALONE,
            )
        )
        self.write("source/a", 100)

    def write(self, name: str, n: int, *, scale: float = 1.0, bad: bool = False) -> None:
        X = (self.rng.standard_normal((n, 8)) * scale).astype(np.float32)
        if bad:
            X[3] = np.nan
        path = self.root / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        ids = [f"{path.stem}{i}" for i in range(n)]
        pq.write_table(pa.table({"id": ids, "feature": arrays.fixed_list(X)}), path)

    def night(self, **more: Any) -> dict[str, Any]:
        return raypq.reindex(
            ReindexJob(
                model=str(self.root / "model"),
                features=[str(self.root / "source")],
                codes=str(self.root / "codes"),
                where=ALONE,
                **more,
            )
        )


@pytest.fixture
def home(tmp_path: Path) -> Features:
    return Features(tmp_path)


def test_drift_of_shards_that_an_interrupted_night_finished(home: Features) -> None:
    home.night()
    home.write("source/b", 100, scale=5)
    home.write("source/z", 100, bad=True)
    with pytest.raises(JobError):
        home.night()
    home.write("source/z", 100)
    with pytest.raises(DriftError, match="1 shard"):
        home.night(fail_on_drift=True)
    drift = snapshot.read(str(home.root / "codes")).summary["drift"]
    assert drift["judged"] == 2
    assert [item["shard"].startswith("source--b-") for item in drift["shards"]] == [True]


def test_drift_is_named_though_the_classification_fails(
    home: Features, caplog: pytest.LogCaptureFixture
) -> None:
    classes, predictions = home.root / "classes.parquet", home.root / "predictions"
    V = home.rng.standard_normal((3, 8)).astype(np.float32)
    pq.write_table(
        pa.table({"class_id": ["x", "y", "z"], "embedding": arrays.fixed_list(V)}), classes
    )
    target = ClassificationTarget(classes=str(classes), output=str(predictions))
    (predictions / "snapshots").mkdir(parents=True)
    (predictions / "snapshots" / f"{1:020d}.json").write_text("{}")
    home.night()
    home.write("source/b", 100, scale=5)
    with pytest.raises(InputError):
        home.night(classify=[target])
    assert "1 of 1 shards" in caplog.text
