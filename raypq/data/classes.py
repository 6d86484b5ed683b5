"""Class tables: ``class_id``, ``name``, ``embedding``, ``seen`` and the ImageNet split columns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq import console
from raypq.data import arrays, texts
from raypq.data.class_list import (
    ClassSelection,
    MissingClass,
    Unknown,
    check_distinct,
    class_ids,
    read_class_list,
)
from raypq.data.feature_columns import stored_width
from raypq.data.layouts import arrow_types
from raypq.data.network_info import EncoderInfo
from raypq.data.storage import exists, open_parquet, read_named
from raypq.data.unknown_classes import short
from raypq.errors import ConfigError, InputError

SPLITS = (
    "all, seen, unseen, 2-hops, 3-hops, most-N, least-N (N unseen classes by image_count, "
    "such as most-500 or least-5K), a file of class_ids, one a line, or several joined by +"
)

_HOPS = ("in_2hops", "in_3hops")
_OTHERS = ("name", "embedding", "bias", "seen", "image_count", *_HOPS)  # columns that are read


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassTable:
    """T classes in file order.

    Attributes:
        digest: sha256 of the file.
        ids: class_id of each class; unique.
        names: readable names (the class_id where the file has none).
        E: class embeddings [T, da], float32, or None without the column.
        bias: added to the scores of each class, float64 [T], or None without the column.
        encoder: the network that made the embeddings, if the file names it.
        seen: bool [T], or None without the column.
        image_count: int64 [T] or None.
        hops: bool [T] by column name (``in_2hops``, ``in_3hops``), where present.
        excluded: class_ids of the file whose embedding is null; not among the T.
    """

    uri: str
    digest: str
    ids: pa.StringArray
    names: list[str]
    E: NDArray[np.float32] | None
    seen: NDArray[np.bool_] | None
    image_count: NDArray[np.int64] | None
    hops: dict[str, NDArray[np.bool_]]
    bias: NDArray[np.float64] | None = None
    encoder: EncoderInfo | None = None
    excluded: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """E [T, da].

        Raises:
            InputError: the table has no embeddings.
        """
        if self.E is None:
            raise InputError(self.uri, expected="a column 'embedding'", found="none")
        return self.E

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
        remedy: str = "add the class to the table, or take it out of this file",
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
        # Read once, so that the digest is of the same content.
        content = read_named(uri, expected="a Parquet file")
        with open_parquet(uri, content=content) as file:
            table = file.read(columns=["class_id", *filter(file.has, _OTHERS)])
            table = table.cast(arrow_types.without_views(table.schema))
        ids = class_ids(table, uri)
        counts = pc.value_counts(ids)
        repeated = [item["values"].as_py() for item in counts if item["counts"].as_py() > 1]
        if repeated:
            raise InputError(
                uri,
                expected="unique class_ids",
                found=f"{len(repeated)} repeated, such as {repeated[0]!r}",
            )
        encoder = None
        if "embedding" in table.column_names:
            where = f"{uri}, column 'embedding'"
            encoder = EncoderInfo.of(table.schema.field("embedding"), where=where)
        table, ids, excluded = _with_embeddings(table, ids, uri)
        return cls(
            uri=uri,
            excluded=excluded,
            digest=hashlib.sha256(content).hexdigest(),
            ids=ids,
            names=_names(table, uri, ids),
            E=_embeddings(table, uri, ids),
            bias=_bias(table, uri),
            encoder=encoder,
            seen=_flags(table, "seen", uri),
            image_count=_counts(table, uri),
            hops={name: flags for name in _HOPS if (flags := _flags(table, name, uri)) is not None},
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
    table: pa.Table, ids: pa.StringArray, uri: str
) -> tuple[pa.Table, pa.StringArray, tuple[str, ...]]:
    """The classes that have an embedding, and the class_ids of those whose embedding is null."""
    if "embedding" not in table.column_names or not table.column("embedding").null_count:
        return table, ids, ()
    has_embedding = pc.is_valid(arrays.whole(table.column("embedding")))
    excluded = tuple(ids.filter(pc.invert(has_embedding)).to_pylist())
    if len(excluded) == len(ids):
        raise InputError(
            f"{uri}, column 'embedding'", expected="class embeddings", found="nulls only"
        )
    shown = ", ".join(excluded[:5]) + (", …" if len(excluded) > 5 else "")
    console.warn(
        f"{uri}: {len(excluded)} classes have no embedding and are left out ({shown}); "
        "raypq infer-semantics estimates embeddings from images"
    )
    return table.filter(has_embedding), ids.filter(has_embedding), excluded


def _names(table: pa.Table, uri: str, ids: pa.StringArray) -> list[str]:
    if "name" not in table.column_names:
        return [str(key) for key in ids]
    column = arrays.whole(table.column("name"))
    if arrow_types.is_text(arrow_types.plain_type(column.type)):
        column = texts.strings(column, where=f"{uri}, column 'name'", nulls=True)
    pairs = zip(column.to_pylist(), ids, strict=True)
    return [str(key) if name is None or name == "" else str(name) for name, key in pairs]


def _embeddings(table: pa.Table, uri: str, ids: pa.StringArray) -> NDArray[np.float32] | None:
    if "embedding" not in table.column_names:
        return None
    where = f"{uri}, column 'embedding'"
    column = arrays.whole(table.column("embedding"))
    arrow_types.check_extension(table.schema.field("embedding"), where)
    width = _width(table.schema.field("embedding"), column, uri)
    raw = arrays.matrix(column, width=width, where=where)
    return arrays.finite_float32(raw, where=where, ids=ids)


def _width(field: pa.Field, column: pa.Array, uri: str) -> int | None:
    """Values of an embedding stored as bytes: from the field's metadata, or from its size.

    None for lists, whose type or values give the width.

    Raises:
        InputError: bytes that may be float16 or float32.
    """
    fixed = pa.types.is_fixed_size_binary(column.type)
    if not (fixed or arrow_types.is_bytes(column.type)):
        return None
    if (width := stored_width(field)) is not None:
        return width
    sizes = [column.type.byte_width] if fixed else pc.unique(pc.binary_length(column)).to_pylist()
    if sizes and all(size % 4 == 2 for size in sizes):
        return int(sizes[0]) // 2  # float16: the size is no multiple of 4 bytes
    raise InputError(
        f"{uri}, column 'embedding'",
        expected="a list of numbers, or bytes with a note of how many numbers they are",
        found=f"{column.type} without it, which may be float16 or float32; write a list, or note "
        f"it: raypq repack --features {uri} --id-column class_id --feature-column embedding "
        "--feature-width WIDTH --output FOLDER",
    )


def _bias(table: pa.Table, uri: str) -> NDArray[np.float64] | None:
    if "bias" not in table.column_names:
        return None
    column = arrays.whole(table.column("bias"))
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    where = f"{uri}, column 'bias'"
    if not numbers or column.null_count:
        raise InputError(
            where,
            expected="a number for each class",
            found=f"{column.type} with {column.null_count} nulls",
        )
    bias = column.cast(pa.float64()).to_numpy()
    if len(bad := np.flatnonzero(~np.isfinite(bias))):
        raise InputError(
            f"{where}, row {bad[0]}", expected="a finite number", found=str(bias[bad[0]])
        )
    return bias


def _flags(table: pa.Table, name: str, uri: str) -> NDArray[np.bool_] | None:
    """A column of booleans, or of numbers that are all 0 or 1."""
    if name not in table.column_names:
        return None
    column = arrays.whole(table.column(name))
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    numbers = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    where = f"{uri}, column '{name}'"
    if not (pa.types.is_boolean(values.type) or numbers) or values.null_count:
        raise InputError(
            where,
            expected="booleans (or 0 and 1) without nulls",
            found=f"{column.type} with {values.null_count} nulls; write it as "
            f"CAST({name} AS BOOLEAN)",
        )
    flags = values.to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((flags != 0) & (flags != 1))
    if len(wrong):
        raise InputError(f"{where}, row {wrong[0]}", expected="0 or 1", found=str(flags[wrong[0]]))
    return np.asarray(flags).astype(np.bool_)


def _counts(table: pa.Table, uri: str) -> NDArray[np.int64] | None:
    if "image_count" not in table.column_names:
        return None
    column = arrays.whole(table.column("image_count"))
    if not pa.types.is_integer(column.type) or column.null_count:
        raise InputError(
            f"{uri}, column 'image_count'",
            expected="integers without nulls",
            found=f"{column.type} with {column.null_count} nulls; write it as "
            "CAST(image_count AS BIGINT)",
        )
    if pa.types.is_uint64(column.type) and len(column) and pc.max(column).as_py() >= 1 << 63:
        found = str(pc.max(column))
        raise InputError(f"{uri}, column 'image_count'", expected="int64 counts", found=found)
    return column.cast(pa.int64()).to_numpy()
