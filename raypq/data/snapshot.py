"""The commit protocol: a reader sees a complete version or the one before it.

A store is a folder with ``data/`` (files that are written once and never changed) and
``snapshots/<20 digits>.json`` (which files make up a version). A version exists from the moment
its JSON does, and that is created in one step that fails if the number is taken.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, ValidationError

from raypq.config import Settings
from raypq.data.output import Receipt, Source
from raypq.data.storage import (
    create,
    digest,
    exists,
    join,
    list_files,
    list_names,
    read_bytes,
    sync_folder,
)
from raypq.errors import ConflictError, InputError

FORMAT: Literal[1] = 1
_NAME = re.compile(r"^(\d{20})\.json$")
_TRIES = 16

Kind = Literal["codes", "predictions"]


class Quarantined(Settings):
    """A shard that was left out on request, and why; ``source`` and ``work`` say what was tried."""

    shard: str
    uri: str
    reason: str
    source: Source | None = None
    work: str | None = None


class Snapshot(Settings):
    """One version of a store."""

    format: Literal[1] = FORMAT
    kind: Kind
    version: int
    parent: int | None
    nonce: str
    run_id: str
    created: str
    shards: tuple[Receipt, ...]
    quarantined: tuple[Quarantined, ...] = ()
    summary: dict[str, Any] = Field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(receipt.rows for receipt in self.shards)


def versions(store: str) -> list[int]:
    """The versions that a store has, oldest first."""
    names = (_NAME.match(name) for name in list_names(join(store, "snapshots")))
    return [int(match[1]) for match in names if match]


def read(store: str, version: int | None = None) -> Snapshot:
    """Reads a version, the latest by default, and checks that its paths stay inside the store.

    Raises:
        InputError: no such store or version, a snapshot that cannot be read, an escaping path.
    """
    known = versions(store)
    if not known:
        there = "an empty folder" if exists(store) else "no such store"
        raise InputError(store, expected="a store with a snapshot", found=there)
    if version is not None and version not in known:
        raise InputError(store, expected=f"version {version}", found=f"versions {known[-5:]}")
    name = join(store, "snapshots", f"{version if version is not None else known[-1]:020d}.json")
    number = version if version is not None else known[-1]
    try:
        snapshot = Snapshot(**json.loads(read_bytes(name)))
    except (ValidationError, TypeError, ValueError) as error:
        raise InputError(
            name, expected=f"a snapshot of format {FORMAT}", found=_what(error)
        ) from None
    if snapshot.version != number:
        raise InputError(name, expected=f"version {number}", found=f"version {snapshot.version}")
    for receipt in snapshot.shards:
        place = PurePosixPath(receipt.path)
        if place.is_absolute() or ".." in place.parts or "://" in receipt.path:
            raise InputError(name, expected="paths inside the store", found=receipt.path)
    return snapshot


def _what(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"key '{'.'.join(str(part) for part in first['loc'])}': {first['msg']}"
    return str(error).splitlines()[0]


def verify_sizes(store: str, snapshot: Snapshot) -> None:
    """Checks by one listing that every file of a snapshot is there in full.

    Raises:
        InputError: naming the file.
    """
    files = list_files(join(store, "data"))
    for receipt in snapshot.shards:
        uri = join(store, receipt.path)
        listed = files.get(receipt.path.removeprefix("data/"))
        if listed is None:
            raise InputError(uri, expected="a file of the snapshot", found="no such file")
        if listed.size != receipt.bytes:
            raise InputError(uri, expected=f"{receipt.bytes} bytes", found=f"{listed.size} bytes")


def verify_content(store: str, snapshot: Snapshot) -> None:
    """Reads every file of a snapshot and checks its sha256.

    Raises:
        InputError: naming the file.
    """
    verify_sizes(store, snapshot)
    for receipt in snapshot.shards:
        uri = join(store, receipt.path)
        found = digest(uri)
        if found != receipt.sha256:
            raise InputError(uri, expected=f"sha256 {receipt.sha256}", found=found)


def commit(
    store: str,
    *,
    kind: Kind,
    run_id: str,
    expected: Sequence[str],
    receipts: Sequence[Receipt],
    quarantined: Sequence[Quarantined] = (),
    summary: dict[str, Any] | None = None,
    follows: int | None = None,
    guard: Callable[[], None] | None = None,
) -> Snapshot:
    """Makes the next version of exactly these shards.

    Args:
        expected: the stem of every shard that the version must hold or name as quarantined.
        follows: the version that this one must come right after (0: it must be the first).
        guard: called just before each attempt; raises where the writer may no longer commit.

    Raises:
        ConflictError: other writers took every number that was tried, or the one that it had to
            be.
    """
    answered = [receipt.shard for receipt in receipts] + [item.shard for item in quarantined]
    assert sorted(answered) == sorted(expected), "a shard without a receipt, or with two"
    nonce = uuid.uuid4().hex
    sync_folder(join(store, "data"))  # the files must outlive a power cut before anyone is told
    for _ in range(_TRIES):
        known = versions(store)
        version = known[-1] + 1 if known else 1
        if follows is not None and version != follows + 1:
            raise ConflictError(
                f"{store}: version {version - 1} was committed by another run while this one "
                f"worked on what follows version {follows}; run it again (finished shards are kept)"
            )
        if guard is not None:
            guard()
        snapshot = Snapshot(
            kind=kind,
            version=version,
            parent=known[-1] if known else None,
            nonce=nonce,
            run_id=run_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            shards=tuple(sorted(receipts, key=lambda receipt: receipt.shard)),
            quarantined=tuple(quarantined),
            summary=summary or {},
        )
        name = join(store, "snapshots", f"{version:020d}.json")
        try:
            create(name, snapshot.model_dump_json(indent=1).encode())
        except FileExistsError:
            # Taken: by another writer, or by our own request whose answer was lost.
            if read(store, version).nonce != nonce:
                continue
        except OSError:
            # No answer, or a server's error: what is there now tells whether it was done.
            if version not in versions(store) or read(store, version).nonce != nonce:
                raise
        return snapshot
    raise ConflictError(f"{store}: {_TRIES} version numbers in a row were taken by other writers")
