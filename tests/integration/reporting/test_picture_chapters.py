"""Pictures in the report: every layout of images shows the right ones, and the page stays safe."""

from __future__ import annotations

import base64
import io
import re
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from raypq import api
from raypq.cli import main
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    Columns,
    DeduplicateJob,
    DuplicatesJob,
    EncodeJob,
    ImageColumns,
    SearchJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.errors import ConfigError, InputError

SIDE, N = 8, 90
CLASSES = ("cat", "dog", "<script>alert('c')</script>")
WHERE = ClusterSettings(cluster="none", workers=1)
COLUMNS = Columns(feature="image", image_size=SIDE)
Images = Mapping[str, tuple[bytes, str]]  # by key: encoded image, class


def colour(number: int) -> tuple[int, int, int]:
    """The colour of an image, by which its thumbnail is known."""
    return (number * 2 + 20, 60 * (number % 3) + 40, 255 - number * 2)


def encoded(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(-8, 9, (3 * SIDE, 2 * SIDE, 3))
    out = io.BytesIO()
    Image.fromarray((np.array(colour(number)) + noise).clip(0, 255).astype(np.uint8)).save(
        out, "PNG"
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def images() -> Images:
    return {f"{number:03d}": (encoded(number), CLASSES[number % 3]) for number in range(N)}


def folder(root: Path, images: Images) -> Columns:
    for key, (data, name) in images.items():
        path = root / f"class {CLASSES.index(name)}" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return COLUMNS


def webdataset(root: Path, images: Images) -> Columns:
    for part, keys in enumerate(np.array_split(list(images), 3)):
        with tarfile.open(root / f"{part:05d}.tar", "w") as archive:
            for key in keys:
                data, name = images[key]
                for suffix, content in (("png", data), ("cls", name.encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return COLUMNS


def tables(root: Path, images: Images, *, ids: bool = True, struct: bool = False) -> Columns:
    for part, keys in enumerate(np.array_split(list(images), 3)):
        data, labels = zip(*(images[key] for key in keys), strict=True)
        columns: dict[str, Any] = {"key": keys.tolist()} if ids else {}
        columns["picture"] = [{"bytes": one, "path": "p"} for one in data] if struct else list(data)
        table = pa.table(columns | {"label": list(labels)})
        pq.write_table(table, root / f"{part:05d}.parquet", row_group_size=7)
    return COLUMNS.model_copy(update={"feature": "picture", "id": "key" if ids else "id"})


def structs(root: Path, images: Images) -> Columns:
    return tables(root, images, struct=True)


def without_ids(root: Path, images: Images) -> Columns:
    return tables(root, images, ids=False)


@dataclass
class Shown(HTMLParser):
    """The pictures of a page: ``(marks, id, note, data or None, reason)`` in order."""

    text: str
    chapters: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._chapter, self._about, self._item = "", "", dict[str, Any]()
        self.feed(self.text)

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "section":
            self._chapter = values["id"] or ""
        elif tag == "li":
            self._item = {"mark": values.get("class") or "", "about": "", "absent": ""}
            self.chapters.setdefault(self._chapter, []).append(self._item)
        elif tag == "img":
            kind, data = (values["src"] or "").split(",")
            assert kind == "data:image/jpeg;base64"
            self._item |= {"jpeg": base64.b64decode(data), "alt": values["alt"]}
        elif tag == "span":
            self._about = (values.get("class") or self._about).split(" ")[0]
            if values.get("title") is not None:
                self._item["id"] = values["title"]

    def handle_data(self, data: str) -> None:
        if self._about and self._item:
            self._item[self._about] = self._item[self._about] + data.strip()

    def handle_endtag(self, tag: str) -> None:
        if tag == "li":
            self._item = {}


def jobs(root: Path, columns: Columns) -> None:
    """Codes of images, predictions, a search, near-duplicates and their groups."""
    rng = np.random.default_rng(1)
    folders = (root / "images" / "class 0").exists()
    table = pa.table(
        {"class_id": ["class 0", "class 1", "class 2"] if folders else CLASSES,
         "name": ["feline", "canine", "<b>other</b>"],
         "embedding": arrays.fixed_list(rng.standard_normal((3, 4)).astype(np.float32))}
    )  # fmt: skip
    pq.write_table(table, root / "classes.parquet")
    source = {"features": [str(root / "images")], "columns": columns, "where": WHERE}
    model, codes, classes = (str(root / name) for name in ("model", "codes", "classes.parquet"))
    settings = {"M": 3, "K": 16, "iterations": 2}
    api.train(TrainJob(method="pqzsl", classes=classes, output=model, settings=settings, **source))
    api.encode(EncodeJob(model=model, output=codes, **source))
    api.classify(
        ClassifyJob(codes=codes, classes=classes, output=str(root / "predictions"), where=WHERE)
    )
    queries = {"queries": source["features"], "columns": columns, "where": WHERE}
    api.search(SearchJob(codes=codes, output=str(root / "search"), top_k=5, **queries))
    job = DuplicatesJob(codes=codes, threshold=0.98, metric="cosine", output=str(root / "pairs"),
                        where=WHERE)  # fmt: skip
    api.duplicates(job)
    job = DeduplicateJob(codes=codes, threshold=0.98, metric="cosine", output=str(root / "groups"),
                         where=WHERE)  # fmt: skip
    api.deduplicate(job)


STORES = ("predictions", "search", "pairs", "groups")
CHAPTERS = ["examples", "queries", "duplicates", "groups"]


def report(
    root: Path, columns: Columns | ImageColumns, stores: Sequence[str] = STORES, **more: Any
) -> str:
    own = ImageColumns(id=columns.id, feature=columns.feature, label=columns.label)
    more = {"images": str(root / "images"), "columns": own} | more
    api.report([str(root / name) for name in stores], str(root / "page.html"), **more)
    return (root / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder of images in a layout, with the stores made of them; made once for each layout."""
    made: dict[str, Path] = {}

    def place(write: Callable[[Path, Images], Columns]) -> Path:
        if write.__name__ not in made:
            root = tmp_path_factory.mktemp(write.__name__)
            (root / "images").mkdir()
            jobs(root, write(root / "images", images))
            made[write.__name__] = root
        return made[write.__name__]

    return place


def number_of(write: Callable[..., Columns], name: str) -> int:
    """The number of the image of an id."""
    if write is not without_ids:
        return int(Path(name).stem)
    part, row = re.search(r"(\d{5})-[0-9a-f]+:(\d+)$", name).groups()  # type: ignore[union-attr]
    return 30 * int(part) + int(row)


LAYOUTS = [folder, webdataset, tables, structs, without_ids]


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_every_layout_shows_the_images_of_the_ids(write, place, images, tmp_path):
    root = place(write)
    columns = write(tmp_path, images)
    text = report(root, columns)
    shown = Shown(text).chapters
    assert [name for name in CHAPTERS if shown.get(name)] == CHAPTERS
    assert "pictures are not shown" not in text
    for item in (one for name in CHAPTERS for one in shown[name]):
        with Image.open(io.BytesIO(item["jpeg"])) as picture:
            assert picture.size == (2 * SIDE, 3 * SIDE)
            mean = np.asarray(picture.convert("RGB"), float).mean((0, 1))
        assert np.abs(mean - colour(number_of(write, item["id"]))).max() < 8, item["id"]
        assert item["id"] in item["alt"]
    marks = {item["mark"] for item in shown["examples"]}
    assert marks <= {"right", "wrong"}
    queries = [item for item in shown["queries"] if item["mark"] == "query"]
    assert len(queries) == 8
    for query, first in zip(shown["queries"][::6], shown["queries"][1::6], strict=True):
        assert query["mark"] == "query"
        assert first["mark"] in ("right", "wrong"), "images have labels"
    assert report(root, columns).split("</header>")[1] == text.split("</header>")[1], (
        "the same page"
    )


def test_right_and_wrong_are_those_of_the_predictions(place, images):
    root = place(webdataset)
    found = {}
    for path in (root / "predictions" / "data").glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            found[row["id"]] = (row["class_id"][0], row["score"][0], row["label"])
    text = report(root, COLUMNS, classes=str(root / "classes.parquet"))
    shown = Shown(text).chapters["examples"]
    assert len(shown) >= 12
    for item in shown:
        class_id, score, label = found[item["id"]]
        assert item["mark"] == ("right" if class_id == label else "wrong")
        assert f"{score:.3g}" in item["about"]
    assert "Examples from 3 of 3 shards." in text
    assert "feline (cat)" in text
    assert "&lt;b&gt;other&lt;/b&gt;" in text
    assert "<script" not in text
    assert "<b>other" not in text


def test_only_shards_of_the_examples_are_read(images, tmp_path):
    """Of thirty shards, those of sixteen evenly spaced ones."""
    (tmp_path / "images").mkdir()
    shard_of = {}
    for number, keys in enumerate(np.array_split(list(images), 10)):
        (tmp_path / str(number)).mkdir()
        webdataset(tmp_path / str(number), {key: images[key] for key in keys})
        for part, piece in enumerate(sorted((tmp_path / str(number)).iterdir())):
            path = piece.rename(tmp_path / "images" / f"{number}-{part}.tar")
            shard_of |= dict.fromkeys(np.array_split(keys, 3)[part].tolist(), path)
    jobs(tmp_path, COLUMNS)
    text = report(tmp_path, COLUMNS, ["predictions"])
    assert "Examples from 16 of 30 shards." in text
    shown = {shard_of[item["id"]] for item in Shown(text).chapters["examples"]}
    assert 5 <= len(shown) <= 16
    for path in {*shard_of.values()} - shown:
        path.write_bytes(b"not to be read")
    again = report(tmp_path, COLUMNS, ["predictions"])
    assert again.split("</header>")[1] == text.split("</header>")[1]


@pytest.mark.parametrize("write", [folder, tables], ids=lambda write: write.__name__)
def test_what_is_gone_or_damaged_is_said_in_its_place(write, images, tmp_path):
    (tmp_path / "images").mkdir()
    columns = write(tmp_path / "images", images)
    jobs(tmp_path, columns)
    if write is folder:
        (tmp_path / "images" / "class 0" / "000.png").unlink()
        for path in (tmp_path / "images" / "class 1").iterdir():
            path.write_bytes(path.read_bytes()[:70])
    else:
        (tmp_path / "images" / "00001.parquet").write_bytes(b"PAR1 damaged")
        (tmp_path / "images" / "00002.parquet").unlink()
    text = report(tmp_path, columns)
    shown = [item for items in Shown(text).chapters.values() for item in items if "id" in item]
    reasons = " ".join(item["absent"] for item in shown)
    assert sum("jpeg" in item for item in shown) > 5
    assert "pictures are not shown" in text
    if write is folder:
        assert "cannot be decoded: " in reasons
    else:
        assert "00001.parquet: expected a complete Parquet file" in reasons
        assert "not among these images" in reasons


def test_predictions_without_labels(images, tmp_path):
    (tmp_path / "images").mkdir()
    columns = webdataset(tmp_path / "images", images)
    jobs(tmp_path, columns)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    for key, (data, _) in images.items():
        (tmp_path / "images" / f"{key}.png").write_bytes(data)
    source = {"features": [str(tmp_path / "images")], "columns": COLUMNS, "where": WHERE}
    codes, classes = str(tmp_path / "plain"), str(tmp_path / "classes.parquet")
    api.encode(EncodeJob(model=str(tmp_path / "model"), output=codes, **source))
    output = str(tmp_path / "unlabelled")
    api.classify(ClassifyJob(codes=codes, classes=classes, output=output, where=WHERE))
    text = report(tmp_path, COLUMNS, ["unlabelled"])
    assert "There are no labels" in text
    assert {item["mark"] for item in Shown(text).chapters["examples"]} == {""}


def test_queries_by_id_are_found_in_the_searched_store(place, tmp_path):
    root = place(webdataset)
    (tmp_path / "ids.txt").write_text("007\n055\n")
    job = SearchJob(codes=str(root / "codes"), query_ids=str(tmp_path / "ids.txt"), distance="sdc",
                    top_k=12, output=str(root / "by-id"), where=WHERE)  # fmt: skip
    api.search(job)
    shown = Shown(report(root, COLUMNS, ["by-id"])).chapters["queries"]
    assert [item["id"] for item in shown if item["mark"] == "query"] == ["007", "055"]
    assert len(shown) == 2 * 9
    assert all("jpeg" in item for item in shown)


def rows_of_groups(root: Path) -> dict[str, dict[str, Any]]:
    """The rows of the stored groups by id."""
    (path,) = (root / "groups" / "data").glob("*.parquet")
    return {row["id"]: row for row in pq.read_table(path).to_pylist()}


def test_groups_begin_with_the_image_that_is_kept(place):
    root = place(webdataset)
    rows = rows_of_groups(root)
    shown = Shown(report(root, COLUMNS, ["groups"])).chapters["groups"]
    kept = [number for number, item in enumerate(shown) if item["mark"] == "kept"]
    assert kept[0] == 0
    assert len(kept) == min(12, sum(row["kept"] for row in rows.values()))
    for first, end in zip(kept, [*kept[1:], len(shown)], strict=True):
        head, *others = shown[first:end]
        row = rows[head["id"]]
        assert row["kept"]
        assert head["about"] == f"kept{head['id']}"
        assert len(others) == min(row["size"], 8) - 1
        scores = [rows[item["id"]]["score"] for item in others]
        assert scores == sorted(scores), "the farthest first"
        notes = [item["about"].removesuffix(item["id"]) for item in others]
        assert notes == [f"{score:.3g}" for score in scores]
        assert {rows[item["id"]]["group_id"] for item in others} == {row["group_id"]}
        assert all("jpeg" in item for item in shown[first:end])
    assert len({rows[shown[number]["id"]]["group_id"] for number in kept}) == len(kept)


def test_groups_without_images_are_ids(place, tmp_path):
    root = place(webdataset)
    with_images = Shown(report(root, COLUMNS, ["groups"])).chapters["groups"]
    moved = tmp_path / "elsewhere"
    shutil.copytree(root / "groups", moved / "groups")  # the codes that it names are not read
    for path in (moved / "groups" / "snapshots").iterdir():
        path.write_text(path.read_text().replace(str(root / "codes"), str(tmp_path / "absent")))
    text = report(moved, ImageColumns(), ["groups"], images=())
    shown = Shown(text).chapters["groups"]
    parts = [[(item["mark"], item["id"], item["about"]) for item in items]
             for items in (shown, with_images)]  # fmt: skip
    assert parts[0] == parts[1]
    assert all("jpeg" not in item and not item["absent"] for item in shown)
    assert "With --images, the page shows the images of these ids." in text
    assert "<h3>Groups by version</h3>" in text
    assert "With --images" not in report(root, COLUMNS, ["groups"])


def test_missing_and_damaged_groups(place, images, tmp_path):
    root = place(webdataset)
    shutil.copytree(root / "groups", tmp_path / "groups")
    (tmp_path / "images").mkdir()
    webdataset(tmp_path / "images", {key: images[key] for key in [*images][:30]})
    text = report(tmp_path, COLUMNS, ["groups"])
    shown = Shown(text).chapters["groups"]
    assert {"jpeg" in item for item in shown} == {True, False}
    assert "pictures are not shown" in text
    (path,) = (tmp_path / "groups" / "data").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    for more in ({}, {"images": ()}):
        text = report(tmp_path, ImageColumns(), ["groups"], **more)
        assert "Not shown: " in text
        assert "run raypq deduplicate again" in text


def test_images_of_other_ids_are_an_error(place, images, tmp_path):
    root = place(folder)
    (tmp_path / "other").mkdir()
    webdataset(tmp_path / "other", images)
    with pytest.raises(InputError, match=r"class \d/\d+\.png'.*none of \d+ ids.*such as '000'"):
        report(root, COLUMNS, images=str(tmp_path / "other"))
    with pytest.raises(InputError, match="a column 'nothing'"):
        report(place(tables), COLUMNS.model_copy(update={"id": "key", "feature": "nothing"}))
    with pytest.raises(InputError, match="expected a store of predictions"):
        report(root, COLUMNS, ["model"])
    with pytest.raises(InputError, match="nowhere"):
        report(root, COLUMNS, images=str(tmp_path / "nowhere"))


def test_settings_of_pictures_need_images(place, tmp_path):
    root = place(folder)
    with pytest.raises(ConfigError, match="classes: is for pictures"):
        report(root, Columns(feature="image"), images=(), classes=str(root / "classes.parquet"))
    words = ["report", str(root / "predictions"), "--feature-column", "x", "--output", "o.html"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "is for pictures (--images, images)" in done.output
    words = ["report", str(root / "predictions"), "--images", str(root / "images"),
             "--output", str(root / "images" / "class 0" / "000.png")]  # fmt: skip
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2, done.output
    assert "000.png" in done.output
    with Image.open(words[-1]) as picture:
        assert picture.size == (2 * SIDE, 3 * SIDE), "not written over"


def test_cifar10(data_root: Path, tmp_path: Path) -> None:
    """Real images: features of another tool, images in Parquet."""
    cifar = data_root / "cifar10"
    if not cifar.is_dir():
        pytest.skip(f"no CIFAR-10 at {cifar}")
    features, classes = [str(cifar / "features" / "test")], str(cifar / "classes.parquet")
    model, codes = str(tmp_path / "model"), str(tmp_path / "codes")
    settings = {"M": 8, "iterations": 2, "polish": 1}
    api.train(
        TrainJob(method="pqzsl", features=features, classes=classes, output=model,
                 settings=settings, where=WHERE)
    )  # fmt: skip
    api.encode(EncodeJob(model=model, features=features, output=codes, where=WHERE))
    api.classify(
        ClassifyJob(codes=codes, classes=classes, output=str(tmp_path / "predictions"), where=WHERE)
    )
    queries = [str(cifar / "features" / "test" / "part-00000.parquet")]
    api.search(
        SearchJob(
            codes=codes, queries=queries, top_k=9, output=str(tmp_path / "search"), where=WHERE
        )
    )
    api.deduplicate(
        DeduplicateJob(codes=codes, threshold=0.995, output=str(tmp_path / "groups"), where=WHERE)
    )
    more = {"images": str(cifar / "images" / "test"), "classes": classes}
    text = report(tmp_path, Columns(feature="image"), ["predictions", "search", "groups"], **more)
    shown = Shown(text).chapters
    assert "pictures are not shown" not in text
    assert len(shown["examples"]) > 40
    right = [item["mark"] for item in shown["queries"]]
    assert right.count("right") > right.count("wrong")
    assert [item["mark"] for item in shown["groups"]].count("kept") == 12
    assert all("jpeg" in item for item in shown["groups"])
    assert len(text) < 2 << 20
