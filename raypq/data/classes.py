"""Class tables: ``class_id``, ``name``, ``embedding``, ``seen`` and the ImageNet split columns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq import console
from raypq.data import arrays, class_columns
from raypq.data.class_columns import PrototypeLists
from raypq.data.class_list import (
    ClassSelection,
    MissingClass,
    Unknown,
    check_distinct,
    class_ids,
    read_class_list,
)
from raypq.data.layouts import arrow_types
from raypq.data.network_info import EncoderInfo, Logits
from raypq.data.storage import digest, exists, file_size, open_parquet, read_named
from raypq.data.stored_rows import StoredRows
from raypq.data.unknown_classes import short
from raypq.errors import ConfigError, InputError

SPLITS = (
    "all, seen, unseen, 2-hops, 3-hops, most-N, least-N (N unseen classes by image_count, "
    "such as most-500 or least-5K), a file of class_ids, one a line, or several joined by +"
)

_HOPS = ("in_2hops", "in_3hops")
_OTHERS = (
    "name",
    "embedding",
    "prototypes",
    "bias",
    "seen",
    "image_count",
    *_HOPS,
)  # columns that are read

STREAMED_BYTES = 256 << 20  # of a file whose embeddings are not held in memory

# For the error of a label that a class table lacks.
UNKNOWN_REMEDY = "add the class to the table, or take it out of this file"


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassTable:
    """T classes in file order.

    Attributes:
        digest: sha256 of the file.
        ids: class_id of each class; unique.
        names: readable names (the class_id where the file has none).
        E: class embeddings [T, da], float32, in a file where they are large; None without the
            column.
        prototypes: several embeddings of each class, or None without the column.
        bias: added to the scores of each class, float64 [T], or None without the column.
        encoder: the network that made the embeddings, if the file names it.
        logits: its scale of scores, if the file says it.
        seen: bool [T], or None without the column.
        image_count: int64 [T] or None.
        hops: bool [T] by column name (``in_2hops``, ``in_3hops``), where present.
        excluded: class_ids of the file whose embedding is null; not among the T.
    """

    uri: str
    digest: str
    ids: pa.StringArray
    names: list[str]
    E: NDArray[np.float32] | StoredRows | None
    seen: NDArray[np.bool_] | None
    image_count: NDArray[np.int64] | None
    hops: dict[str, NDArray[np.bool_]]
    prototypes: PrototypeLists | None = None
    bias: NDArray[np.float64] | None = None
    encoder: EncoderInfo | None = None
    logits: Logits | None = None
    excluded: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """E [T, da], in memory.

        Raises:
            InputError: the table has no embeddings.
        """
        if self.E is None:
            raise InputError(self.uri, expected="a column 'embedding'", found="none")
        return self.E if isinstance(self.E, np.ndarray) else self.E[:]

    def find(self, labels: pa.StringArray) -> tuple[NDArray[np.int32], pa.StringArray]:
        """Class index of each label [n], and the labels that the table lacks.

        The index is -1 for a null, a label of an excluded class, and an unknown label.
        """
        index, unknown = self._find(labels)
        return index, labels.filter(pa.array(unknown))

    def index(
        self,
        labels: pa.StringArray,
        *,
        where: str,
        row0: int = 0,
        remedy: str = UNKNOWN_REMEDY,
    ) -> NDArray[np.int32]:
        """Class index of each label [n]; -1 for a null and a label of an excluded class.

        Args:
            where, row0: the labels' file and the row of the first one, for errors.
            remedy: for the error.

        Raises:
            InputError: a label that the table lacks, naming it and its row.
        """
        index, unknown = self._find(labels)
        if unknown.any():
            row = int(np.flatnonzero(unknown)[0])
            raise InputError(
                f"{where}, row {row0 + row}",
                expected=f"a label among the {len(self)} class_ids of {self.uri}",
                found=f"{short(labels[row].as_py())!r} ({int(unknown.sum())} such row(s) in this "
                f"batch); {remedy}",
            )
        return index

    def _find(self, labels: pa.StringArray) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Class index of each label [n], and a mask [n] of unknown labels."""
        positions = pc.index_in(labels, value_set=self.ids)
        unknown = pc.and_(pc.is_null(positions), pc.is_valid(labels))
        unknown = unknown.to_numpy(zero_copy_only=False)
        if self.excluded:
            known = pc.is_in(labels, value_set=pa.array(self.excluded, pa.string()))
            unknown = unknown & ~known.to_numpy(zero_copy_only=False)
        index = positions.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return index, unknown

    def select(self, spec: str, *, unknown: Unknown = "report") -> NDArray[np.int64]:
        """Indices of the classes that a split selects, as ``selection``.

        Class_ids of a file that the table lacks are warned of, or refused.
        """
        selection = self.selection(spec)
        if unknown == "refuse":
            selection.refuse()
        selection.warn()
        return selection.index

    def selection(self, spec: str) -> ClassSelection:
        """The classes that a split selects, in table order (see ``SPLITS``).

        Raises:
            ConfigError: an unknown split.
            InputError: the table lacks the column that the split needs, or all class_ids of a
                file, or nothing is selected.
        """
        parts = [self._select(part) for part in _parts(spec)]
        index = np.unique(np.concatenate([part.index for part in parts]))
        if not len(index):
            raise InputError(self.uri, expected=f"at least one class in '{spec}'", found="none")
        missing = [item for part in parts for item in part.missing]
        return ClassSelection(index=index, table=self.uri, missing=missing)

    def digest_of(self, spec: str, index: NDArray[np.int64]) -> str | None:
        """sha256 of the class_ids that ``selection`` gave, if a file took part in it.

        Other splits are identified by their names and the table's digest.
        """
        if all(_is_named(part) for part in _parts(spec)):
            return None
        names = "\n".join(self.ids.take(pa.array(index)).to_pylist())
        return hashlib.sha256(names.encode()).hexdigest()

    def _select(self, spec: str) -> ClassSelection:
        if not _is_named(spec):
            if exists(spec):
                return self._from_file(spec)
            raise ConfigError(f"unknown split {spec!r}; expected {SPLITS}")
        return ClassSelection(index=self._by_name(spec), table=self.uri)

    def _by_name(self, spec: str) -> NDArray[np.int64]:
        all_classes = np.arange(len(self), dtype=np.int64)
        if spec == "all":
            return all_classes
        if spec in ("seen", "unseen"):
            return all_classes[self._seen(spec) == (spec == "seen")]
        if spec in ("2-hops", "3-hops"):
            column = f"in_{spec[0]}hops"
            if column not in self.hops:
                raise InputError(
                    self.uri, expected=f"a column '{column}' for '{spec}'", found="none"
                )
            return all_classes[self.hops[column]]
        kind, _, count = spec.partition("-")
        n = int(count.upper().removesuffix("K")) * (1000 if count.upper().endswith("K") else 1)
        return self._by_population(n, most=kind == "most", spec=spec)

    def _seen(self, spec: str) -> NDArray[np.bool_]:
        if self.seen is None:
            raise InputError(self.uri, expected=f"a column 'seen' for '{spec}'", found="none")
        return self.seen

    def _by_population(self, n: int, *, most: bool, spec: str) -> NDArray[np.int64]:
        """The n unseen classes with the most or fewest images (PQZSL section 4.1)."""
        if self.image_count is None:
            raise InputError(
                self.uri, expected=f"a column 'image_count' for '{spec}'", found="none"
            )
        unseen = np.flatnonzero(~self._seen(spec) & (self.image_count > 0))
        if len(unseen) < n:
            console.warn(f"{self.uri}: '{spec}' takes all {len(unseen)} unseen classes with images")
        count = self.image_count[unseen]
        order = np.lexsort((unseen, -count if most else count))
        return np.sort(unseen[order[:n]])

    def _from_file(self, uri: str) -> ClassSelection:
        class_list = list(read_class_list(uri))
        check_distinct(uri, class_list)
        names = pa.array([class_id for _, class_id in class_list], pa.string())
        positions = pc.index_in(names, value_set=self.ids)
        missing = [
            MissingClass(uri=uri, line=line, class_id=class_id, reason=self._why_missing(class_id))
            for (line, class_id), position in zip(class_list, positions.to_pylist(), strict=True)
            if position is None
        ]
        if class_list and len(missing) == len(class_list):
            raise InputError(
                uri,
                expected=f"at least one class_id of {self.uri}",
                found=f"{len(class_list)} that it lacks: {missing[0]}",
            )
        index = positions.drop_null().to_numpy().astype(np.int64)
        return ClassSelection(index=np.sort(index), table=self.uri, missing=missing)

    def _why_missing(self, class_id: str) -> str:
        reason = "has no embedding in" if class_id in self.excluded else "is not in"
        return f"{reason} {self.uri}"

    @classmethod
    def open(cls, uri: str) -> ClassTable:
        """Reads a class table.

        Raises:
            InputError: no ``class_id`` column, duplicate class_ids, unreadable embeddings.
        """
        # A small one is read once, so that the digest is of the same content; a large one in
        # batches, with its digest before and after.
        large = _is_large(uri)
        before = digest(uri) if large else ""
        content = None if large else read_named(uri, expected="a Parquet file")
        with open_parquet(uri, content=content) as file:
            columns = [name for name in _OTHERS if file.has(name)]
            stored = large and "embedding" in columns
            if stored:
                columns.remove("embedding")
            table = file.read(columns=["class_id", *columns])
            table = table.cast(arrow_types.without_views(table.schema))
            ids = class_ids(table, uri)
            _refuse_repeated(ids, uri)
            E: NDArray[np.float32] | StoredRows | None = None
            valid, encoder, logits = None, None, None
            if file.has("embedding"):
                field, where = file.schema_arrow.field("embedding"), f"{uri}, column 'embedding'"
                encoder, logits = EncoderInfo.of(field, where=where), Logits.of(field, where=where)
                if stored:
                    E, valid = StoredRows.read(file, uri, ids)
                else:
                    valid = pc.is_valid(arrays.whole(table.column("embedding")))
        table, ids, excluded = _with_embeddings(table, ids, valid, uri)
        E = class_columns.embeddings(table, uri, ids) if E is None else E
        after = digest(uri) if content is None else hashlib.sha256(content).hexdigest()
        if large and after != before:
            raise InputError(
                uri, expected="a file that stays as it is", found="another content after reading it"
            )
        return cls(
            uri=uri,
            excluded=excluded,
            digest=after,
            ids=ids,
            names=class_columns.names(table, uri, ids),
            E=E,
            prototypes=class_columns.prototypes(table, uri, ids, None if E is None else E.shape[1]),
            bias=class_columns.bias(table, uri),
            encoder=encoder,
            logits=logits,
            seen=class_columns.flags(table, "seen", uri),
            image_count=class_columns.counts(table, uri),
            hops={
                name: flags
                for name in _HOPS
                if (flags := class_columns.flags(table, name, uri)) is not None
            },
        )


