"""Some predictions of a store, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from raypq.config import PredictionsSettings
from raypq.data.class_labels import ClassLabels
from raypq.data.storage import join, stream
from raypq.data.store import snapshot
from raypq.data.stored import open_stored
from raypq.errors import InputError

_ROWS = 8192
_DECIDED = ("probability", "accepted")


def lines(settings: PredictionsSettings) -> Iterator[str]:
    """A line for each image: its id, its classes with scores, best first, and its label.

    Raises:
        InputError: no store of predictions, or none of the ids.
    """
    version = snapshot.read(settings.store, settings.version)
    if version.kind != "predictions":
        raise InputError(
            settings.store, expected="a store of predictions", found=f"one of {version.kind}"
        )
    labels = ClassLabels.open(settings.classes) if settings.classes is not None else None
    left, missing = settings.limit, set(settings.id)
    for receipt in version.shards:
        with open_stored(join(settings.store, receipt.path), "predictions") as file:
            columns = ["id", "class_id", "score", *filter(file.has, ["label", *_DECIDED])]
            for batch in stream(file, _ROWS, columns):
                ids = batch.column("id").cast(pa.string())
                if settings.id:
                    chosen = pc.is_in(ids, value_set=pa.array(settings.id))
                    batch, ids = batch.filter(chosen), ids.filter(chosen)
                    missing -= {*ids.to_pylist()}
                for row in range(min(left, len(batch))):
                    yield _line(batch.slice(row, 1), labels)
                left -= min(left, len(batch))
                if not left:
                    break
        if not left:
            break
    if missing and left:
        raise InputError(
            f"{settings.store}, version {version.version}",
            expected="every id that is named",
            found=f"{len(missing)} that it lacks, such as {min(missing)!r}",
        )


def _line(row: pa.RecordBatch, labels: ClassLabels | None) -> str:
    classes = row.column("class_id").flatten()
    names = labels.of(classes) if labels else classes
    value = "probability" if "probability" in row.schema.names else "score"
    scores = row.column(value).flatten().to_pylist()
    found = ", ".join(
        f"{name} {score:.4g}" for name, score in zip(names.to_pylist(), scores, strict=True)
    )
    # In one line, whatever the id holds.
    name = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(row.column("id")[0].as_py())
    )
    line = f"{name}: {found}"
    if "accepted" in row.schema.names:
        accepted = row.column("accepted").flatten()
        accepted = labels.of(accepted) if labels else accepted
        line += f" (accepted: {', '.join(accepted.to_pylist()) or 'none'})"
    if "label" not in row.schema.names or not row.column("label")[0].is_valid:
        return line
    label = row.column("label")
    return f"{line} (label: {(labels.of(label) if labels else label)[0].as_py()})"
