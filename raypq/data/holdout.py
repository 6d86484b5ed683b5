"""Hold-out: labelled rows that a model does not learn from, chosen by class, and the accuracy on
them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypq.data.storage import atomic_write, delete, join, list_files, open_parquet

_ONE_IN, _LEAST = 5, 3  # held out of each class; rows of a class that can spare one
_SEED = 0


@dataclass(frozen=True)
class Hits:
    """Rows with a label among the classes, and how many have it as their first class."""

    right: int = 0
    rows: int = 0

    @property
    def share(self) -> float:
        """Accuracy of the first class."""
        return self.right / self.rows


def held_out(labels: Sequence[tuple[str, str | None]]) -> set[str]:
    """The ids to hold out: of each class a fifth, at least one, and none of classes of one or two
    rows. The choice depends on the ids alone, not on their order.

    Args:
        labels: id and label of each row.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for key, label in labels:
        if label is not None:
            by_class[label].append(key)
    chosen: set[str] = set()
    for keys in by_class.values():
        if len(keys) >= _LEAST:
            chosen |= {*sorted(keys, key=_rank)[: max(1, len(keys) // _ONE_IN)]}
    return chosen


def _rank(key: str) -> bytes:
    return hashlib.sha256(f"{_SEED}:{key}".encode()).digest()


def write_training_part(files: Sequence[str], folder: str) -> int:
    """Writes the rows of feature files that are not held out to a folder; returns their number.

    Args:
        folder: its files of an earlier call are replaced.
    """
    kept_out = held_out([row for uri in files for row in _labels(uri)])
    for name in list_files(folder):
        delete(join(folder, name))
    rows = 0
    for number, uri in enumerate(files):
        with open_parquet(uri) as file:
            table = file.read()
        mask = pa.array([key not in kept_out for key in _texts(table.column("id"))], pa.bool_())
        part = table.filter(mask)
        rows += len(part)
        with atomic_write(join(folder, f"{number:06d}.parquet")) as sink:
            pq.write_table(part, sink, write_page_checksum=True)
    return rows


def training_ids(folder: str) -> set[str]:
    """The ids of the rows that ``write_training_part`` wrote; none if there is no such folder."""
    ids: set[str] = set()
    for name in list_files(folder):
        with open_parquet(join(folder, name)) as file:
            ids |= {*_texts(file.read(columns=["id"]).column("id"))}
    return ids


def replaced(folder: str, files: Sequence[str]) -> set[str]:
    """The ids of rows of ``write_training_part`` whose pictures have another version now.

    Args:
        folder: of that call. files: of features, now.
    """
    learned = _versions([join(folder, name) for name in list_files(folder)])
    now = _versions(files)
    return {key for key, version in learned.items() if now.get(key, version) != version}


def _versions(files: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for uri in files:
        with open_parquet(uri) as file:
            if file.has("version"):
                table = file.read(columns=["id", "version"])
                versions = table.column("version").to_pylist()
                found |= zip(_texts(table.column("id")), versions, strict=True)
    return found


def hits(
    files: Sequence[str],
    training: Collection[str],
    classes: Collection[str],
    neither: Collection[str] = (),
) -> list[Hits]:
    """The accuracy of prediction files on rows that a model did not learn from, and on the others.

    Args:
        training: ids of the rows that it learned from. classes: class_ids that count as labels.
        neither: ids that do not count.
    """
    right, rows = [0, 0], [0, 0]
    for uri in files:
        with open_parquet(uri) as file:
            if not file.has("label"):
                continue
            table = file.read(columns=["id", "class_id", "label"])
        first = pc.list_element(table.column("class_id"), 0).to_pylist()
        keys = _texts(table.column("id"))
        for key, best, label in zip(keys, first, table.column("label").to_pylist(), strict=True):
            if label in classes and key not in neither:
                part = int(key in training)
                rows[part] += 1
                right[part] += best == label
    return [Hits(*counts) for counts in zip(right, rows, strict=True)]


def _labels(uri: str) -> Iterator[tuple[str, str | None]]:
    with open_parquet(uri) as file:
        if file.has("label"):
            table = file.read(columns=["id", "label"])
            labels = table.column("label").to_pylist()
            yield from zip(_texts(table.column("id")), labels, strict=True)


def _texts(column: pa.ChunkedArray) -> list[str]:
    return [str(value) for value in column.to_pylist()]
