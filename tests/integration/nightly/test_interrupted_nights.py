"""What nights report of drift and of images, whatever was interrupted or failed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypq
from raypq.config import ClassificationTarget, ClusterSettings, Columns, ReindexJob, TrainJob
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.errors import DriftError, InputError, JobError
from raypq.methods.pq import PQModel, PQSettings

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


def write_images(path: Path, seeds: list[int], *, bad: tuple[int, ...] = ()) -> None:
    path.parent.mkdir(exist_ok=True)
    images = [b"no image" if at in bad else ppm(seed) for at, seed in enumerate(seeds)]
    ids = [f"{path.stem}{at}" for at in range(len(seeds))]
    pq.write_table(pa.table({"id": ids, "image": images}), path)


def ppm(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return b"P6 4 4 255 " + pixels.tobytes()


class Images:
    """Two shards of ten images, and nights over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("one", "other"):
            C = np.random.default_rng(len(name)).standard_normal((4, 16, 12)).astype(np.float32)
            PQModel(settings=PQSettings(M=4, K=16), tensors={"C": C}, dx=48).save(str(root / name))
        self.write("a")
        self.write("b")
        assert self.night() == {"new": 20}

    def write(self, name: str, *changed: int, bad: tuple[int, ...] = ()) -> None:
        seeds = [at + 1000 * (at in changed) for at in range(10)]
        write_images(self.root / "source" / f"{name}.parquet", seeds, bad=bad)

    def night(self, model: str = "one", **more: Any) -> dict[str, int]:
        """The counts of a night that are not 0."""
        counts = self.result(model, **more)["images"]
        return {key: value for key, value in counts.items() if value}

    def result(self, model: str, **more: Any) -> dict[str, Any]:
        job = ReindexJob(
            model=str(self.root / model),
            features=[str(self.root / "source")],
            codes=str(self.root / "codes"),
            columns=Columns(feature="image", image_size=4, bad_images=1),
            where=ALONE,
            **more,
        )
        return raypq.reindex(job)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


def test_images_that_an_interrupted_night_encoded(images: Images) -> None:
    images.write("a", 0)
    images.write("b", bad=(5, 6))
    with pytest.raises(JobError):
        images.night()
    images.write("b", 1)
    assert images.night() == {"changed": 2, "kept": 18}
    summary = snapshot.read(str(images.root / "codes")).summary
    assert summary["images_unchanged"] == 18


def test_a_changed_image_under_another_model(images: Images) -> None:
    images.write("a", 0)
    assert images.night("other") == {"changed": 1, "encoded_again": 19}


def test_images_that_become_undecodable_are_counted_once(images: Images) -> None:
    images.write("a", bad=(5,))
    assert images.night() == {"kept": 19, "left_out": 1}


def test_images_of_shards_that_are_left_out(images: Images) -> None:
    images.write("b", bad=(5, 6))
    write_images(images.root / "source" / "c.parquet", [1, 2, 3], bad=(0, 1))
    assert images.night(on_bad_shard="quarantine") == {"kept": 10, "left_out": 13}


def test_versions_hold_no_counts(images: Images) -> None:
    """An earlier raypq refuses keys that it does not know."""
    (version,) = (images.root / "codes" / "snapshots").iterdir()
    assert '"counts"' not in version.read_text()


def test_a_dry_run_over_folders_predicts_the_images_of_the_night(images: Images) -> None:
    """Also where the parts of a folder divide (from 2,049 files on) and unite."""
    root = images.root / "source"
    for path in root.iterdir():
        path.unlink()

    def place(*numbers: int, seed: int = 0) -> None:
        for number in numbers:
            (root / f"{number}.ppm").write_bytes(ppm(number % 50 + seed))

    def compare(**expected: int) -> None:
        plan = images.result("one", dry_run=True, max_removed=1)
        counts = images.night(max_removed=1)
        assert plan["estimated_shards"] == 0
        assert plan["images"] == sum(counts.get(key, 0) for key in ("new", "changed"))
        assert plan["kept_images"] == counts.get("kept", 0)
        assert plan["removed_images"] == counts.get("removed", 0)
        assert counts == expected

    place(*range(60))
    compare(new=60, removed=20)
    place(*range(60, 2200))
    place(0, seed=999)
    (root / "1.ppm").unlink()
    compare(new=2140, changed=1, kept=58, removed=1)
    for number in range(2, 302):
        (root / f"{number}.ppm").unlink()
    compare(kept=1899, removed=300)


def test_a_lance_dataset_that_was_compacted(home: Features, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    root = str(tmp_path / "x.lance")

    def write(n: int, **more: Any) -> None:
        X = home.rng.standard_normal((n, 8)).astype(np.float32)
        table = pa.table({"id": pa.array(range(n)), "feature": arrays.fixed_list(X)})
        lance.write_dataset(table, root, max_rows_per_file=40, **more)

    def night() -> dict[str, Any]:
        job = ReindexJob(
            model=str(tmp_path / "model"), features=[root], codes=str(tmp_path / "l"), where=ALONE
        )
        return raypq.reindex(job)["shards"]

    write(100)
    assert night()["new"] == 3
    lance.dataset(root).optimize.compact_files()
    shards = night()
    assert (shards["new"], shards["removed"]) == (1, 3)
    write(40, mode="overwrite")
    with pytest.raises(InputError, match=r"compacted or written anew.*max_removed: 1"):
        night()
