"""A night over images decodes only what changed, and gives the codes of a fresh store."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import raypq
from raypq.config import ClusterSettings, Columns, EncodeJob, ReindexJob, TrainJob
from raypq.data.codes import CodeFile
from raypq.data.known_images import KnownImages
from raypq.data.store import snapshot
from raypq.errors import InputError

N, SIDE = 5000, 4
ALONE = ClusterSettings(cluster="none", workers=1)
COLUMNS = Columns(feature="image", image_size=SIDE)


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PPM")
    return out.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("model")
    data = [image(i) for i in range(200)]
    pq.write_table(pa.table({"id": range(200), "image": data}), root / "images.parquet")
    job = TrainJob(
        method="pq",
        features=[str(root / "images.parquet")],
        output=str(root / "model"),
        settings={"M": 4, "K": 16, "iterations": 2},
        columns=COLUMNS,
        where=ALONE,
    )
    raypq.train(job)
    return job.output


def reindex(model: str, source: Path, codes: Path, **more: Any) -> dict[str, Any]:
    return raypq.reindex(
        ReindexJob(
            model=model,
            features=[str(source)],
            codes=str(codes),
            columns=COLUMNS,
            where=ALONE,
            **more,
        )
    )


def stored(store: Path) -> dict[str, tuple[bytes, Any]]:
    found = {}
    for receipt in snapshot.read(str(store)).shards:
        for batch in CodeFile.open(str(store / receipt.path)).batches(1000):
            labels = batch.labels or pa.nulls(len(batch.ids))
            for key, code, label in zip(batch.ids, batch.B, labels, strict=True):
                assert key.as_py() not in found
                found[key.as_py()] = (code.tobytes(), label.as_py())
    return found


def fresh(model: str, source: Path, codes: Path) -> dict[str, tuple[bytes, Any]]:
    raypq.encode(
        EncodeJob(
            model=model, features=[str(source)], output=str(codes), columns=COLUMNS, where=ALONE
        )
    )
    return stored(codes)


def write_tree(root: Path, images: Mapping[str, int]) -> None:
    for name, seed in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(seed))


def change(root: Path, images: dict[str, int], one_percent: int) -> set[str]:
    """1% of the files new, 1% changed, 1% gone; returns the new and the changed ones."""
    names = list(images)
    gone, changed = names[5 :: N // one_percent], names[7 :: N // one_percent]
    for name in gone:
        (root / name).unlink()
        del images[name]
    news = {f"n{i % 9}/new-{i}.ppm": N + i for i in range(one_percent)}
    updated = {name: 2 * N + images[name] for name in changed}
    write_tree(root, news | updated)
    images |= news | updated
    return {*news, *updated}


def spoil(root: Path, names: set[str]) -> None:
    """Other content of the same size and time: whoever decodes it fails."""
    for name in names:
        path = root / name
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    images = {f"n{i % 9}/{i}.ppm": i for i in range(N)}
    root = tmp_path / "images"
    write_tree(root, images)
    return root, images


def test_a_second_night_decodes_only_what_changed(model, tree, tmp_path):
    root, images = tree
    reindex(model, root, tmp_path / "codes")
    changed = change(root, images, 50)
    expected = fresh(model, root, tmp_path / "fresh")
    spoil(root, {*images} - changed)
    night = reindex(model, root, tmp_path / "codes")
    assert stored(tmp_path / "codes") == expected
    version = snapshot.read(str(tmp_path / "codes"))
    assert version.rows == N
    assert version.summary["images_unchanged"] == N - 100
    assert night["codes"]["version"] == 2
    assert night["images"] == {
        "new": 50, "changed": 50, "removed": 50, "kept": N - 100, "encoded_again": 0, "left_out": 0
    }  # fmt: skip
    assert reindex(model, root, tmp_path / "codes")["nothing_to_do"]


@pytest.mark.parametrize("first", [500, 4000])
def test_parts_that_divide_or_unite_keep_their_codes(model, tree, tmp_path, first):
    """A folder that grows tenfold, or shrinks to a few: parts of other numbers, the same codes."""
    root, images = tree
    names = list(images)
    hidden = tmp_path / "hidden"
    for name in names[first:]:
        (hidden / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).rename(hidden / name)
    reindex(model, root, tmp_path / "codes")
    before = {item.shard for item in snapshot.read(str(tmp_path / "codes")).shards}
    for name in names[first:]:
        (hidden / name).rename(root / name)
    expected = fresh(model, root, tmp_path / "fresh")
    spoil(root, set(names[:first]))
    reindex(model, root, tmp_path / "codes", max_removed=0)
    assert stored(tmp_path / "codes") == expected
    after = {item.shard for item in snapshot.read(str(tmp_path / "codes")).shards}
    assert after != before
    for name in names[first:]:
        (root / name).unlink()
    with pytest.raises(InputError, match="nothing was changed"):
        reindex(model, root, tmp_path / "codes", max_removed=0.05)
    reindex(model, root, tmp_path / "codes", max_removed=1)
    kept = {name: expected[name] for name in names[:first]}
    assert stored(tmp_path / "codes") == kept
    assert {item.shard for item in snapshot.read(str(tmp_path / "codes")).shards} == before


def test_appending_to_parts_that_divide_repeats_no_image(model, tree, tmp_path):
    _, images = tree
    few, other = tmp_path / "few", tmp_path / "other"
    write_tree(few, dict(list(images.items())[:1000]))
    write_tree(other, {"a/b.ppm": 1})
    job = EncodeJob(
        model=model, features=[str(few), str(other)], output=str(tmp_path / "codes"),
        columns=COLUMNS, where=ALONE,
    )  # fmt: skip
    raypq.encode(job)
    write_tree(few, images)
    raypq.encode(job.model_copy(update={"features": [str(few)], "append": True}))
    found = stored(tmp_path / "codes")  # asserts that no id repeats
    assert found.keys() == {*images, "a/b.ppm"}


def test_a_tar_that_is_written_again_keeps_the_codes_of_its_images(model, tmp_path):
    def write(seeds: list[int]) -> None:
        with tarfile.open(tmp_path / "tars" / "0.tar", "w") as archive:
            for key, seed in enumerate(seeds):
                data = image(seed)
                info = tarfile.TarInfo(f"{key}.ppm")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))

    (tmp_path / "tars").mkdir()
    write(list(range(100)))
    reindex(model, tmp_path / "tars", tmp_path / "codes")
    write([*range(50), 1000, *range(51, 100), 2000])
    reindex(model, tmp_path / "tars", tmp_path / "codes")
    assert snapshot.read(str(tmp_path / "codes")).summary["images_unchanged"] == 99
    assert stored(tmp_path / "codes") == fresh(model, tmp_path / "tars", tmp_path / "fresh")


def test_images_of_a_damaged_code_file_are_encoded_again(model, tree, tmp_path):
    root, images = tree
    reindex(model, root, tmp_path / "codes")
    receipt = snapshot.read(str(tmp_path / "codes")).shards[0]
    path = tmp_path / "codes" / receipt.path
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(bytes(data))
    change(root, images, 50)
    reindex(model, root, tmp_path / "codes")
    assert stored(tmp_path / "codes") == fresh(model, root, tmp_path / "fresh")


def test_another_glob_of_a_folder_is_another_source(model, tmp_path):
    """Appended days by glob, as by folder: nothing that is stored goes."""
    write_tree(
        tmp_path / "g", {f"day{day}_{i}.ppm": 10 * day + i for day in (1, 2) for i in range(4)}
    )
    job = EncodeJob(
        model=model, features=[str(tmp_path / "g" / "day1_*")], output=str(tmp_path / "codes"),
        columns=COLUMNS, where=ALONE,
    )  # fmt: skip
    raypq.encode(job)
    for more in ("day2_*", "day1_1.ppm"):
        again = job.model_copy(update={"features": [str(tmp_path / "g" / more)], "append": True})
        raypq.encode(again)
    rows = sum(item.rows for item in snapshot.read(str(tmp_path / "codes")).shards)
    assert rows == 9, "the last one is stored twice, which is reported"
    with pytest.raises(InputError, match="nothing was changed"):
        reindex(model, tmp_path / "g" / "day2_*", tmp_path / "codes", max_removed=0)


def test_names_of_cameras_are_no_hidden_files(model, tmp_path):
    write_tree(tmp_path / "tree", {"_MG_1234.PPM": 0, "a/_DSC1.ppm": 1, ".hidden.ppm": 2})
    (tmp_path / "tree" / "_SUCCESS").touch()
    reindex(model, tmp_path / "tree", tmp_path / "codes")
    assert stored(tmp_path / "codes").keys() == {"_MG_1234.PPM", "a/_DSC1.ppm"}


def test_images_that_others_replace_count_as_removed(model, tmp_path):
    write_tree(tmp_path / "tree", {f"{i}.ppm": i for i in range(10)})
    reindex(model, tmp_path / "tree", tmp_path / "codes")
    for i in range(10):
        (tmp_path / "tree" / f"{i}.ppm").rename(tmp_path / "tree" / f"new-{i}.ppm")
    with pytest.raises(InputError, match=r"10 of them gone, such as \d\.ppm; nothing was changed"):
        reindex(model, tmp_path / "tree", tmp_path / "codes", max_removed=0.5)
    reindex(model, tmp_path / "tree", tmp_path / "codes", max_removed=1)
    assert len(stored(tmp_path / "codes")) == 10


def test_a_touched_image_of_equal_content_keeps_its_code(model, tree, tmp_path):
    root, images = tree
    reindex(model, root, tmp_path / "codes", compare="content")
    for name in images:
        os.utime(root / name)
    reindex(model, root, tmp_path / "codes", compare="content")
    (root / "n0" / "one-more.ppm").write_bytes(image(9 * N))
    reindex(model, root, tmp_path / "codes", compare="content")
    unchanged = snapshot.read(str(tmp_path / "codes")).summary["images_unchanged"]
    assert unchanged > 500, "all others of the part of the new image"


def test_ids_that_become_text_are_encoded_again(model, tmp_path):
    (tmp_path / "in").mkdir()
    for ids in ([1, 2, 3], ["a1", "a2", "a3"]):
        table = pa.table({"id": ids, "image": [image(i) for i in range(3)]})
        pq.write_table(table, tmp_path / "in" / "x.parquet")
        shutil.rmtree(tmp_path / "codes", ignore_errors=True)
        fresh(model, tmp_path / "in", tmp_path / "codes")
    assert stored(tmp_path / "codes").keys() == {"a1", "a2", "a3"}


def test_many_known_images_are_looked_up_once(model):
    """A lookup costs as much as its batch, not as all known images."""
    known = KnownImages(
        ids=pa.array([str(i) for i in range(200_000)]),
        versions=pa.array([i.to_bytes(8, "big") for i in range(200_000)], pa.binary(8)),
    )
    for start in range(0, 200_000, 64):
        ids = known.ids.slice(start, 64)
        found = known.positions(ids, known.versions.slice(start, 64))
        assert found[0] == start
    assert (known.positions(pa.array(range(3)), known.versions.slice(0, 3)) == -1).all()
    assert known.positions(known.ids.slice(5, 2), known.versions.slice(6, 2)).tolist() == [-1, -1]
