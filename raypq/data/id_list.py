"""Lists of ids in text files, one a line (``--ids``, ``--query-ids``)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypq.data.storage import atomic_write, is_parquet, named_lines, read_named
from raypq.errors import InputError

_EXPECTED = "a text file of ids, one a line"
_INTEGER = re.compile(r"[+-]?[0-9]+")
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
# Nothing, spaces at either end as str.strip has them, or line breaks as str.splitlines has them.
_SPACE = r"[\s\pZ\x1c-\x1f\x{85}]"
_NO_LINE = rf"^$|^{_SPACE}|{_SPACE}$|[\r\n\v\f\x1c-\x1e\x{{85}}\x{{2028}}\x{{2029}}]"
_SHOWN_CHARACTERS = 200  # of an id in an error
_SHOWN_IDS = 5  # in a warning


@dataclass(frozen=True, kw_only=True)
class IdList:
    """The ids of a text file.

    Attributes:
        ids: without surrounding spaces. lines: the line number of each.
        digest: sha256 of the file's content.
    """

    uri: str
    ids: tuple[str, ...]
    lines: tuple[int, ...]
    digest: str

    @classmethod
    def read(cls, uri: str) -> IdList:
        """Reads a file, once; empty lines are skipped.

        Raises:
            InputError: no such file, a folder, not text, or no id in it.
        """
        content = read_named(uri, expected=_EXPECTED)
        if is_parquet(content):
            found = "a Parquet file; write its ids as text"
            raise InputError(uri, expected=_EXPECTED, found=found)
        named = list(named_lines(uri, content, expected=_EXPECTED))
        if not named:
            raise InputError(uri, expected="at least one id", found="none")
        lines, ids = zip(*named, strict=True)
        return cls(uri=uri, ids=ids, lines=lines, digest=hashlib.sha256(content).hexdigest())

    def of_type(self, id_type: pa.DataType) -> pa.Array:
        """The ids in the id type of a store; as int64, ``+5`` and ``005`` are the number 5.

        Raises:
            InputError: an id that int64 cannot hold, for a store of int64 ids.
        """
        if not pa.types.is_int64(id_type):
            return pa.array(self.ids, pa.string())
        numbers = [
            _int64(text, f"{self.uri}, line {line}")
            for text, line in zip(self.ids, self.lines, strict=True)
        ]
        return pa.array(numbers, pa.int64())

    def work_digest(self, id_type: pa.DataType) -> str:
        """The digest that names the ids in a work id.

        It is marked where an earlier raypq did not read all ids (numbers of 19 digits), so that
        results of that raypq are not reused.
        """
        long = pa.types.is_int64(id_type) and any(len(text.lstrip("-")) > 18 for text in self.ids)
        return f"{self.digest}:19 digits" if long else self.digest


def _int64(text: str, location: str) -> int:
    if (
        _INTEGER.fullmatch(text)
        and len(text) <= _SHOWN_CHARACTERS
        and _INT64_MIN <= int(text) <= _INT64_MAX
    ):
        return int(text)
    raise InputError(
        location, expected="an int64 id, as the store has", found=repr(text[:_SHOWN_CHARACTERS])
    )


def unknown_ids_message(uri: str, unknown: pa.Array, total: int, store: str) -> str:
    """A warning about ids of a list that a store lacks; ``total``: ids in the list."""
    shown = ", ".join(repr(name) for name in unknown[:_SHOWN_IDS].to_pylist())
    more = ", …" if len(unknown) > _SHOWN_IDS else ""
    return f"{uri}: {len(unknown):,} of {total:,} ids are not in {store}: {shown}{more}"


def check_lines(parts: Iterable[pa.Array], location: str) -> None:
    """Refuses ids that a line of a list cannot hold: ``IdList`` reads back what was written.

    Raises:
        InputError: an id that is empty, or has a line break or a space at either end.
    """
    for ids in parts:
        if not pa.types.is_string(ids.type):
            return
        odd = pc.match_substring_regex(ids, _NO_LINE)
        if pc.any(odd).as_py():
            raise InputError(
                location,
                expected="ids that a line of a list can hold: not empty, without line breaks and "
                "without spaces at either end (or no list: leave --keep-list (keep_list) and "
                "--drop-list (drop_list) out)",
                found=repr(ids.filter(odd)[0].as_py()),
            )


def write_list(uri: str, parts: Iterable[pa.Array]) -> dict[str, Any]:
    """Writes ids, one a line; returns the bytes and the sha256 of the file."""
    digest, size = hashlib.sha256(), 0
    with atomic_write(uri) as file:
        for ids in parts:
            if not len(ids):
                continue
            # One text of all ids: the values of an array are one after the other in memory.
            ended = pc.binary_join_element_wise(ids.cast(pa.string()), "", "\n")
            lines = bytes(ended.buffers()[2])[: pc.sum(pc.binary_length(ended)).as_py()]
            digest.update(lines)
            size += len(lines)
            file.write(lines)
    return {"bytes": size, "sha256": digest.hexdigest()}
