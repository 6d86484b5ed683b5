"""Labels and other members of WebDataset rows whose names have several dots, and members that
belong to no image."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raypq.config import Columns
from raypq.data.layouts import list_features, open_shard
from raypq.data.storage.walk import IMAGE_SUFFIXES

COLUMNS = Columns(feature="image")


def rows(path: Path, members: Mapping[str, bytes], columns: Columns = COLUMNS) -> dict[str, Any]:
    """The label of each id in a tar file of these members; None where it has no labels."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    [shard] = list_features([str(path)])
    with open_shard(shard, columns) as opened:
        names = ["id", *(["label"] if opened.has("label") else [])]
        batches = [batch.to_pydict() for batch in opened.batches(10, names)]
    found: dict[str, Any] = {}
    for batch in batches:
        found |= dict(zip(batch["id"], batch.get("label", [None] * len(batch["id"])), strict=True))
    return found


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.b.jpg", "a.b.cls"),
        ("photo.v2.webp", "photo.v2.cls"),
        ("photo.v2.webp", "photo.cls"),
        ("photo.png", "photo.v2.cls"),
        ("photo.png", "photo.CLS"),
        ("photo.png", "photo.label"),
        ("photo.v2.webp", "photo.v2.json"),
        ("photo.png", "photo.JSON"),
    ],
)
def test_labels_with_dots_are_found(tmp_path: Path, image: str, label: str) -> None:
    content = b'{"label": "cat"}' if label.lower().endswith("json") else b"cat"
    found = rows(tmp_path / "a.tar", {image: b"x", label: content})
    assert found == {label.partition(".")[0]: "cat"}


def test_labels_are_found_beside_every_image_format(tmp_path: Path) -> None:
    members = {f"{at}.v2{suffix}": b"x" for at, suffix in enumerate(IMAGE_SUFFIXES)}
    members |= {f"{at}.v2.cls": str(at).encode() for at in range(len(IMAGE_SUFFIXES))}
    labels = {str(at): str(at) for at in range(len(IMAGE_SUFFIXES))}
    assert rows(tmp_path / "a.tar", members) == labels


def test_the_label_beside_the_image_is_preferred(tmp_path: Path) -> None:
    members = {"7.v2.jpg": b"x", "7.v1.cls": b"old", "7.v2.cls": b"new"}
    assert rows(tmp_path / "a.tar", members) == {"7": "new"}
    assert rows(tmp_path / "b.tar", members | {"7.cls": b"plain"}) == {"7": "plain"}


def test_several_labels_of_an_image_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {"7.jpg": b"x", "7.coarse.cls": b"animal", "7.fine.cls": b"cat"}
    assert rows(tmp_path / "a.tar", members) == {"7": None}
    [warning] = caplog.messages
    assert "1 key(s) have several members that end with .cls" in warning
    assert "7.coarse.cls and 7.fine.cls" in warning
    assert "--label-column" in warning
    columns = Columns(feature="image", label="fine.cls")
    [shard] = list_features([str(tmp_path / "a.tar")])
    with open_shard(shard, columns) as opened:
        [batch] = opened.batches(10, ["fine.cls"])
    assert batch.to_pydict() == {"fine.cls": ["cat"]}


def test_a_json_of_another_kind_is_no_label(tmp_path: Path) -> None:
    """Only an object can have columns."""
    assert rows(tmp_path / "a.tar", {"7.jpg": b"x", "7.boxes.json": b"[1, 2]"}) == {"7": None}


def test_labels_in_a_json_of_another_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"7.jpg": b"x", "7.meta.json": b'{"label": "cat"}', "7.boxes.json": b"[1, 2]"}
    assert rows(tmp_path / "a.tar", members) == {"7": "cat"}
    own = {"7.json": b'{"label": "own"}'}
    assert rows(tmp_path / "b.tar", members | own) == {"7": "own"}
    assert not caplog.messages
    assert rows(tmp_path / "c.tar", members | {"7.b.json": b'{"label": 1}'}) == {"7": None}
    [warning] = caplog.messages
    assert "7.meta.json and 7.b.json; none of them is read" in warning


def test_names_that_differ_in_case_are_ambiguous(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {"7.jpg": b"x", "7.CLS": b"A", "7.Cls": b"B"}
    assert rows(tmp_path / "a.tar", members) == {"7": None}
    assert "7.CLS and 7.Cls; none of them is read: keep one" in caplog.text
    assert rows(tmp_path / "b.tar", members | {"7.cls": b"c"}) == {"7": "c"}


def test_members_without_an_image_are_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {"a.jpg": b"x", "a.cls": b"1", "b.cls": b"2", "c.v2.cls": b"3", "d/.x.jpg": b"y"}
    members |= {"__MACOSX/._a.jpg": b"z", "._a.jpg": b"z", ".DS_Store": b"z"}
    assert [*rows(tmp_path / "a.tar", members)] == ["a", "b", "c"]
    assert [*rows(tmp_path / "a.tar", members)] == ["a", "b", "c"]
    hidden, alone = caplog.messages
    assert "skipped 1 image(s) whose name starts with a dot, such as d/.x.jpg" in hidden
    assert "2 key(s) without an image, such as 'b' (members b.cls)" in alone
