"""Files of class names: text, synsets of WordNet as ImageNet publishes them, or Parquet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raypq import console
from raypq.data import arrays, texts
from raypq.data.class_list import class_ids
from raypq.data.layouts import arrow_types
from raypq.data.storage import is_parquet, named_lines, open_parquet, read_named
from raypq.errors import InputError

_SHOWN = 5  # names in a warning


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """T classes with their names, in file order.

    Attributes:
        ids: class_ids, unique. names: one or more of each class.
        others: further columns of a Parquet file, to be kept.
    """

    uri: str
    ids: Sequence[str]
    names: Sequence[Sequence[str]]
    others: pa.Table | None = None

    def warn_of_equal_names(self) -> None:
        """Warns of classes with the same names, whose scores are equal."""
        owners: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for class_id, names in zip(self.ids, self.names, strict=True):
            owners[tuple(names)].append(class_id)
        equal = [(names, ids) for names, ids in owners.items() if len(ids) > 1]
        if equal:
            shown = "; ".join(f"{', '.join(ids)}: {names[0]!r}" for names, ids in equal[:_SHOWN])
            more = "; …" if len(equal) > _SHOWN else ""
            console.warn(
                f"{self.uri}: {len(equal)} name(s) of several classes ({shown}{more}): their "
                "scores are equal; give them names that differ"
            )


def read_names(uri: str) -> ClassNames:
    """Reads names: lines of text ``name``, or ``class_id``, tab, ``name`` and any further names
    after tabs; or Parquet with ``class_id`` and ``name`` (text or lists of it). A line without a
    tab is both class_id and name.

    Raises:
        InputError: no names, an empty one, or a class_id that repeats.
    """
    content = read_named(uri, expected="a file of class names")
    if is_parquet(content):
        return _read_table(uri, content)
    ids, names = [], []
    lines = dict[str, int]()
    for number, line in named_lines(uri, content, expected="class names, one a line", strip=False):
        class_id, *rest = (part.strip() for part in line.split("\t"))
        _add(uri, number, class_id, rest or [class_id], lines)
        ids.append(class_id)
        names.append(rest or [class_id])
    return _checked(ClassNames(uri=uri, ids=ids, names=names))


def read_synsets(uri: str) -> ClassNames:
    """Reads synsets, such as ``n01440764 tench, Tinca tinca``: a class_id and its names.

    Raises:
        InputError: a line of another form, or a class_id that repeats.
    """
    content = read_named(uri, expected="a file of synsets")
    ids, names = [], []
    lines = dict[str, int]()
    for number, line in named_lines(uri, content, expected="synsets, one a line"):
        class_id, _, rest = line.replace("\t", " ").partition(" ")
        several = [part.strip() for part in rest.split(",")]
        _add(uri, number, class_id, several, lines)
        ids.append(class_id)
        names.append(several)
    return _checked(ClassNames(uri=uri, ids=ids, names=names))


def _add(uri: str, number: int, class_id: str, names: Sequence[str], lines: dict[str, int]) -> None:
    """Checks a line and notes its number.

    Raises:
        InputError: an empty class_id or name, or a class_id of an earlier line.
    """
    where = f"{uri}, line {number}"
    if not class_id or not all(names):
        raise InputError(
            where,
            expected="a class_id and at least one name",
            found=f"class_id {class_id!r} and names {list(names)}",
        )
    if class_id in lines:
        raise InputError(
            where,
            expected="every class once",
            found=f"{class_id!r}, which is in line {lines[class_id]}, too",
        )
    lines[class_id] = number


def _checked(names: ClassNames) -> ClassNames:
    if not names.ids:
        raise InputError(names.uri, expected="at least one class name", found="none")
    names.warn_of_equal_names()
    return names


def _read_table(uri: str, content: bytes) -> ClassNames:
    with open_parquet(uri, content=content) as file:
        for column in ("class_id", "name"):
            if not file.has(column):
                raise InputError(
                    uri,
                    expected=f"a column '{column}'",
                    found=f"columns {', '.join(file.schema_arrow.names)}",
                )
        table = file.read(columns=None)
    table = table.cast(arrow_types.without_views(table.schema))
    ids = class_ids(table, uri)
    repeated = [item["values"] for item in pc.value_counts(ids) if item["counts"].as_py() > 1]
    if repeated:
        raise InputError(
            uri,
            expected="every class once",
            found=f"{len(repeated)} class_ids repeated, such as {repeated[0].as_py()!r}",
        )
    column = arrays.whole(table.column("name"))
    where = f"{uri}, column 'name'"
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if is_list:
        names = column.to_pylist()
    else:
        names = [[name] for name in texts.strings(column, where=where, nulls=False).to_pylist()]
    for row, several in enumerate(names):
        plain = several and all(isinstance(name, str) and name.strip() for name in several)
        if not plain:
            raise InputError(f"{where}, row {row}", expected="a name", found=repr(several))
    old = ("class_id", "embedding", "prototypes")  # vectors of the encoder before
    kept = [name for name in table.column_names if name not in old]
    return _checked(
        ClassNames(uri=uri, ids=ids.to_pylist(), names=names, others=table.select(kept))
    )
