"""Pictures on the page: what is shown in which order, and thumbnails within a limit of bytes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raypq.data import images
from raypq.data.image_lookup import ImageLookup, StoredImage, Wanted
from raypq.data.storage import StorageSettings
from raypq.errors import InputError

LONGEST = 128  # pixels of a thumbnail's longer side
MOST_BYTES = 4 << 20  # of all pictures of a page, as text in it
_QUALITY = 80  # of JPEG
Mark = Literal["", "right", "wrong", "query", "kept"]


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An image on the page: a ``data:`` URI and its size in pixels; or why there is none; empty
    where only its id is shown.

    Attributes:
        kind: of the problem, to count it. label: of the image, if it has one.
    """

    uri: str = ""
    width: int = 0
    height: int = 0
    label: str | None = None
    problem: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image to show, with a line about it."""

    want: Wanted
    mark: Mark = ""
    note: str = ""
    thumbnail: Thumbnail = Thumbnail()

    @property
    def alt(self) -> str:
        """The text that stands for the image: its id, and what is said of it."""
        return ", ".join(filter(None, [f"image {self.want.id}", self.mark, self.note]))


@dataclass(frozen=True, kw_only=True)
class Row:
    """Pictures side by side.

    Attributes:
        has_query: the first picture is a query. Others are marked right or wrong by its label.
    """

    title: str
    pictures: Sequence[Picture]
    has_query: bool = False


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Rows of pictures of one store, and what they are a sample of."""

    title: str
    note: str
    rows: Sequence[Row] = ()


Galleries = Mapping[str, Sequence[Gallery]]  # by chapter


def fill(galleries: Galleries, lookup: ImageLookup) -> dict[str, list[Gallery]]:
    """The galleries with thumbnails; chapters get equal shares of the bytes, and pass on what they
    do not need.

    Raises:
        InputError: the images hold none of the ids.
    """
    wanted = [
        picture.want
        for chapter in galleries.values()
        for gallery in chapter
        for row in gallery.rows
        for picture in row.pictures
    ]
    thumbnails = _read(wanted, lookup)
    left, filled = MOST_BYTES, dict[str, list[Gallery]]()
    for number, (name, chapter) in enumerate(galleries.items()):
        room = left // (len(galleries) - number)
        filled[name], used = _within(chapter, thumbnails, room)
        left -= used
    return filled


def _read(wanted: Sequence[Wanted], lookup: ImageLookup) -> dict[Wanted, Thumbnail]:
    thumbnails = {want: _thumbnail(image) for want, image in lookup.read(wanted)}
    kinds = {item.kind for item in thumbnails.values()}
    if lookup.failures and kinds <= {_MISSING, _UNREADABLE}:
        raise lookup.failures[0]
    if kinds == {_MISSING}:
        raise InputError(
            lookup.places,
            expected=f"images of ids of the stores, such as {wanted[0].id!r} (--images, images)",
            found=f"none of {len(thumbnails)} ids that were looked for{_ids_of(lookup)}; ids are "
            "paths below the folder that is named, keys in a tar file, the column of ids "
            "(--id-column, columns.id) in Parquet, or made of shard and row where it lacks one",
        )
    return thumbnails


_MISSING, _UNDECODABLE, _UNREADABLE = "not found", "not decodable", "not readable"
_NO_ROOM = f"beyond the {MOST_BYTES >> 20} MB that pictures of a page may have"


def _ids_of(lookup: ImageLookup) -> str:
    opened = f" in {lookup.opened} of {lookup.shards} shards" if lookup.shards else ""
    return f"{opened}, where ids are such as {lookup.example!r}" if lookup.example else opened


def _thumbnail(image: StoredImage) -> Thumbnail:
    """The thumbnail of an encoded image: a JPEG without the metadata of the original."""
    if image.data is None:
        kind = _MISSING if image.missing else _UNREADABLE
        return Thumbnail(problem=image.problem, kind=kind, label=image.label)
    try:
        most = StorageSettings.current().image_pixels
        picture = images.thumbnail(image.data, LONGEST, most_pixels=most)
    except MemoryError:
        raise  # not the image's fault
    except Exception as error:  # decoders raise anything for invalid bytes
        problem = f"cannot be decoded: {type(error).__name__}: {error}"
        return Thumbnail(problem=problem, kind=_UNDECODABLE, label=image.label)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=_QUALITY, optimize=True)
    text = base64.b64encode(encoded.getvalue()).decode()
    width, height = picture.size
    return Thumbnail(
        uri=f"data:image/jpeg;base64,{text}", width=width, height=height, label=image.label
    )


def _within(
    chapter: Sequence[Gallery], thumbnails: Mapping[Wanted, Thumbnail], room: int
) -> tuple[list[Gallery], int]:
    """A chapter with thumbnails of up to ``room`` bytes, first pictures of all rows first; and the
    bytes that they take."""
    places = sorted(
        (position, g, r)
        for g, gallery in enumerate(chapter)
        for r, row in enumerate(gallery.rows)
        for position in range(len(row.pictures))
    )
    shown: dict[tuple[int, int, int], Thumbnail] = {}
    used = 0
    for position, g, r in places:
        item = thumbnails[chapter[g].rows[r].pictures[position].want]
        if used + len(item.uri) > room:
            item = Thumbnail(problem=f"left out: {_NO_ROOM}", kind=_NO_ROOM, label=item.label)
        used += len(item.uri)
        shown[g, r, position] = item
    filled = []
    for g, gallery in enumerate(chapter):
        rows = [
            _marked(row, [shown[g, r, position] for position in range(len(row.pictures))])
            for r, row in enumerate(gallery.rows)
        ]
        filled.append(replace(gallery, rows=rows))
    return filled, used


def _marked(row: Row, thumbnails: Sequence[Thumbnail]) -> Row:
    """A row with its thumbnails; those of a query's label are right."""
    pictures = [
        replace(picture, thumbnail=item)
        for picture, item in zip(row.pictures, thumbnails, strict=True)
    ]
    label = thumbnails[0].label if row.has_query and thumbnails else None
    if label is not None:
        pictures[1:] = [
            picture
            if picture.thumbnail.label is None
            else replace(picture, mark="right" if picture.thumbnail.label == label else "wrong")
            for picture in pictures[1:]
        ]
    return replace(row, pictures=pictures)


def pictures_of(chapter: Iterable[Gallery]) -> list[Picture]:
    """All pictures of a chapter."""
    return [picture for gallery in chapter for row in gallery.rows for picture in row.pictures]


def not_shown(pictures: Sequence[Picture]) -> str:
    """How many pictures are not shown, by reason; empty if all are."""
    kinds = Counter(picture.thumbnail.kind for picture in pictures if picture.thumbnail.kind)
    if not kinds:
        return ""
    reasons = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{kinds.total()} of {len(pictures)} pictures are not shown: {reasons}."