def _is_large(uri: str) -> bool:
    try:
        return file_size(uri) > STREAMED_BYTES
    except OSError:  # the error of ``read_named`` says more
        return False


def _refuse_repeated(ids: pa.StringArray, uri: str) -> None:
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise InputError(
            uri,
            expected="unique class_ids",
            found=f"{len(repeated)} repeated, such as {repeated[0].as_py()!r}",
        )


def _parts(spec: str) -> list[str]:
    """The splits of a union joined by ``+``, which may also occur in a file's name."""
    return [spec] if "+" not in spec or exists(spec) else spec.split("+")


def _is_named(spec: str) -> bool:
    """Whether a split is a predefined one; all others are files."""
    kind, _, count = spec.partition("-")
    by_population = kind in ("most", "least") and count.upper().removesuffix("K").isdecimal()
    return by_population or spec in ("all", "seen", "unseen", "2-hops", "3-hops")


def _with_embeddings(
    table: pa.Table, ids: pa.StringArray, valid: pa.BooleanArray | None, uri: str
) -> tuple[pa.Table, pa.StringArray, tuple[str, ...]]:
    """The classes that have an embedding, and the class_ids of those whose embedding is null.

    Args:
        valid: whether it is there [T]; None without the column.
    """
    if valid is None or pc.all(valid, min_count=0).as_py():
        return table, ids, ()
    excluded = tuple(ids.filter(pc.invert(valid)).to_pylist())
    if len(excluded) == len(ids):
        raise InputError(
            f"{uri}, column 'embedding'", expected="class embeddings", found="nulls only"
        )
    shown = ", ".join(excluded[:5]) + (", …" if len(excluded) > 5 else "")
    console.warn(
        f"{uri}: {len(excluded)} classes have no embedding and are left out ({shown}); "
        "raypq infer-semantics estimates embeddings from images"
    )
    return table.filter(valid), ids.filter(valid), excluded
