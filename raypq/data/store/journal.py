"""The journal of a run: receipts of finished shards, which a rerun takes over.

``journal/<work>/<time>-<nonce>.json`` holds the receipts of shards finished since the file before
it; ``work`` names the model and the settings, so a receipt counts for a shard as long as the
shard itself is unchanged, whatever happened to its neighbours. A crash loses at most the last
``_SECONDS`` of receipts: their shards are done again, and their files are left to ``gc``.

A run joins its files, ``_JOINED`` to one, as they become many: what a crash leaves behind is soon
read. It removes the files that it wrote or read, once a version holds what is in them; those of
another run at work on the same store, under the same work, are not its own.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from pydantic import ValidationError

from raypq import console
from raypq.data import format_version, json_text
from raypq.data.storage import create_once, delete, join, list_files, list_names, read_bytes
from raypq.data.store import names, runs
from raypq.data.store.shard_writer import Receipt
from raypq.errors import ConflictError, InputError

FOLDER = "journal"
_SECONDS = 1.0  # between journal files
_MANY = 256  # receipts that are written down at once
_JOINED = 64  # files of one size that become one
_AT_ONCE = 16  # files that are read at a time
_LOOKS = 3  # at a folder whose files another run joins meanwhile
_NAME = re.compile(r"[0-9]{20}-[0-9a-f]{8}\.json")

T = TypeVar("T")


class Journal:
    """The receipts of one kind of work on one store.

    Raises:
        InputError: ``work`` is no name that a work may have.
    """

    def __init__(self, store: str, work: str) -> None:
        try:
            names.check_id(work)
        except ValueError as error:
            raise InputError(store, expected="the id of a work", found=str(error)) from None
        self._folder = join(store, FOLDER, work)
        self._store = store
        self._new: list[Receipt] = []
        self._last = time.monotonic()
        self._held: dict[str, Sequence[Receipt]] = {}  # by file: read or written, and there still
        self._written: list[list[str]] = [[]]  # own files by size, each joined from those before

    def read(self) -> list[Receipt]:
        """Every receipt written down, later ones last; a file that is damaged is left out."""
        found = _read_all(self._folder, self._receipts)
        self._held |= found
        return [receipt for name in sorted(found) for receipt in found[name]]

    def add(self, receipt: Receipt) -> None:
        """Notes a finished shard; written down within a second or so."""
        self._new.append(receipt)
        if len(self._new) >= _MANY or time.monotonic() - self._last >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes down what is new."""
        if self._new:
            self._write(self._new, size=0)
            self._new = []
            self._join(size=0)
        self._last = time.monotonic()

    def clear(self, held: Iterable[str] | None = None) -> None:
        """Removes the files that this journal read or wrote; called once a version holds them.

        Args:
            held: the shards of the version. A file with others in it stays: it is the work of
                another run, which may not be finished.
        """
        shards = None if held is None else set(held)
        for name, receipts in list(self._held.items()):
            if shards is None or all(receipt.shard in shards for receipt in receipts):
                self._remove(name)
        self._written = [[]]

    def _receipts(self, name: str, content: bytes) -> list[Receipt] | None:
        uri = join(self._folder, name)
        try:
            return [Receipt(**entry) for entry in json_text.parse(content)]
        except (ValueError, TypeError, ValidationError) as error:
            # What it recorded is done again; nothing else is lost.
            console.warn(f"{uri}: unreadable journal file, its shards are done again: "
                         f"{format_version.unknown_key(error) or error}")  # fmt: skip
            return None

    def _write(self, receipts: Sequence[Receipt], *, size: int) -> None:
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        content = json.dumps([receipt.model_dump(mode="json") for receipt in receipts])
        if not create_once(join(self._folder, name), content.encode()):
            raise ConflictError(f"{join(self._folder, name)}: written by somebody else")
        self._held[name] = list(receipts)
        while len(self._written) <= size:
            self._written.append([])
        self._written[size].append(name)

    def _join(self, *, size: int) -> None:
        """Makes one file of many; they go once it is there, so nothing is ever missing."""
        many = self._written[size]
        if len(many) < _JOINED:
            return
        self._write([receipt for name in many for receipt in self._held[name]], size=size + 1)
        for name in many:
            with suppress(OSError):  # then it is there twice, which does no harm
                self._remove(name)
        self._written[size] = []
        self._join(size=size + 1)

    def _remove(self, name: str) -> None:
        if _NAME.fullmatch(name):  # anything else is none that a journal wrote
            delete(join(self._folder, name))
        self._held.pop(name, None)


def files_named(store: str, works: Iterable[str]) -> set[str]:
    """The paths of all files that the journals of some works name; for ``gc``, which must not
    miss one where a file cannot be understood."""
    found: set[str] = set()
    for work in works:
        for paths in _read_all(join(store, FOLDER, work), _paths).values():
            found |= paths
    return found


def _paths(_: str, content: bytes) -> set[str] | None:
    try:
        return {str(entry["path"]) for entry in json_text.parse(content)}
    except (ValueError, TypeError, KeyError):
        return set(re.findall(r"data/[^\"]+", content.decode("utf-8", errors="replace")))


def _read_all(folder: str, understand: Callable[[str, bytes], T | None]) -> dict[str, T]:
    """What is understood of each file of a folder, by name. Another run may join its files
    meanwhile: the one that it makes of them is there before they are gone, so look again."""
    found: dict[str, T] = {}
    seen: set[str] = set()

    def read(name: str) -> bytes | None:
        try:
            return read_bytes(join(folder, name))
        except FileNotFoundError:
            return None

    for _ in range(_LOOKS):
        there = [
            name
            for name in list_names(folder)
            if not name.startswith(".") and name.endswith(".json") and name not in seen
        ]
        if not there:
            break
        with ThreadPoolExecutor(min(_AT_ONCE, len(there))) as pool:
            contents = list(pool.map(read, there))
        for name, content in zip(there, contents, strict=True):
            if content is None:
                continue
            seen.add(name)
            understood = understand(name, content)
            if understood is not None:
                found[name] = understood
        if all(content is not None for content in contents):
            break
    return found


def still_there(store: str, receipts: Iterable[Receipt]) -> list[Receipt]:
    """The receipts whose files are in the store in full; one listing, not one look each. What a
    gc is about to remove counts as gone."""
    receipts = list(receipts)
    if not receipts:
        return []
    removed = runs.removed_by_gc(store)
    files = list_files(join(store, "data"))
    return [
        receipt
        for receipt in receipts
        if (listed := files.get(receipt.path.removeprefix("data/")))
        and listed.size == receipt.bytes
        and receipt.path not in removed
    ]
