"""Prediction files: ``id``, ``class_id`` list<string> and ``score`` list<float>, best first.

If the candidates include seen and unseen classes, also the best of each group (``seen_class_id``,
``seen_score``, ``unseen_class_id``, ``unseen_score``), from which calibrated results are computed;
and ``label``, if the codes have it. Where a job asks for them: ``probability`` list<float> of the
classes, and ``accepted`` list<string> with ``accepted_value`` list<float>, all classes that reach a
threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data import arrays, format_version
from raypq.data.classes import ClassTable
from raypq.data.storage import stream
from raypq.data.stored import open_stored
from raypq.errors import InputError

# Dictionaries for names only: scores and ids are rarely repeated.
WRITE_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": [
        "class_id.list.element",
        "label",
        "seen_class_id",
        "unseen_class_id",
        "accepted.list.element",
    ],
}
GROUPS = ("seen", "unseen")
_FORMAT = "1"


def schema(
    *,
    id_type: pa.DataType,
    label: bool,
    groups: bool,
    metadata: dict[str, str],
    probability: bool = False,
    accepted: bool = False,
) -> pa.Schema:
    """The schema of a prediction file; ``groups`` adds the best seen and unseen class."""
    fields = [
        pa.field("id", id_type, nullable=False),
        pa.field("class_id", pa.list_(pa.string()), nullable=False),
        pa.field("score", pa.list_(pa.float32()), nullable=False),
    ]
    if label:
        fields.append(pa.field("label", pa.string()))
    for group in GROUPS if groups else ():
        fields.append(pa.field(f"{group}_class_id", pa.string(), nullable=False))
        fields.append(pa.field(f"{group}_score", pa.float32(), nullable=False))
    numbers = pa.list_(pa.float32())
    if probability:
        fields.append(pa.field("probability", numbers, nullable=False))
    if accepted:
        fields.append(pa.field("accepted", pa.list_(pa.string()), nullable=False))
        fields.append(pa.field("accepted_value", numbers, nullable=False))
    return pa.schema(fields, metadata={"raypq.format": _FORMAT, **metadata})


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best class of a group for each image: scores [n] and class indices [n]."""

    score: NDArray[np.float32]
    classes: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The classes of each image that reach a threshold, image by image, best first.

    Attributes:
        counts: of each image [n]. classes, values: indices, and probabilities or scores [Σ counts].
    """

    counts: NDArray[np.int64]
    classes: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PredictionBatch:
    """Some consecutive images; classes are indices into the class table, −1 where it lacks them.

    Attributes:
        score, classes: [n, k], best first.
        y: index of the label [n]; −1 also for a row without one.
        best: by group, or empty.
        probability: of the classes [n, k]. accepted: classes that reach a threshold.
        unknown_labels, unknown_classes: labels and predicted classes that the table lacks, one
            entry for each occurrence.
    """

    score: NDArray[np.float32]
    classes: NDArray[np.int64]
    y: NDArray[np.int32]
    best: dict[str, Best]
    unknown_labels: pa.StringArray | None = None
    unknown_classes: pa.StringArray | None = None
    probability: NDArray[np.float32] | None = None
    accepted: Accepted | None = None


def record_batch(
    schema: pa.Schema,
    table: ClassTable,
    batch: PredictionBatch,
    *,
    ids: pa.Array,
    labels: pa.StringArray | None,
) -> pa.RecordBatch:
    """One batch of a prediction file."""
    n, k = batch.classes.shape
    columns: list[pa.Array] = [
        ids.cast(schema.field("id").type),
        arrays.ragged(_names(table, batch.classes.reshape(-1)), n, k),
        arrays.ragged(pa.array(batch.score.reshape(-1), pa.float32()), n, k),
    ]
    if "label" in schema.names:
        columns.append(labels if labels is not None else pa.nulls(n, pa.string()))
    if f"{GROUPS[0]}_score" in schema.names:
        for group in GROUPS:
            columns.append(_names(table, batch.best[group].classes))
            columns.append(pa.array(batch.best[group].score, pa.float32()))
    if batch.probability is not None:
        columns.append(arrays.ragged(pa.array(batch.probability.reshape(-1)), n, k))
    if batch.accepted is not None:
        offsets = pa.array(np.concatenate([[0], np.cumsum(batch.accepted.counts)]), pa.int32())
        for values in (_names(table, batch.accepted.classes), pa.array(batch.accepted.values)):
            columns.append(pa.ListArray.from_arrays(offsets, values))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _names(table: ClassTable, index: NDArray[np.int64]) -> pa.StringArray:
    return table.ids.take(pa.array(index))


def read(
    uri: str, table: ClassTable, *, size: int | None = None, rows: int = 65536
) -> Iterator[PredictionBatch]:
    """Streams a prediction file (of ``size`` bytes) with its classes as indices into ``table``.

    Raises:
        InputError: not a prediction file.
    """
    with open_stored(uri, "predictions", size=size) as file:
        format_version.refuse_file(
            file.schema_arrow.metadata, uri, what="prediction file", known=_FORMAT
        )
        names = file.schema_arrow.names
        if not {"class_id", "score"} <= set(names):
            raise InputError(uri, expected="a prediction file", found=f"columns {', '.join(names)}")
        for name in ("class_id", "score"):
            if not pa.types.is_list(kind := file.field(name).type):
                raise InputError(
                    f"{uri}, column '{name}'", expected="a list a row", found=str(kind)
                )
        groups = [group for group in GROUPS if f"{group}_score" in names]
        group_columns = [f"{group}_{part}" for group in groups for part in ("class_id", "score")]
        columns = ["class_id", "score", *filter(file.has, ["label"]), *group_columns]
        row = 0
        for batch in stream(file, rows, columns):
            n = len(batch)
            if not n:
                continue
            class_ids = batch.column("class_id")
            k = _list_length(class_ids, batch.column("score"), f"{uri}, row {row}")
            best = {
                group: Best(
                    score=batch.column(f"{group}_score").to_numpy(),
                    classes=table.find(batch.column(f"{group}_class_id"))[0].astype(np.int64),
                )
                for group in groups
            }
            predicted = class_ids.flatten()
            classes, _ = table.find(predicted)
            y, unknown_labels = np.full(n, -1, np.int32), None
            if "label" in names:
                y, unknown_labels = table.find(batch.column("label"))
            yield PredictionBatch(
                score=batch.column("score").flatten().to_numpy().reshape(n, k),
                classes=classes.astype(np.int64).reshape(n, k),
                y=y,
                best=best,
                unknown_labels=unknown_labels,
                unknown_classes=predicted.filter(pa.array(classes < 0)),
            )
            row += n


def _list_length(class_ids: pa.ListArray, score: pa.ListArray, where: str) -> int:
    """Predictions of an image, after a check that every row has as many classes and scores."""
    lengths = np.diff(class_ids.offsets.to_numpy())
    wrong = np.flatnonzero(
        (lengths != lengths[0]) | (np.diff(score.offsets.to_numpy()) != lengths[0])
    )
    if len(wrong) or class_ids.null_count or score.null_count:
        raise InputError(
            f"{where} and on",
            expected=f"{lengths[0]} classes and scores in each row",
            found="other numbers of them",
        )
    return int(lengths[0])
