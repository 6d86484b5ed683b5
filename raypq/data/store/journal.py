"""The journal of a run: receipts of finished shards, which a rerun takes over.

``journal/<work>/<time>-<nonce>.json`` holds the receipts of the shards that were finished since the
previous file. ``work`` is the work id, so a receipt stays valid for as long as its shard is
unchanged, whatever happens to other shards. A crash loses at most the last ``_SECONDS`` of
receipts: their shards are done again, and their files are left to ``gc``.

A run merges its files, ``_MERGED`` into one, as they become many, so that a rerun reads few. It
removes the files that it wrote or read once a version holds their receipts, but not those of
another run of the same work.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import ValidationError

from raypq import console
from raypq.config.explain import first_problem, shown
from raypq.data import format_version
from raypq.data.storage import (
    create_once,
    delete,
    join,
    json_text,
    list_files,
    list_names,
    read_bytes,
)
from raypq.data.store import names, runs
from raypq.data.store.shard_writer import Receipt
from raypq.errors import ConflictError, InputError

FOLDER = "journal"
_SECONDS = 1.0  # between journal files
_MAX_PENDING = 256  # receipts that are not written yet
_MERGED = 64  # files of one level that are merged into one
_READERS = 16  # files that are read concurrently
_LISTINGS = 3  # of a folder whose files another run merges meanwhile
_NAME = re.compile(r"[0-9]{20}-[0-9a-f]{8}\.json")

T = TypeVar("T")


class Journal:
    """The receipts of one work id on one store.

    Raises:
        InputError: ``work`` is not a work id.
    """

    def __init__(self, store: str, work: str) -> None:
        try:
            names.check_id(work)
        except ValueError as error:
            raise InputError(store, expected="the id of a work", found=str(error)) from None
        self._folder = join(store, FOLDER, work)
        self._store = store
        self._pending: list[Receipt] = []
        self._last_flush = time.monotonic()
        self._files: dict[str, Sequence[Receipt]] = {}  # read or written, and not removed yet
        self._levels: list[list[str]] = [
            []
        ]  # own files; those of a level were merged from the last

    def read(self) -> list[Receipt]:
        """All receipts of the journal, later ones last; damaged files are left out."""
        receipts_of = _read_all(self._folder, self._receipts)
        self._files |= receipts_of
        return [receipt for name in sorted(receipts_of) for receipt in receipts_of[name]]

    def add(self, receipt: Receipt) -> None:
        """Adds the receipt of a finished shard; it is written within about a second."""
        self._pending.append(receipt)
        if len(self._pending) >= _MAX_PENDING or time.monotonic() - self._last_flush >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the pending receipts."""
        if self._pending:
            self._write(self._pending, level=0)
            self._pending = []
            self._merge(level=0)
        self._last_flush = time.monotonic()

    def clear(self, committed: Iterable[str] | None = None) -> None:
        """Removes the files that this journal read or wrote, once a version holds their receipts.

        Args:
            committed: the shards of the version. A file with other shards stays: it is of another
                run, which may not have ended.
        """
        shards = None if committed is None else set(committed)
        for name, receipts in list(self._files.items()):
            if shards is None or all(receipt.shard in shards for receipt in receipts):
                self._remove(name)
        self._levels = [[]]

    def _receipts(self, name: str, content: bytes) -> list[Receipt] | None:
        uri = join(self._folder, name)
        try:
            entries = json_text.parse(content)
            if not isinstance(entries, list):
                raise ValueError(f"expected a list of receipts, found {shown(entries)}")
            return [Receipt.model_validate(entry) for entry in entries]
        except ValueError as error:
            # Its shards are done again; nothing else is lost.
            console.warn(f"{uri}: unreadable journal file, its shards are done again: "
                         f"{_problem(error)}")  # fmt: skip
            return None

    def _write(self, receipts: Sequence[Receipt], *, level: int) -> None:
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        content = json.dumps([_entry(receipt) for receipt in receipts])
        if not create_once(join(self._folder, name), content.encode()):
            raise ConflictError(f"{join(self._folder, name)}: written by somebody else")
        self._files[name] = list(receipts)
        while len(self._levels) <= level:
            self._levels.append([])
        self._levels[level].append(name)

    def _merge(self, *, level: int) -> None:
        """Merges the files of a level; they are removed after the merged file has been written."""
        names_of_level = self._levels[level]
        if len(names_of_level) < _MERGED:
            return
        receipts = [receipt for name in names_of_level for receipt in self._files[name]]
        self._write(receipts, level=level + 1)
        for name in names_of_level:
            with suppress(OSError):  # its receipts then exist twice, which does no harm
                self._remove(name)
        self._levels[level] = []
        self._merge(level=level + 1)

    def _remove(self, name: str) -> None:
        if _NAME.fullmatch(name):  # no journal wrote a file of another name
            delete(join(self._folder, name))
        self._files.pop(name, None)


def _entry(receipt: Receipt) -> dict[str, Any]:
    entry = receipt.model_dump(mode="json")
    if receipt.counts is None:  # an earlier raypq does not know the key
        del entry["counts"]
    return entry


def _problem(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return format_version.unknown_key(error) or first_problem(Receipt, error)
    return str(error)


def files_named(store: str, works: Iterable[str]) -> set[str]:
    """The paths of all files that the journals of some work ids name.

    For ``gc``: paths in a file that cannot be parsed are included.
    """
    paths: set[str] = set()
    for work in works:
        for paths_of_file in _read_all(join(store, FOLDER, work), _paths).values():
            paths |= paths_of_file
    return paths


def _paths(_: str, content: bytes) -> set[str] | None:
    try:
        return {str(entry["path"]) for entry in json_text.parse(content)}
    except (ValueError, TypeError, KeyError):
        return set(re.findall(r"data/[^\"]+", content.decode("utf-8", errors="replace")))


def _read_all(folder: str, parse: Callable[[str, bytes], T | None]) -> dict[str, T]:
    """The parsed files of a folder, by name.

    Another run may merge its files meanwhile. It writes the merged file before it removes the
    others, so another listing has it.
    """
    parsed: dict[str, T] = {}
    seen: set[str] = set()

    def read(name: str) -> bytes | None:
        try:
            return read_bytes(join(folder, name))
        except FileNotFoundError:
            return None

    for _ in range(_LISTINGS):
        unread = [
            name
            for name in list_names(folder)
            if not name.startswith(".") and name.endswith(".json") and name not in seen
        ]
        if not unread:
            break
        with ThreadPoolExecutor(min(_READERS, len(unread))) as pool:
            contents = list(pool.map(read, unread))
        for name, content in zip(unread, contents, strict=True):
            if content is None:
                continue
            seen.add(name)
            value = parse(name, content)
            if value is not None:
                parsed[name] = value
        if all(content is not None for content in contents):
            break
    return parsed


def still_there(store: str, receipts: Iterable[Receipt]) -> list[Receipt]:
    """The receipts whose files exist with their sizes, by one listing.

    Files that an active gc will remove count as removed.
    """
    receipts = list(receipts)
    if not receipts:
        return []
    files = [(receipt.path, receipt.bytes) for receipt in receipts]
    present = are_present(store, files)
    return [receipt for receipt, is_there in zip(receipts, present, strict=True) if is_there]


def are_present(store: str, files: Iterable[tuple[str, int]]) -> list[bool]:
    """As ``still_there``, for paths and sizes of files."""
    removed = runs.removed_by_gc(store)
    listing = list_files(join(store, "data"))
    return [
        (listed := listing.get(path.removeprefix("data/"))) is not None
        and listed.size == size
        and path not in removed
        for path, size in files
    ]
