"""The chapters with pictures: predictions, search results, near-duplicates and their groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raypq import console
from raypq.config import Columns, ImageColumns
from raypq.data.class_labels import ClassLabels
from raypq.data.image_lookup import ImageLookup
from raypq.errors import InputError
from raypq.reporting import (
    group_pictures,
    groups,
    pair_pictures,
    prediction_pictures,
    search_pictures,
)
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, Store
from raypq.reporting.pictures import Galleries, Gallery, fill, not_shown, pictures_of
from raypq.reporting.samples import Context
from raypq.reporting.tables import Table

_STORES = 3  # of a kind that are shown
_WITHOUT = "With --images, the page shows the images of these ids."

Parts = tuple[Sequence[Table], Sequence[Chart]]


@dataclass(frozen=True, kw_only=True)
class PictureSource:
    """Where pictures are read from.

    Attributes:
        images: places. columns: of the images. classes: a table with the names of classes.
    """

    images: Sequence[str]
    columns: ImageColumns
    classes: str | None = None


@dataclass(frozen=True, kw_only=True)
class PictureChapter:
    """A chapter with galleries, one for each store.

    Attributes:
        note: how many pictures are not shown, and why; stores that are not shown.
        filled_by: what fills the chapter.
        figures: its tables and charts. as_ids: it is also made without images, and shows ids.
    """

    id: str
    title: str
    lead: str
    filled_by: str
    galleries: Sequence[Gallery] = ()
    note: str = ""
    figures: Callable[[Findings], Parts] | None = None
    as_ids: bool = False


_Make = Callable[[Store, Context], Gallery]
_CHAPTERS: Sequence[tuple[str, _Make, PictureChapter]] = (
    (
        "predictions",
        prediction_pictures.gallery,
        PictureChapter(
            id="examples",
            title="Predictions in pictures",
            lead="Images of some classes, with the score of the class that is predicted.",
            filled_by="raypq classify",
        ),
    ),
    (
        "search",
        search_pictures.gallery,
        PictureChapter(
            id="queries",
            title="Search results",
            lead="Some queries, each with its best results, best first.",
            filled_by="raypq search",
            as_ids=True,
        ),
    ),
    (
        "pairs",
        pair_pictures.gallery,
        PictureChapter(
            id="duplicates",
            title="Near-duplicates",
            lead="Groups of images that pairs within the threshold connect.",
            filled_by="raypq duplicates",
            as_ids=True,
        ),
    ),
    (
        "groups",
        group_pictures.gallery,
        PictureChapter(
            id="groups",
            title="Groups of near-duplicates",
            lead="Connected images, of which one is kept. A threshold is too wide where the images "
            "farthest from the kept one are no duplicates of it.",
            filled_by="raypq deduplicate",
            figures=groups.figures,
            as_ids=True,
        ),
    ),
)


def _of_one(store: Store) -> bool:
    """Whether results are of the images of one code store, which the pictures are of."""
    return "against" not in store.latest.summary


def make(findings: Findings, source: PictureSource | None) -> list[PictureChapter]:
    """Every chapter with pictures, or without images those that show ids; chapters without a store
    have no galleries.

    Raises:
        InputError: no store with pictures; images that cannot be listed, or none of whose ids is in
            a store; a class table that cannot be read.
    """
    made = [entry for entry in _CHAPTERS if source or entry[2].as_ids]
    stores = {
        kind: [store for store in findings.stores if store.kind == kind and _of_one(store)]
        for kind, *_ in made
    }
    if source and not any(stores.values()):
        raise InputError(
            ", ".join(source.images),
            expected="a store of predictions, search results or near-duplicates among the places, "
            "to show its images (--images, images)",
            found="none",
        )
    names = _names(source.classes) if source else {}
    context = Context.of(findings, names, locates=source is not None)
    planned = {
        kind: [_gallery(make_one, store, context) for store in stores[kind][:_STORES]]
        for kind, make_one, _ in made
        if stores[kind]
    }
    shown = _with_thumbnails(planned, source) if source else planned
    chapters = [_chapter(chapter, shown.get(kind, []), stores[kind]) for kind, _, chapter in made]
    if source is None:
        return [replace(item, note=f"{_WITHOUT} {item.note}".rstrip()) for item in chapters]
    return chapters


def _with_thumbnails(planned: Galleries, source: PictureSource) -> Galleries:
    columns = Columns(**{name: getattr(source.columns, name) for name in ImageColumns.model_fields})
    lookup = ImageLookup(source.images, columns)
    filled = fill(planned, lookup)
    opened = f" from {lookup.opened} of {lookup.shards} shards of images" if lookup.opened else ""
    shown = [item for chapter in filled.values() for item in pictures_of(chapter)]
    console.say(f"{len(shown)} pictures{opened}. {not_shown(shown)}".rstrip(), pictures=len(shown))
    return filled


def _names(classes: str | None) -> dict[str, str]:
    if classes is None:
        return {}
    labels = ClassLabels.open(classes)
    return dict(zip(labels.ids.to_pylist(), labels.names.to_pylist(), strict=True))


def _gallery(make_one: _Make, store: Store, context: Context) -> Gallery:
    try:
        return make_one(store, context)
    except InputError as error:  # a damaged file must not end the page
        return Gallery(title=context.short[store.place], note=f"Not shown: {error}")


def _chapter(
    chapter: PictureChapter, galleries: Sequence[Gallery], stores: Sequence[Store]
) -> PictureChapter:
    notes = [not_shown(pictures_of(galleries))]
    if len(stores) > len(galleries):
        notes.append(f"{len(galleries)} of {len(stores)} stores are shown.")
    return replace(chapter, galleries=galleries, note=" ".join(filter(None, notes)))
