"""Images are found by id in every layout, and only what holds a wanted id is read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import io_counters
from raypq.config import Columns
from raypq.data import image_lookup
from raypq.data.image_lookup import ImageLookup, StoredImage, Wanted
from raypq.data.layouts import list_features
from raypq.errors import InputError

COLUMNS = Columns(feature="image")
CONTENT = {
    f"{name}{number}": f"{name}{number}".encode() * 50 for name in "abc" for number in range(20)
}


def lookup(root: Path, columns: Columns = COLUMNS) -> ImageLookup:
    return ImageLookup([str(root)], columns)


def read(images: ImageLookup, *wanted: Wanted | str) -> dict[str, StoredImage]:
    wants = [want if isinstance(want, Wanted) else Wanted(want) for want in wanted]
    found = list(images.read(wants))
    assert len(found) == len({*wants}), "every image once"
    return {want.id: image for want, image in found}


def tars(root: Path) -> Callable[[str], str]:
    root.mkdir()
    for name in "abc":
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            for key, data in CONTENT.items():
                for suffix, content in (("jpg", data), ("cls", f"class {name}".encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    if key.startswith(name):
                        archive.addfile(info, io.BytesIO(content))
    return lambda key: str(root / f"{key[0]}.tar")


def parquet(root: Path) -> Callable[[str], str]:
    root.mkdir()
    for name in "abc":
        rows = {key: data for key, data in CONTENT.items() if key.startswith(name)}
        columns = {"id": [*rows], "image": [*rows.values()], "label": [f"class {name}"] * len(rows)}
        pq.write_table(pa.table(columns), root / f"{name}.parquet", row_group_size=7)
    return lambda key: str(root / f"{key[0]}.parquet")


def folder(root: Path) -> Callable[[str], str]:
    for key, data in CONTENT.items():
        path = root / f"class {key[0]}" / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return lambda key: ""


@pytest.mark.parametrize("write", [tars, parquet])
def test_only_shards_that_hold_an_id_are_opened(write, tmp_path):
    shard_of = write(tmp_path / "images")
    Path(shard_of("b1")).write_bytes(b"cannot be read")
    images = lookup(tmp_path / "images")
    before = io_counters.read()
    found = read(images, *(Wanted(key, shard_of(key)) for key in ("a3", "a19", "c0")))
    assert {key: image.data for key, image in found.items()} == {
        key: CONTENT[key] for key in ("a3", "a19", "c0")
    }
    assert {image.label for image in found.values()} == {"class a", "class c"}
    assert (images.opened, images.shards, images.failures) == (2, 3, [])
    assert io_counters.read().since(before).images == 3


@pytest.mark.parametrize("write", [tars, parquet])
def test_ids_of_no_known_shard_are_looked_for(write, tmp_path):
    shard_of = write(tmp_path / "images")
    found = read(images := lookup(tmp_path / "images"), "a3", "b4", "zebra")
    assert (found["a3"].data, found["b4"].data) == (CONTENT["a3"], CONTENT["b4"])
    assert found["zebra"].missing
    assert found["zebra"].problem == "not among these images (looked in 3 of 3 shards)"
    assert images.example == "a0"
    # A shard of the same name as that of the features comes first, and the search ends with it.
    same_name = f"/elsewhere/{Path(shard_of('c1')).stem}.npy"
    assert read(images := lookup(tmp_path / "images"), Wanted("c1", same_name))["c1"].data
    assert images.opened == 1


def test_so_many_shards_are_opened_at_most(tmp_path, monkeypatch):
    parquet(tmp_path / "images")
    monkeypatch.setattr(image_lookup, "MOST_SHARDS", 2)
    found = read(images := lookup(tmp_path / "images"), "a1", "c1")
    assert found["a1"].data
    assert found["c1"].problem == "not among these images (looked in 2 of 3 shards)"
    assert images.opened == 2
    shard_of = {key: str(tmp_path / "images" / f"{key[0]}.parquet") for key in CONTENT}
    known = [Wanted(key, shard_of[key]) for key in ("a1", "b1", "c1", "c2")]
    found = read(lookup(tmp_path / "images"), *known)
    assert found["c1"].data
    assert found["b1"].problem == "not looked for: at most 2 shards of images are opened"


def test_files_of_a_folder_are_opened_without_a_listing(tmp_path, monkeypatch):
    folder(tmp_path / "images")
    monkeypatch.setattr(image_lookup, "list_features", None)
    found = read(lookup(tmp_path / "images"), "class a/a1.jpg", "class b/none.jpg", "class a/..")
    assert found["class a/a1.jpg"] == StoredImage(data=CONTENT["a1"], label="class a")
    assert found["class b/none.jpg"].missing
    assert "no such file below" in found["class b/none.jpg"].problem


def test_files_that_a_glob_names_are_found_by_the_listing(tmp_path):
    folder(tmp_path / "images")
    images = ImageLookup([str(tmp_path / "images" / "class [ab]")], COLUMNS)
    found = read(images, "class a/a1.jpg", "class c/c1.jpg")
    assert found["class a/a1.jpg"].data == CONTENT["a1"]
    assert found["class c/c1.jpg"].missing, "not what the glob names"
    assert images.example.startswith("class ")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/x.jpg", "a/../../secret.jpg", "a\0.jpg", ""]
)
def test_an_id_leads_to_no_file_outside(name, tmp_path):
    folder(tmp_path / "images")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    assert read(lookup(tmp_path / "images"), name)[name].data is None


def test_a_path_in_two_folders_is_not_one_image(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(name.encode())
    images = ImageLookup([str(tmp_path / "one"), str(tmp_path / "two")], COLUMNS)
    origin = str(tmp_path / "two" / "0_0.imagefolder")
    found = dict(images.read([Wanted("x.jpg"), Wanted("x.jpg", origin)]))
    assert "two files of this path" in found[Wanted("x.jpg")].problem
    assert found[Wanted("x.jpg", origin)].data == b"two"


def test_fragments_of_lance_are_shards(tmp_path):
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    table = pa.table({"id": [*CONTENT], "image": [*CONTENT.values()]})
    lance.write_dataset(table, tmp_path / "x.lance", max_rows_per_file=20)
    found = read(images := lookup(tmp_path / "x.lance"), "b7", "c19")
    assert {name: image.data for name, image in found.items()} == {
        name: CONTENT[name] for name in ("b7", "c19")
    }
    assert images.shards == 3


def test_images_of_a_bucket(bucket, tmp_path):
    for write in (folder, tars):
        write(tmp_path / write.__name__)
        fsspec.filesystem("s3").put(str(tmp_path / write.__name__), f"{bucket}/", recursive=True)
    images = ImageLookup([f"{bucket}/folder"], COLUMNS)
    found = read(images, "class a/a1.jpg", "class b/b2.jpg", "class b/none.jpg")
    assert found["class a/a1.jpg"].data == CONTENT["a1"]
    assert found["class b/none.jpg"].missing
    assert images.shards == 0, "nothing was listed"
    images = ImageLookup([f"{bucket}/tars"], COLUMNS)
    assert read(images, Wanted("b2", f"{bucket}/tars/b.tar"))["b2"].data == CONTENT["b2"]
    assert images.opened == 1


def rows(root: Path, columns: Mapping[str, object]) -> Path:
    root.mkdir()
    pq.write_table(pa.table(columns), root / "part.parquet")
    return root


def test_an_id_of_two_rows_is_named_with_them(tmp_path):
    root = rows(tmp_path / "i", {"id": ["x", "y", "x"], "image": [b"1", b"2", b"3"]})
    found = read(lookup(root), "x", "y")
    assert found["y"].data == b"2"
    assert found["x"].problem.endswith("part.parquet: 0, 2")


def test_ids_may_be_integers_and_images_structs(tmp_path):
    column = [{"bytes": b"1", "path": "p"}, {"bytes": None, "path": "q"}]
    found = read(lookup(rows(tmp_path / "i", {"id": [7, 8], "image": column})), "7", "8")
    assert found["7"].data == b"1"
    assert found["8"].problem == "no image in its row"


def test_made_ids_name_their_shard(tmp_path):
    for name in "ab":
        rows(tmp_path / name, {"image": [name.encode(), b"other"]})
    a, b = (list_features([str(tmp_path / name)])[0].stem for name in "ab")
    images = ImageLookup([str(tmp_path / "a"), str(tmp_path / "b")], COLUMNS)
    assert read(images, f"{b}:0")[f"{b}:0"].data == b"b"
    assert images.opened == 1
    assert read(images, f"{a}:9")[f"{a}:9"].missing


def test_a_column_that_is_missing_is_a_failure_of_its_shard(tmp_path):
    root = rows(tmp_path / "i", {"id": ["x"], "picture": [b"1"]})
    images = lookup(root)
    assert "a column 'image'" in read(images, Wanted("x", str(root / "part.parquet")))["x"].problem
    assert len(images.failures) == 1
    root = rows(tmp_path / "v", {"id": ["x"], "image": [[1.0, 2.0]]})
    assert (
        "--feature-column"
        in read(lookup(root), Wanted("x", str(root / "part.parquet")))["x"].problem
    )


def test_places_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        read(lookup(tmp_path / "nowhere"), "x")
