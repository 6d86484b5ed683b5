"""Lists of class_ids in files, and those of them that a class table lacks.

A list may be older than the table and name a class that was removed since. Such class_ids are left
out with a warning, unless the job refuses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.data import arrays, texts
from raypq.data.storage import is_parquet, named_lines, open_parquet, read_named
from raypq.data.storage.shards import SUFFIXES
from raypq.data.unknown_classes import SHOWN, short
from raypq.errors import InputError

Unknown = Literal["report", "refuse"]

_EXPECTED = "a file of class_ids: text in UTF-8, one a line, or Parquet"


@dataclass(frozen=True, kw_only=True)
class MissingClass:
    """A class_id of a list that a class table lacks.

    Attributes:
        line: its location in the list, such as ``line 3``. reason: why the table lacks it.
    """

    uri: str
    line: str
    class_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.line}: class_id {short(self.class_id)!r} {self.reason}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassSelection:
    """The classes that a split selects.

    Attributes:
        index: into the table, ascending. table: its URI.
        missing: class_ids of lists that the table lacks.
    """

    index: NDArray[np.int64]
    table: str
    missing: Sequence[MissingClass] = ()

    def refuse(self) -> None:
        """Refuses lists with class_ids that the table lacks.

        Raises:
            InputError: naming the first of them.
        """
        if self.missing:
            first = self.missing[0]
            raise InputError(
                f"{first.uri}, {first.line}",
                expected=f"a class_id of {self.table} (unknown_labels: refuse)",
                found=f"{short(first.class_id)!r}, which {first.reason} ({len(self.missing)} such "
                "in all); add the class to the table, remove the line, or set unknown_labels: "
                "report",
            )

    def warn(self) -> None:
        """Warns of the class_ids that are left out, list by list."""
        for uri, count in Counter(item.uri for item in self.missing).items():
            items = [str(item) for item in self.missing if item.uri == uri]
            more = f"; and {count - SHOWN} more" if count > SHOWN else ""
            console.warn(
                f"{uri}: {count} class_id(s) are left out: {'; '.join(items[:SHOWN])}{more}",
                classes=count,
            )

    def summary(self) -> dict[str, Any]:
        """The entry of a version's summary for class_ids that are left out; empty without any."""
        if not self.missing:
            return {}
        names = sorted({item.class_id for item in self.missing})
        return {"left_out_candidates": {"classes": len(names), "names": names[:SHOWN]}}


def read_class_list(uri: str) -> Iterator[tuple[str, str]]:
    """The class_ids of a file, each with its location: rows of Parquet, or lines of text.

    Raises:
        InputError: no such file, a folder, a null, or bytes that are not UTF-8.
    """
    content = read_named(uri, expected=_EXPECTED)
    if is_parquet(content) or uri.lower().endswith(SUFFIXES):
        with open_parquet(uri, content=content) as file:
            ids = class_ids(file.read(columns=["class_id"]), uri)
        yield from ((f"row {row}", str(class_id)) for row, class_id in enumerate(ids.to_pylist()))
        return
    for number, class_id in named_lines(uri, content, expected=_EXPECTED):
        yield f"line {number}", class_id


def class_ids(table: pa.Table, uri: str) -> pa.StringArray:
    """The column ``class_id``, as text.

    Raises:
        InputError: a null, or a type that class_ids cannot have.
    """
    where = f"{uri}, column 'class_id'"
    return texts.strings(arrays.whole(table.column("class_id")), where=where, nulls=False)


def check_distinct(uri: str, class_list: Sequence[tuple[str, str]]) -> None:
    """Refuses a list that names a class twice.

    Raises:
        InputError: naming the second line.
    """
    seen: set[str] = set()
    for line, class_id in class_list:
        if class_id in seen:
            raise InputError(
                f"{uri}, {line}",
                expected="each class_id once",
                found=f"a repeated class_id, {short(class_id)!r}",
            )
        seen.add(class_id)
