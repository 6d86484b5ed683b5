"""Which pictures a page shows, and within how many bytes."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raypq.data.image_lookup import StoredImage, Wanted
from raypq.errors import InputError
from raypq.reporting import pair_pictures, pictures, prediction_pictures
from raypq.reporting.pair_pictures import Group
from raypq.reporting.pictures import Gallery, Picture, Row
from raypq.reporting.prediction_pictures import Prediction
from raypq.reporting.samples import Context, evenly


def noise(seed: int, side: int = 300) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Lookup:
    """Images by id, without a storage."""

    places, example, opened, shards = "images", "seven", 1, 2

    def __init__(self, images: dict[str, StoredImage]) -> None:
        self.images, self.failures = images, list[InputError]()

    def read(self, wanted):
        missing = StoredImage(missing=True, problem="not there")
        return ((want, self.images.get(want.id, missing)) for want in dict.fromkeys(wanted))


def gallery(*rows: list[str], has_query: bool = False) -> Gallery:
    return Gallery(
        title="a", note="",
        rows=[Row(title="r", pictures=[Picture(want=Wanted(name)) for name in names],
                  has_query=has_query) for names in rows],
    )  # fmt: skip


def test_the_limit_of_bytes_holds_and_first_pictures_come_first(monkeypatch):
    images = {str(number): StoredImage(data=noise(number)) for number in range(24)}
    names = list(images)
    one = pictures.fill({"a": [gallery(names[:1])]}, Lookup(images))["a"][0]
    size = len(one.rows[0].pictures[0].thumbnail.uri)
    monkeypatch.setattr(pictures, "MOST_BYTES", 9 * size)
    chapters = {"a": [gallery(names[:8], names[8:16])], "b": [gallery(names[16:18])]}
    filled = pictures.fill(chapters, Lookup(images))
    shown = {
        name: [len(item.thumbnail.uri) for item in pictures.pictures_of(chapter)]
        for name, chapter in filled.items()
    }
    assert sum(shown["a"]) + sum(shown["b"]) <= 9 * size
    assert all(shown["b"]), "a chapter has its share, whatever the others need"
    assert [bool(length) for length in shown["a"][:8]] == [True] * 2 + [False] * 6
    assert [bool(length) for length in shown["a"][8:]] == [True] * 2 + [False] * 6
    assert "pictures are not shown: 12 beyond the" in pictures.not_shown(
        pictures.pictures_of(filled["a"])
    )
    assert pictures.not_shown(pictures.pictures_of(filled["b"])) == ""


def test_what_cannot_be_shown_says_why():
    images = {"a": StoredImage(data=noise(1)), "b": StoredImage(data=b"no image"),
              "d": StoredImage(problem="twice")}  # fmt: skip
    (filled,) = pictures.fill({"a": [gallery(["a", "b", "c", "d"])]}, Lookup(images))["a"]
    a, b, c, d = (picture.thumbnail for picture in filled.rows[0].pictures)
    assert (a.width, a.height) == (pictures.LONGEST, pictures.LONGEST)
    assert a.uri.startswith("data:image/jpeg;base64,")
    assert b.problem.startswith("cannot be decoded: ValueError: cannot identify the format")
    assert (c.problem, d.problem) == ("not there", "twice")
    note = "3 of 4 pictures are not shown: 1 not decodable, 1 not found, 1 not readable."
    assert pictures.not_shown(filled.rows[0].pictures) == note


def test_images_of_no_id_are_an_error_with_both_sides():
    with pytest.raises(InputError, match=r"'a' .*none of 1 ids.*'seven'.*--id-column"):
        pictures.fill({"a": [gallery(["a"])]}, Lookup({}))
    failing = Lookup({})
    failing.failures.append(InputError("x", expected="a column 'image'", found="id"))
    with pytest.raises(InputError, match="a column 'image'"):
        pictures.fill({"a": [gallery(["a"])]}, failing)
    assert pictures.fill({"a": []}, Lookup({})) == {"a": []}


def test_results_of_a_querys_label_are_right():
    labels = {"q": "cat", "a": "cat", "b": "dog", "c": None}
    images = {name: StoredImage(data=noise(1), label=label) for name, label in labels.items()}
    (filled,) = pictures.fill({"a": [gallery([*labels], has_query=True)]}, Lookup(images))["a"]
    assert [picture.mark for picture in filled.rows[0].pictures] == ["", "right", "wrong", ""]


CONTEXT = Context(names={"c1": "cat"}, origins=None, short={})  # type: ignore[arg-type]


def predictions(label: str | None, *classes: str) -> list[Prediction]:
    return [
        Prediction(f"{label}-{number}", "", name, number / 10, label)
        for number, name in enumerate(classes)
    ]


def test_classes_that_are_most_often_wrong_come_first():
    found = [
        *predictions("c1", *["c2"] * 5, *["c1"] * 5),
        *predictions("c2", "c1", "c2"),
        *predictions("c3", "c3", "c3"),
    ]
    note, rows = prediction_pictures.by_label(found, CONTEXT)
    assert [row.title for row in rows] == [
        "cat (c1): 5 of 10 right (most often wrong)", "c2: 1 of 2 right (most often wrong)",
        "c3: 2 of 2 right (best)",
    ]  # fmt: skip
    assert note.startswith("3 of 3 classes")
    first = rows[0].pictures
    assert [picture.want.id for picture in first[:2]] == ["c1-9", "c1-8"], "highest scores"
    assert [picture.mark for picture in first] == ["right"] * 4 + ["wrong"] * 4
    assert first[4].note == "as c2, 0.4"


def test_the_number_of_classes_is_bounded():
    found = [
        item
        for number in range(40)
        for item in predictions(f"{number:02d}", *[f"{number:02d}"] * number, "wrong")
    ]
    note, rows = prediction_pictures.by_label(found, CONTEXT)
    assert len(rows) == 12
    assert note.startswith("12 of 40 classes")
    assert rows[-1].title == "39: 39 of 40 right (best)"


def test_without_labels_the_most_and_the_least_certain_are_shown():
    found = predictions(None, *["c1"] * 20, "c2")
    note, rows = prediction_pictures.by_class(found, CONTEXT)
    assert note.startswith("There are no labels: 2 of 2 predicted classes")
    assert rows[0].title == "cat (c1): predicted for 20 images"
    ids = [picture.want.id for picture in rows[0].pictures]
    assert ids == [f"None-{number}" for number in (19, 18, 17, 16, 3, 2, 1, 0)]


def test_pairs_make_groups():
    table = pa.table({"id_a": ["a", "b", "x"], "id_b": ["b", "c", "y"], "score": [0.2, 0.1, 0.3]})
    groups = pair_pictures.connected(table, -1)
    assert groups == [
        Group(scores={"b": 0.1, "c": 0.1, "a": 0.2}, best=0.1, last=0.2),
        Group(scores={"x": 0.3, "y": 0.3}, best=0.3, last=0.3),
    ]
    assert [why for why, _ in pair_pictures.choose(groups, -1)] == ["one of the largest"] * 2


def test_groups_are_chosen_by_size_by_score_and_at_the_threshold():
    groups = [
        Group(scores={str(one): 0.5 for one in range(size)}, best=best, last=best)
        for size, best in [(2, number / 100) for number in range(50)] + [(9, 0.25)]
    ]
    chosen = pair_pictures.choose(groups, -1)
    assert len(chosen) == 12
    assert chosen[0] == ("one of the largest", groups[-1])
    assert [group.best for why, group in chosen if why == "nearest to the threshold"] == [
        0.49, 0.48, 0.47, 0.46,
    ]  # fmt: skip
    with_score = dict(pair_pictures.choose(groups, 1))
    assert with_score["nearest pairs"].best > 0.4, "a score is nearer where it is larger"


def test_samples_are_evenly_spaced():
    assert evenly(range(100), 4) == [12, 37, 62, 87]
    assert evenly(range(3), 8) == [0, 1, 2]
    assert evenly([], 8) == []
