"""Class_ids that a file lists, and those of them that a class table lacks.

A list outlives the table that it was made for: a class that was retired from the table is still
in it. So such a class_id is left out by name, unless the job refuses it.
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
from raypq.data import arrays
from raypq.data.storage import is_parquet, named_lines, open_parquet, read_named
from raypq.data.storage.shards import SUFFIXES
from raypq.data.unknown_classes import SHOWN, short
from raypq.errors import InputError

Unknown = Literal["report", "refuse"]

_EXPECTED = "a file of class_ids: text in UTF-8, one a line, or Parquet"


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """A class_id of a list that a class table lacks.

    Attributes:
        place: of the list, such as ``line 3``. why: what the table says of it.
    """

    uri: str
    place: str
    class_id: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: class_id {short(self.class_id)!r} {self.why}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """Classes that a split names.

    Attributes:
        index: into the table, ascending. table: its URI. lacking: what lists name beside them.
    """

    index: NDArray[np.int64]
    table: str
    lacking: Sequence[Lacking] = ()

    def refuse(self) -> None:
        """Refuses lists that name more than the table has.

        Raises:
            InputError: naming the first such line.
        """
        if self.lacking:
            first = self.lacking[0]
            raise InputError(
                f"{first.uri}, {first.place}",
                expected=f"a class_id of {self.table} (unknown_labels: refuse)",
                found=f"{short(first.class_id)!r}, which {first.why} ({len(self.lacking)} such in "
                "all); add the class to the table, remove the line, or set unknown_labels: report",
            )

    def warn(self) -> None:
        """Names, list by list, what is left out."""
        for uri, count in Counter(item.uri for item in self.lacking).items():
            found = [str(item) for item in self.lacking if item.uri == uri]
            more = f"; and {count - SHOWN} more" if count > SHOWN else ""
            console.warn(
                f"{uri}: {count} class_id(s) are left out: {'; '.join(found[:SHOWN])}{more}",
                classes=count,
            )

    def told(self) -> dict[str, Any]:
        """What a version's summary says of what is left out; nothing where that is nothing."""
        if not self.lacking:
            return {}
        names = sorted({item.class_id for item in self.lacking})
        return {"left_out_candidates": {"classes": len(names), "names": names[:SHOWN]}}


def read_listed(uri: str) -> Iterator[tuple[str, str]]:
    """The class_ids of a file, each with its place: of that column, or the lines of a text.

    Raises:
        InputError: no such file, a folder, a null, or bytes that are no text.
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
    return arrays.strings(arrays.whole(table.column("class_id")), where=where, nulls=False)


def check_distinct(uri: str, listed: Sequence[tuple[str, str]]) -> None:
    """Refuses a list that names a class twice.

    Raises:
        InputError: naming the second place.
    """
    seen: set[str] = set()
    for place, class_id in listed:
        if class_id in seen:
            raise InputError(
                f"{uri}, {place}",
                expected="each class_id once",
                found=f"a repeated class_id, {short(class_id)!r}",
            )
        seen.add(class_id)
