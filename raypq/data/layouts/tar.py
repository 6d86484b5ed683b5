"""Tar files of images: WebDataset shards, and ImageNet's with one class each.

Members whose paths agree up to the first dot of the last part are one row, as in WebDataset:
``a/7.jpg``, ``a/7.cls`` and ``a/7.json`` are row ``a/7``, which is its id. A column of the job is a
member with the column's name as its suffix (in any case, also after more dots: ``7.v2.cls``), or a
value of ``.json`` (or of ``7.meta.json``, if it alone has the value). The label is in ``.cls``
unless the job names another column; in a file such as ``n01440764.tar`` without it, the label is
the synset that the file is named by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any

import pyarrow as pa

from raypq import console
from raypq.config import Columns
from raypq.data.layouts.npy import read_exactly
from raypq.data.layouts.tar_members import Member, Row, members
from raypq.data.storage import Shard, json_text, open_bytes
from raypq.data.storage.walk import IMAGE_SUFFIXES
from raypq.errors import InputError

SUFFIX = ".tar"
_DEFAULT = Columns()
_CLASS = "cls"  # suffix of labels in WebDataset
_JSON = "json"
_SYNSET = re.compile(r"n\d{8}")
_MAX_TEXT = 1 << 20  # bytes of a member with text
_GROUP_ROWS = 4096
_BATCH_BYTES = 64 << 20  # of the images in a batch


class TarSource:
    """The rows of a tar file.

    Raises:
        InputError: two images of one key, or two members of one suffix.
        DamagedError: the file is no tar, or is cut off.
    """

    def __init__(self, file: IO[bytes], size: int, uri: str, columns: Columns) -> None:
        self._file, self.uri, self._columns = file, uri, columns
        self._rows, hidden = _rows(file, size, uri)
        self._warn_of_orphans(hidden)
        stem = uri.rpartition("/")[2][: -len(SUFFIX)]
        self._synset = stem if _SYNSET.fullmatch(stem) else None
        self._label = self._has_label()

    def _has_label(self) -> bool:
        name = self._columns.label
        if name == _DEFAULT.label and self._synset is not None:
            return True
        for suffix in _suffixes(name):
            found = [row.find(suffix) for row in self._rows]
            self._warn_of_ambiguous([members for members in found if len(members) > 1], suffix)
            if any(len(members) == 1 for members in found):
                return True
        return any(self._in_json(row, name) is not None for row in self._rows)

    def _warn_of_orphans(self, hidden: Sequence[str]) -> None:
        """Warns of images without a key, and of keys without an image."""
        if hidden:
            _warn_once(
                f"{self.uri}: skipped {len(hidden)} image(s) whose name starts with a dot, such as "
                f"{hidden[0]}: they have no key (a path up to the first dot of its last part)"
            )
        if alone := [row for row in self._rows if row.image is None]:
            _warn_once(
                f"{self.uri}: {len(alone)} key(s) without an image, such as {alone[0].key!r} "
                f"(members {', '.join(self._names(alone[0]))})"
            )

    def _warn_of_ambiguous(self, several: Sequence[Sequence[Member]], suffix: str) -> None:
        if several:
            names = " and ".join(member.name for member in several[0][:2])
            other = several[0][0].name.rpartition("/")[2].partition(".")[2]
            _warn_once(
                f"{self.uri}: {len(several)} key(s) have several members that end with .{suffix} "
                f"(in any case), such as {names}; none of them is read: keep one, or name the "
                f"column by its whole suffix, such as {other} (--label-column, columns.label)"
            )

    @property
    def schema(self) -> pa.Schema:
        """Id, image, and the label if there is one."""
        columns = self._columns
        fields = [
            pa.field(columns.id, pa.string(), nullable=False),
            pa.field(columns.feature, pa.large_binary()),
        ]
        if self._label:
            fields.append(pa.field(columns.label, pa.string()))
        return pa.schema(fields)

    @property
    def group_rows(self) -> Sequence[int]:
        """Blocks of rows."""
        full, rest = divmod(len(self._rows), _GROUP_ROWS)
        return [_GROUP_ROWS] * full + [rest] * bool(rest)

    def batches(
        self, columns: Sequence[str] | None, size: int, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        """See ``Source``; the image of a key without one is null."""
        first = 0 if group is None else group * _GROUP_ROWS
        last = len(self._rows) if group is None else first + self.group_rows[group]
        for start, end in self._slices(first, last, size):
            yield self._batch(columns, start, end)

    def take(self, columns: Sequence[str] | None, rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """See ``Source``; reads the members of these rows alone."""
        return (self._batch(columns, row, row + 1) for row in rows)

    def _batch(self, columns: Sequence[str] | None, start: int, end: int) -> pa.RecordBatch:
        schema, rows = self.schema, self._rows[start:end]
        make: dict[str, Callable[[Row], Any]] = {
            self._columns.id: self._id,
            self._columns.feature: self._image,
            self._columns.label: self._label_of,
        }
        fields = [schema.field(name) for name in (schema.names if columns is None else columns)]
        values = [pa.array([make[item.name](row) for row in rows], item.type) for item in fields]
        return pa.RecordBatch.from_arrays(values, schema=pa.schema(fields))

    def _slices(self, first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
        """Rows of each batch: up to ``size``, with images of up to ``_BATCH_BYTES``."""
        start, held = first, 0
        for row in range(first, last):
            image = self._rows[row].image
            own = image.size if image else 0
            if row > start and (row - start == size or held + own > _BATCH_BYTES):
                yield start, row
                start, held = row, 0
            held += own
        if start < last:
            yield start, last

    def row_bytes(self, columns: Sequence[str] | None) -> float:
        """See ``Source``."""
        images = sum(row.image.size for row in self._rows if row.image)
        return images / max(len(self._rows), 1)

    def _id(self, row: Row) -> str:
        name = self._columns.id
        if name == _DEFAULT.id:
            return row.key
        value = self._value(row, name)
        if value is None:
            raise InputError(
                f"{self.uri}, key {row.key!r}",
                expected=f"a member .{name}, or a value '{name}' in .json (--id-column, "
                "columns.id)",
                found=f"members {', '.join(self._names(row))}",
            )
        return value

    def _image(self, row: Row) -> bytes | None:
        return None if row.image is None else self._read(row.image)

    def _label_of(self, row: Row) -> str | None:
        value = self._value(row, self._columns.label)
        if value is None and self._columns.label == _DEFAULT.label:
            return self._synset
        return value

    def _value(self, row: Row, name: str) -> str | None:
        """The value of a column: the text of a member, or a value of ``.json``."""
        for suffix in _suffixes(name):
            members = row.find(suffix)
            if len(members) == 1:
                return self._text(members[0]).strip() or None
        return self._in_json(row, name)

    def _in_json(self, row: Row, name: str) -> str | None:
        """The value in ``7.json``, or in the one member that ends with ``.json`` and has it."""
        own = row.own(_JSON)
        found = [(member, self._json_value(member, name, any_type=not own))
                 for member in own or row.find(_JSON)]  # fmt: skip
        found = [(member, value) for member, value in found if value is not None]
        if len(found) > 1:
            _warn_once(
                f"{self.uri}: several members of a key have a value '{name}', such as "
                f"{found[0][0].name} and {found[1][0].name}; none of them is read: keep one"
            )
            return None
        return found[0][1] if found else None

    def _json_value(self, member: Member, name: str, *, any_type: bool) -> str | None:
        """A value of a member.

        Args:
            any_type: the member may be something other than an object with values.
        """
        where = f"{self.uri}, member {member.name}"
        try:
            value = json_text.parse(self._text(member))
        except ValueError as error:
            raise InputError(where, expected="a JSON object", found=str(error)) from None
        if not isinstance(value, dict):
            if any_type:
                return None
            raise InputError(where, expected="a JSON object", found=f"a {type(value).__name__}")
        for part in [name] if name in value else name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool | float | list | dict):
            raise InputError(
                f"{where}, value '{name}'", expected="text or an integer", found=repr(value)[:80]
            )
        return None if value is None else str(value)

    def _text(self, member: Member) -> str:
        where = f"{self.uri}, member {member.name}"
        if member.size > _MAX_TEXT:
            raise InputError(
                where, expected=f"text of at most {_MAX_TEXT} bytes", found=f"{member.size} bytes"
            )
        try:
            return self._read(member).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(where, expected="text in UTF-8", found=str(error)) from None

    def _read(self, member: Member) -> bytes:
        self._file.seek(member.start)
        return read_exactly(self._file, member.size, f"{self.uri}, member {member.name}")

    def _names(self, row: Row) -> list[str]:
        images = [row.image.name] if row.image else []
        return [*images, *(member.name for member in row.others.values())]


def _suffixes(name: str) -> tuple[str, ...]:
    """The suffixes of members that hold a column's values."""
    return (_CLASS, name) if name == _DEFAULT.label else (name,)


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    """Warns once a process; a file is opened several times."""
    console.warn(message)


