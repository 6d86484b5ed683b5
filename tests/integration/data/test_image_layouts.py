"""Every layout of images gives the codes of the same images in plain Parquet; what is wrong with
one is named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import raypq
from raypq.config import ClusterSettings, Columns, EncodeJob, TrainJob
from raypq.data.codes import CodeFile
from raypq.data.layouts import list_features, open_shard
from raypq.data.store import snapshot
from raypq.errors import InputError, JobError

N, SIDE = 60, 8
ALONE = ClusterSettings(cluster="none", workers=1)
COLUMNS = Columns(feature="image", image_size=SIDE)
CLASSES = ("n01440764", "n01443537", "n01484850")
Images = Mapping[str, tuple[bytes, str]]  # by key: encoded image, class


def image(seed: int, side: int = SIDE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def images() -> Images:
    """Images by key, each with its class."""
    classes = [CLASSES[i % 3] for i in range(N)]
    return {f"{name}_{i:03d}": (image(i), name) for i, name in enumerate(classes)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, images: Images) -> tuple[str, dict[str, Any]]:
    """A model, and the codes of plain Parquet by id."""
    root = tmp_path_factory.mktemp("plain")
    (root / "images").mkdir()
    data, labels = zip(*images.values(), strict=True)
    table = pa.table({"id": list(images), "image": list(data), "label": list(labels)})
    pq.write_table(table, root / "images" / "part.parquet")
    job = TrainJob(
        method="pq",
        features=[str(root / "images")],
        output=str(root / "model"),
        settings={"M": 8, "K": 16, "iterations": 2},
        columns=COLUMNS,
        where=ALONE,
    )
    raypq.train(job)
    encode(job.output, root / "images", root / "codes")
    return job.output, stored(root / "codes")


def encode(model: str, source: Path | list[Path], output: Path, columns: Columns = COLUMNS) -> Any:
    sources = source if isinstance(source, list) else [source]
    return raypq.encode(
        EncodeJob(
            model=model,
            features=[str(uri) for uri in sources],
            output=str(output),
            columns=columns,
            where=ALONE,
        )
    )


def stored(store: Path) -> dict[str, Any]:
    """Code and label of each id in the latest version."""
    found = {}
    for receipt in snapshot.read(str(store)).shards:
        for batch in CodeFile.open(str(store / receipt.path)).batches(300):
            labels = batch.labels or pa.nulls(len(batch.ids))
            for key, code, label in zip(batch.ids, batch.B, labels, strict=True):
                assert key.as_py() not in found
                found[key.as_py()] = (code.tobytes(), label.as_py())
    return found


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            add(archive, name, content)
    return path


def folder(root: Path, images: Images) -> tuple[Columns, Callable[[str], str]]:
    for key, (data, name) in images.items():
        (root / name).mkdir(exist_ok=True)
        (root / name / f"{key}.png").write_bytes(data)
    return COLUMNS, lambda key: f"{images[key][1]}/{key}.png"


def folder_of_img2dataset(root: Path, images: Images) -> tuple[Columns, Callable[[str], str]]:
    columns, name = folder(root, images)
    for label in CLASSES:  # img2dataset writes a table beside each folder
        pq.write_table(pa.table({"url": ["http://…"]}), root / f"{label}.parquet")
        (root / f"{label}_stats.json").write_text("{}")
    return columns, name


def webdataset(root: Path, images: Images) -> tuple[Columns, Callable[[str], str]]:
    parts = np.array_split(list(images), 3)
    for number, keys in enumerate(parts):
        members = {}
        for key in keys:
            data, name = images[key]
            members |= {f"./{key}.png": data, f"./{key}.cls": name.encode()}
        tar(root / f"{number:06d}.tar", members)
    return COLUMNS, str


def webdataset_json(root: Path, images: Images) -> tuple[Columns, Callable[[str], str]]:
    members = {}
    for number, (key, (data, name)) in enumerate(images.items()):
        about = {"key": number, "uid": f"u-{key}", "meta": {"wnid": name}, "width": 8.5}
        members |= {f"{key}.json": json.dumps(about).encode(), f"{key}.txt": b"a fish"}
        members |= {f"{key}.png": data}
    tar(root / "00000.tar", members)
    pq.write_table(pa.table({"key": ["0"], "url": ["http://…"]}), root / "00000.parquet")
    (root / "00000_stats.json").write_text("{}")
    columns = Columns(feature="image", image_size=SIDE, id="uid", label="meta.wnid")
    return columns, lambda key: f"u-{key}"


def imagenet(root: Path, images: Images) -> tuple[Columns, Callable[[str], str]]:
    for label in CLASSES:
        of_class = {f"{key}.JPEG": data for key, (data, name) in images.items() if name == label}
        tar(root / f"{label}.tar", of_class)
    return COLUMNS, str


def hugging_face(root: Path, images: Images) -> tuple[Columns, Callable[[str], str]]:
    import datasets

    rows = {
        "id": list(images),
        "image": [{"bytes": data, "path": f"{key}.png"} for key, (data, _) in images.items()],
        "label": [name for _, name in images.values()],
    }
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "label": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "train.parquet")
    return COLUMNS, str


@pytest.mark.parametrize(
    "write",
    [folder, folder_of_img2dataset, webdataset, webdataset_json, imagenet, hugging_face],
)
def test_every_layout_gives_the_codes_of_plain_parquet(write, plain, images, tmp_path):
    model, expected = plain
    (tmp_path / "images").mkdir()
    columns, name = write(tmp_path / "images", images)
    encode(model, tmp_path / "images", tmp_path / "codes", columns)
    assert stored(tmp_path / "codes") == {name(key): row for key, row in expected.items()}
    again = encode(model, tmp_path / "images", tmp_path / "codes", columns)
    assert again.version == 1, "nothing has changed"


def test_images_beside_features_are_skipped_with_a_warning(plain, images, tmp_path, caplog):
    model, expected = plain
    (tmp_path / "tars").mkdir()
    webdataset(tmp_path / "tars", images)
    (tmp_path / "tars" / "preview.png").write_bytes(image(0))
    encode(model, tmp_path / "tars", tmp_path / "codes")
    assert stored(tmp_path / "codes") == expected
    assert "skipped 1 image file(s)" in caplog.text


def test_several_folders_and_tars_are_one_store(plain, images, tmp_path):
    model, expected = plain
    keys = list(images)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tars").mkdir()
    folder(tmp_path / "tree", {key: images[key] for key in keys[:20]})
    webdataset(tmp_path / "tars", {key: images[key] for key in keys[20:]})
    encode(model, [tmp_path / "tree", tmp_path / "tars"], tmp_path / "codes")
    found = stored(tmp_path / "codes")
    assert {
        os.path.basename(key).removesuffix(".png"): row for key, row in found.items()
    } == expected


@pytest.mark.parametrize(
    ("named", "ids"),
    [
        ("tree", ["a/x.png", "a/y.png"]),
        ("tree/a", ["x.png", "y.png"]),
        ("tree/*/", ["a/x.png", "a/y.png"]),
        ("tree/a/x.png", ["x.png"]),
    ],
)
def test_ids_are_paths_below_the_folder_that_is_named(plain, tmp_path, named, ids):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for number, name in enumerate(("x", "y")):
        (tmp_path / "tree" / "a" / f"{name}.png").write_bytes(image(number))
    encode(plain[0], tmp_path / named, tmp_path / "codes")
    assert sorted(stored(tmp_path / "codes")) == ids


def whole(path: Path) -> bytes:
    tar(path, {f"{i}.{kind}": image(i) if kind == "png" else b"1" for i in range(3)
               for kind in ("png", "cls")})  # fmt: skip
    return path.read_bytes()


# What is done to the bytes of a tar file of six members, and what the error says.
SPOILT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "in a member": (
        lambda data: data[: 512 + 90],
        r"member 0\.png: expected \d+ bytes, found 90, then the end",
    ),
    "in a header": (
        lambda data: data[: _member(data, 2) + 100],
        "found 100 bytes, then the end of the file: it is cut off",
    ),
    "between members": (lambda data: data[: _member(data, 4)], "it is cut off"),
    "a header": (
        lambda data: data[: _member(data, 2)] + b"x" * 512 + data[_member(data, 2) + 512 :],
        "a member, or a block of zeros",
    ),
    "no tar": (lambda data: b"x" * 5000, "expected a whole tar file"),
    "empty": (lambda data: b"", "an empty file"),
    "two archives": (lambda data: data + data, "if several were joined, keep them apart"),
}


def _member(data: bytes, number: int) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()[number].offset


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_tar_is_named(kind, plain, tmp_path):
    spoil, text = SPOILT[kind]
    path = tmp_path / "a.tar"
    path.write_bytes(spoil(whole(path)))
    with pytest.raises(JobError, match=text) as error:
        encode(plain[0], path, tmp_path / "codes")
    assert "a.tar" in str(error.value)


def link(path: Path) -> None:
    whole(path)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("7.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"a.png": image(0), "a.jpg": image(1)}, r"key 'a'.*members a\.png and a\.jpg"),
        ({"a.png": image(0), "a.seg.png": image(1)}, r"key 'a'.*members a\.png and a\.seg\.png"),
        ({"b/a.cls": b"1", "b/a.png": image(0), "c.cls": b"2"}, r"row 1 \(id 'c'\).*no image"),
        ({"a.png": image(0), "a.cls": b"\xff"}, r"member a\.cls.*text in UTF-8"),
        ({"a.png": image(0)[:60]}, r"row 0 \(id 'a'\).*an image that can be decoded"),
    ],
)  # fmt: skip
def test_members_that_do_not_fit_are_named(members, text, plain, tmp_path):
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(JobError, match=text):
        encode(plain[0], path, tmp_path / "codes")


def test_a_member_that_repeats_is_named(plain, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for seed in range(2):
            add(archive, "a.png", image(seed))
    with pytest.raises(JobError, match=r"key 'a'.*members a\.png and a\.png"):
        encode(plain[0], tmp_path / "a.tar", tmp_path / "codes")


def test_a_link_out_of_a_tar_is_refused(plain, tmp_path):
    link(tmp_path / "a.tar")
    with pytest.raises(JobError, match=r"member 7\.png: expected a regular file, found a link"):
        encode(plain[0], tmp_path / "a.tar", tmp_path / "codes")


def test_values_of_json_must_be_there_and_plain(plain, tmp_path):
    about = {"uid": 3.5, "tags": ["a"]}
    path = tar(tmp_path / "a.tar", {"a.png": image(0), "a.json": json.dumps(about).encode()})
    for column, text in [("uid", "text or an integer, found 3.5"), ("tags", "found ..a"),
                         ("no", r"a member \.no, or a value 'no' in \.json")]:  # fmt: skip
        with pytest.raises(JobError, match=text):
            encode(plain[0], path, tmp_path / "codes", COLUMNS.model_copy(update={"id": column}))
    with pytest.raises(InputError, match="a column 'wnid'"):
        encode(plain[0], path, tmp_path / "codes", COLUMNS.model_copy(update={"label": "wnid"}))


def test_tars_and_parquet_in_one_folder_are_refused(plain, images, tmp_path):
    (tmp_path / "tars").mkdir()
    webdataset(tmp_path / "tars", images)
    table = pa.table({"id": ["a"], "image": [image(0)]})
    pq.write_table(table, tmp_path / "tars" / "other.parquet")
    with pytest.raises(InputError, match=r"shards of one layout.*other\.parquet"):
        encode(plain[0], tmp_path / "tars", tmp_path / "codes")


def test_a_file_that_is_no_image_is_left_out_if_allowed(plain, images, tmp_path):
    (tmp_path / "tree").mkdir()
    folder(tmp_path / "tree", images)
    bad = tmp_path / "tree" / CLASSES[0] / "broken.png"
    bad.write_bytes(b"no image")
    with pytest.raises(JobError, match=r"id 'n01440764/broken\.png'"):
        encode(plain[0], tmp_path / "tree", tmp_path / "codes")
    allowed = COLUMNS.model_copy(update={"bad_images": 1})
    version = encode(plain[0], tmp_path / "tree", tmp_path / "codes", allowed)
    assert version.rows == N
    assert version.summary["images_left_out"] == 1


def test_a_shard_holds_at_most_2048_files(tmp_path):
    for number in range(2049):
        (tmp_path / f"{number}.png").touch()
    shards = list_features([str(tmp_path)])
    assert [len(shard.files) for shard in shards if shard.files] != [2049]
    assert sum(len(shard.files) for shard in shards if shard.files) == 2049


def test_sparse_members_are_refused(plain, tmp_path):
    (tmp_path / "a.png").write_bytes(image(0))
    with (tmp_path / "a.png").open("r+b") as file:
        file.truncate(1 << 20)
    subprocess.run(
        ["tar", "--sparse", "-C", str(tmp_path), "-cf", str(tmp_path / "a.tar"), "a.png"],
        check=True,
    )
    with pytest.raises(JobError, match=r"member a\.png: expected a file as it is, found a sparse"):
        encode(plain[0], tmp_path / "a.tar", tmp_path / "codes")


def test_a_batch_of_a_tar_is_bounded(tmp_path):
    data = image(0) + bytes(30 << 20)  # a decoder stops at the end of the image
    tar(tmp_path / "a.tar", {f"{i}.png": data for i in range(5)})
    (shard,) = list_features([str(tmp_path / "a.tar")])
    with open_shard(shard, COLUMNS) as file:
        assert [len(batch) for batch in file.batches(8192, ["id", "image"])] == [2, 2, 1]


def test_labels_that_are_empty_are_none(plain, tmp_path):
    tar(tmp_path / "a.tar", {"a.png": image(0), "a.cls": b"\n", "b.png": image(1), "b.cls": b"x"})
    encode(plain[0], tmp_path / "a.tar", tmp_path / "codes")
    assert {key: label for key, (_, label) in stored(tmp_path / "codes").items()} == {
        "a": None, "b": "x",
    }  # fmt: skip


def test_names_of_a_tar_must_be_utf8(plain, tmp_path):
    with tarfile.open(
        tmp_path / "a.tar", "w", encoding="latin-1", format=tarfile.USTAR_FORMAT
    ) as archive:
        add(archive, "caf\u00e9.png", image(0))
    with pytest.raises(JobError, match="expected a name in UTF-8"):
        encode(plain[0], tmp_path / "a.tar", tmp_path / "codes")
