"""A small place to live in: features, classes, models, and the verbs on them without Ray."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from broken import SMALL, Place, raypq

from raypq import api
from raypq.config import ClassifyJob, ClusterSettings, EncodeJob, TrainJob
from raypq.data import synthetic
from raypq.data.storage import stem_of
from raypq.data.store import snapshot

WHERE = ClusterSettings(cluster="none", workers=1)
SHARDS, IMAGES = 6, 600


class Home:
    """``features/`` of six shards, ``classes.parquet``, and the models ``old`` and ``new``."""

    shards, where = SHARDS, WHERE

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> str:
        return str(self.root / name)

    def encode(self, model: str = "old", output: str = "codes", **more: Any) -> snapshot.Snapshot:
        features = [self("features")]
        job = EncodeJob(
            model=self(model), features=features, output=self(output), where=WHERE, **more
        )
        return api.encode(job)

    def classify(self, output: str = "predictions", **more: Any) -> snapshot.Snapshot:
        more = {"codes": self("codes"), "where": WHERE} | more
        return api.classify(
            ClassifyJob(classes=self("classes.parquet"), output=self(output), **more)
        )

    def mix(self, under_new: Iterable[int]) -> snapshot.Snapshot:
        """A version of ``codes`` with the shards of these numbers under the new model."""
        old, new = self.encode("old"), self.encode("new")
        chosen = {self.stem(number) for number in under_new}
        pairs = zip(old.shards, new.shards, strict=True)
        receipts = [b if a.shard in chosen else a for a, b in pairs]
        return snapshot.commit(
            self("codes"),
            kind="codes",
            run_id="mixed",
            expected=[receipt.shard for receipt in receipts],
            receipts=receipts,
        )

    def stem(self, number: int) -> str:
        """What a store calls the shard of this number."""
        return stem_of(str(self.shard(number)))

    def shard(self, number: int) -> Path:
        return self.root / "features" / f"part-{number:05d}.parquet"

    def rewrite(self, number: int) -> None:
        """The same rows in another order."""
        table = pq.read_table(self.shard(number))
        pq.write_table(table.take(np.arange(len(table))[::-1]), self.shard(number))

    def touch(self, number: int) -> None:
        """The same content with another time of change."""
        os.utime(self.shard(number), (1, 1 + number))

    def add(self, number: int, *, seed: int = 11) -> None:
        """One more shard of images of the same world."""
        world = synthetic.SyntheticClasses.create(
            classes=20, dx=24, da=12, rng=np.random.default_rng(3)
        )
        synthetic.write_features(
            self.root / "more",
            world,
            classes=np.arange(20),
            images=100,
            shards=1,
            name=f"more{number}",
            rng=np.random.default_rng(seed + number),
        )
        shutil.move(self.root / "more" / "part-00000.parquet", self.shard(number))


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(3)
    world = synthetic.SyntheticClasses.create(classes=20, dx=24, da=12, rng=rng)
    synthetic.write_classes(root / "classes.parquet", world)
    for name, chosen in (("train", np.flatnonzero(world.seen)), ("features", np.arange(20))):
        synthetic.write_features(
            root / name, world, classes=chosen, images=IMAGES, shards=SHARDS, name=name, rng=rng
        )
    for name, seed in (("old", 0), ("new", 1)):
        api.train(
            TrainJob(
                method="pqzsl",
                features=[str(root / "train")],
                classes=str(root / "classes.parquet"),
                output=str(root / name),
                settings={"M": 5, "K": 16, "iterations": 2, "polish": 1, "seed": seed},
                where=WHERE,
            )
        )
    return root


@pytest.fixture
def home(_template: Path, tmp_path: Path) -> Home:
    """A place of one's own, times of change included."""
    shutil.copytree(_template, tmp_path / "home")
    return Home(tmp_path / "home")


@pytest.fixture(scope="module")
def model(world, tmp_path_factory) -> str:
    """A pqzsl model of the tiny world."""
    folder = tmp_path_factory.mktemp("models")
    result = raypq(
        "train", "pqzsl", "--features", world.train, "--classes", world.classes,
        "--output", str(folder / "m"), *SMALL, "--set", "polish=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return str(folder / "m")


@pytest.fixture
def place(world, model, tmp_path, monkeypatch) -> Place:
    shutil.copytree(world.root, tmp_path / "w")
    return Place(tmp_path / "w", model, monkeypatch)