def _rows(file: IO[bytes], size: int, uri: str) -> tuple[list[Row], list[str]]:
    """The rows of a tar file, in the order of their first members, and the names of images that
    have no key."""
    rows: dict[str, Row] = {}
    hidden: list[str] = []
    for member in members(file, size, uri):
        folder, slash, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if not stem or "__MACOSX" in folder.split("/"):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._"):
                hidden.append(member.name)
            continue  # .DS_Store, ._7.jpg: files of an operating system
        key = f"{folder}{slash}{stem}"
        row = rows.setdefault(key, Row(key))
        if f".{suffix.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES:
            if row.image is not None:
                raise _twice(uri, key, row.image, member)
            row.image = member
        else:
            if suffix in row.others:
                raise _twice(uri, key, row.others[suffix], member)
            row.others[suffix] = member
    return list(rows.values()), hidden


def _twice(uri: str, key: str, first: Member, second: Member) -> InputError:
    return InputError(
        f"{uri}, key {key!r}",
        expected="one image, and one member of each suffix (a key is a path up to the first dot of "
        "its last part)",
        found=f"members {first.name} and {second.name}",
    )


@contextmanager
def open_source(shard: Shard, columns: Columns) -> Iterator[TarSource]:
    """Opens a tar file.

    Raises:
        InputError, DamagedError: see ``TarSource``.
    """
    with open_bytes(shard.uri) as (file, size):
        yield TarSource(file, size, shard.uri, columns)
