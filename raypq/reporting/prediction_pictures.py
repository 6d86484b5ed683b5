"""Predictions in pictures: images of some classes that are right, and that are wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raypq.data.image_lookup import Wanted
from raypq.data.storage import join, stream
from raypq.data.store.shard_writer import Receipt
from raypq.data.stored import open_stored
from raypq.errors import InputError
from raypq.reporting.findings import Store
from raypq.reporting.pictures import Gallery, Mark, Picture, Row
from raypq.reporting.samples import Context, evenly
from raypq.reporting.tables import count

MOST_SHARDS = 16  # of predictions that are read
_MOST_ROWS = 200_000  # of them that are looked at
_CONFUSED, _WORST, _BEST = 6, 3, 3  # classes that are shown
_EXAMPLES = 4  # right ones of a class, and wrong ones
_BATCH = 8192  # rows


class Prediction(NamedTuple):
    """The best class of an image, its score, and the image's label."""

    id: str
    origin: str
    class_id: str
    score: float
    label: str | None


def gallery(store: Store, context: Context) -> Gallery:
    """Examples of some classes: by label where there are labels, else by predicted class.

    Raises:
        InputError: a file of the store cannot be read.
    """
    receipts = store.latest.shards
    chosen = evenly(receipts, MOST_SHARDS)
    predictions = list(_sample(store, chosen, context))
    labelled = [item for item in predictions if item.label is not None]
    looked = f"Examples from {len(chosen)} of {count(len(receipts))} shards"
    rows = sum(receipt.rows for receipt in chosen)
    if len(predictions) < rows:
        looked += f", {count(len(predictions))} of their {count(rows)} images"
    note, shown = by_label(labelled, context) if labelled else by_class(predictions, context)
    return Gallery(title=context.short[store.place], note=f"{looked}. {note}", rows=shown)


def _sample(store: Store, receipts: Sequence[Receipt], context: Context) -> Iterator[Prediction]:
    """Evenly spaced rows of some files."""
    step = max(1, -(-sum(receipt.rows for receipt in receipts) // _MOST_ROWS))
    for receipt in receipts:
        origin = context.origins.of(receipt.source.uri)
        uri = join(store.place, receipt.path)
        row = 0
        with open_stored(uri, "predictions", size=receipt.bytes) as file:
            columns = ["id", "class_id", "score", *filter(file.has, ["label"])]
            for batch in stream(file, _BATCH, columns):
                every = pa.array(range(-row % step, len(batch), step), pa.int64())
                yield from _best(batch.take(every), origin, uri)
                row += len(batch)


def _best(batch: pa.RecordBatch, origin: str, uri: str) -> Iterator[Prediction]:
    for name in ("class_id", "score"):
        kind = batch.column(name).type
        if not pa.types.is_list(kind):
            raise InputError(f"{uri}, column '{name}'", expected="a list a row", found=str(kind))
    lengths = [pc.list_value_length(batch.column(name)) for name in ("class_id", "score")]
    batch = batch.filter(pc.greater(pc.min_element_wise(*lengths), 0))
    labels = pa.nulls(len(batch), pa.string())
    if "label" in batch.schema.names:
        labels = batch.column("label").cast(pa.string())
    columns = zip(
        batch.column("id").cast(pa.string()).to_pylist(),
        pc.list_element(batch.column("class_id"), 0).to_pylist(),
        pc.list_element(batch.column("score"), 0).to_pylist(),
        labels.to_pylist(),
        strict=True,
    )
    for name, class_id, score, label in columns:
        if class_id is not None and score is not None:
            yield Prediction(name, origin, class_id, score, label)


def by_label(predictions: Sequence[Prediction], context: Context) -> tuple[str, list[Row]]:
    """Classes with most images that are wrong, then the worst and the best of the others."""
    groups = _grouped((item.label or "", item) for item in predictions)
    wrong = {name: sum(item.class_id != name for item in group) for name, group in groups.items()}
    accuracy = {name: 1 - wrong[name] / len(group) for name, group in groups.items()}
    by_wrong = sorted(groups, key=lambda name: (-wrong[name], name))
    confused = [name for name in by_wrong[:_CONFUSED] if wrong[name]]
    rest = sorted(
        {*groups} - {*confused}, key=lambda name: (accuracy[name], -len(groups[name]), name)
    )
    worst = [name for name in rest if wrong[name]][:_WORST]
    best = [name for name in rest if name not in worst][-_BEST:]
    rows = []
    for why, names in (("most often wrong", confused), ("worst", worst), ("best", best)):
        for name in names:
            right = len(groups[name]) - wrong[name]
            title = f"{context.name(name)}: {right} of {len(groups[name])} right ({why})"
            rows.append(Row(title=title, pictures=_of_label(name, groups[name], context)))
    note = (
        f"{len(rows)} of {count(len(groups))} classes: those that are most often wrong, the worst "
        f"and the best of the others. Of each, up to {_EXAMPLES} images that are right and "
        f"{_EXAMPLES} that are wrong, those of the highest scores."
    )
    return note, rows


def _of_label(label: str, group: Sequence[Prediction], context: Context) -> list[Picture]:
    best = sorted(group, key=lambda item: (-item.score, item.id))
    right = [item for item in best if item.class_id == label][:_EXAMPLES]
    wrong = [item for item in best if item.class_id != label][:_EXAMPLES]
    return [
        *(_picture(item, note=f"{item.score:.3g}", mark="right") for item in right),
        *(
            _picture(item, note=f"as {context.name(item.class_id)}, {item.score:.3g}", mark="wrong")
            for item in wrong
        ),
    ]


def by_class(predictions: Sequence[Prediction], context: Context) -> tuple[str, list[Row]]:
    """The classes that are predicted most often."""
    groups = _grouped((item.class_id, item) for item in predictions)
    names = sorted(groups, key=lambda name: (-len(groups[name]), name))
    names = names[: _CONFUSED + _WORST + _BEST]
    rows = []
    for name in names:
        best = sorted(groups[name], key=lambda item: (-item.score, item.id))
        if len(best) > 2 * _EXAMPLES:
            best = [*best[:_EXAMPLES], *best[-_EXAMPLES:]]
        title = f"{context.name(name)}: predicted for {count(len(groups[name]))} images"
        pictures = [_picture(item, note=f"{item.score:.3g}") for item in best]
        rows.append(Row(title=title, pictures=pictures))
    note = (
        f"There are no labels: {len(rows)} of {count(len(groups))} predicted classes, the most "
        f"frequent ones. Of each, the {_EXAMPLES} images of the highest scores, and the "
        f"{_EXAMPLES} of the lowest."
    )
    return note, rows


def _grouped(items: Iterator[tuple[str, Prediction]]) -> Mapping[str, list[Prediction]]:
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for name, item in items:
        groups[name].append(item)
    return groups


def _picture(item: Prediction, *, note: str, mark: Mark = "") -> Picture:
    return Picture(want=Wanted(item.id, item.origin), mark=mark, note=note)
