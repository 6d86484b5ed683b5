"""The commit protocol: a reader sees a complete version or the one before it.

A store is a folder with ``data/`` (files that are written once and never changed) and
``snapshots/<20 digits>.json`` (which files make up a version). A version exists from the moment
its JSON does, and that is created in one step that fails if the number is taken.
"""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from raypq.config import Settings
from raypq.data import format_version, json_text, stored
from raypq.data.storage import (
    Listed,
    create_once,
    digest,
    exists,
    is_local,
    join,
    list_files,
    list_names,
    local_path,
    open_parquet,
    read_bytes,
    sync_folder,
)
from raypq.data.store import sidecars
from raypq.data.store.names import Id, Stem
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.sidecars import Sidecars
from raypq.errors import ConflictError, DamagedError, IncompleteError, InputError

FORMAT: Literal[1] = 1
FOLDER = "snapshots"
IDS = "ids"  # of a summary
_NAME = re.compile(r"([0-9]{20})\.json")
_SECTIONS = ("drift", "night", "result", "rollout", "run", "worked")  # of a summary
_LAST = 10**20 - 1  # version that a name can hold
_TRIES = 64  # version numbers that other writers may take before us; each is their progress
_PAUSE = 0.005  # seconds, doubled up to 32 times, at random: writers that race get out of step

Kind = stored.Kind


class Quarantined(Settings):
    """A shard that was left out on request, and why; ``source`` and ``work`` say what was tried."""

    shard: Stem
    uri: str
    reason: str
    source: Source | None = None
    work: Id | None = None


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

    def files(self, store: str) -> set[str]:
        """Every file that the version names, shards and sidecars, by path below the store."""
        beside = (item.path for items in self.sidecars(store).values() for item in items)
        return {*(receipt.path for receipt in self.shards), *beside}

    def sidecars(self, store: str) -> Sidecars:
        """The sidecar files that the version names beside its shards, by kind.

        Raises:
            InputError: the summary names them in a way that cannot be read, or is not safe.
        """
        return sidecars.named(self.summary, _uri(store, self.version))


def place(version: int) -> str:
    """The path of a version's file below its store."""
    return f"{FOLDER}/{version:020d}.json"


def _uri(store: str, version: int) -> str:
    return join(store, place(version))


def versions(store: str) -> list[int]:
    """The versions that a store has, oldest first."""
    names = (_NAME.fullmatch(name) for name in list_names(join(store, FOLDER)))
    return [int(match[1]) for match in names if match]


def read(store: str, version: int | None = None) -> Snapshot:
    """Reads a version, the latest by default, and checks that its paths stay inside the store.

    Raises:
        InputError: no such store or version, a snapshot that cannot be read, an escaping path.
    """
    for _ in range(_TRIES):
        known = versions(store)
        if not known:
            raise InputError(store, expected="a store with a snapshot", found=_no_store(store))
        if version is not None and version not in known:
            raise InputError(store, expected=f"version {version}", found=f"versions {known[-5:]}")
        number = version if version is not None else known[-1]
        name = _uri(store, number)
        try:
            content = read_bytes(name)
            break
        except FileNotFoundError:  # gc took it after it was listed
            continue
    else:
        raise InputError(name, expected="a version that is listed", found="no such file")
    try:
        document = json_text.parse(content)
        _check_format(name, document)
        snapshot = Snapshot(**_with_ids(document))
    except (ValidationError, TypeError, ValueError) as error:
        raise InputError(
            name, expected=f"a snapshot of format {FORMAT}", found=_what(error)
        ) from None
    if snapshot.version != number:
        raise InputError(name, expected=f"version {number}", found=f"version {snapshot.version}")
    _check_summary(name, snapshot)
    _check_shards(store, name, snapshot)
    return snapshot


def _check_format(name: str, document: Any) -> None:
    found = document.get("format") if isinstance(document, dict) else None
    if format_version.is_newer(found, FORMAT):
        raise InputError(
            name,
            expected=f"a snapshot of format {FORMAT}",
            found=f"key 'format': {found}, {format_version.ADVICE}",
        )


def _check_summary(name: str, snapshot: Snapshot) -> None:
    """What other parts of raypq look into must be a section; the rest of a summary is free."""
    summary = snapshot.summary
    sections = {key: summary[key] for key in _SECTIONS if summary.get(key) is not None}
    if snapshot.kind == "predictions" and isinstance(models := summary.get("models"), dict):
        sections |= {f"models.{key}": value for key, value in models.items()}
    elif snapshot.kind == "predictions" and models is not None:
        sections["models"] = models
    for key, value in sections.items():
        if not isinstance(value, dict):
            raise InputError(
                f"{name}, key 'summary.{key}'",
                expected="a section of keys and values",
                found=type(value).__name__,
            )


def _check_shards(store: str, name: str, snapshot: Snapshot) -> None:
    """Every shard and every file once, and every path inside the store, links followed."""
    for what, several in (
        ("shard", [receipt.shard for receipt in snapshot.shards]),
        ("file", [receipt.path for receipt in snapshot.shards]),
    ):
        twice = [item for item, times in Counter(several).items() if times > 1]
        if twice:
            raise InputError(
                name, expected=f"each {what} once", found=f"'{twice[0]}' more than once"
            )
    folders: dict[str, str] = {}
    for path in snapshot.files(store):
        folders.setdefault(path.rpartition("/")[0], path)
    if is_local(store):
        root = local_path(store).resolve()
        for folder, path in folders.items():
            there = (root / folder).resolve()
            if not there.is_relative_to(root):
                raise InputError(
                    name, expected="paths inside the store", found=f"{path}, which is in {there}"
                )


# A key that an earlier raypq does not know keeps it from reading a version, and nobody could go
# back to it. So what receipts say since then of the type of ids stands in the summary, whose keys
# are free: the one type that a store has, and the shards of which it is not known.


def _ids_of(receipts: Sequence[Receipt]) -> dict[str, Any]:
    kinds = {receipt.ids for receipt in receipts} - {None}
    if len(kinds) != 1:
        return {}
    unknown = [receipt.shard for receipt in receipts if receipt.ids is None]
    return {IDS: {"type": kinds.pop(), **({"unknown": unknown} if unknown else {})}}


def _written(snapshot: Snapshot) -> bytes:
    document = snapshot.model_dump(mode="json")
    for receipt in document["shards"]:
        if receipt["ids"] is None or IDS in snapshot.summary:
            del receipt["ids"]
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def _with_ids(document: Any) -> Any:
    summary = document.get("summary") if isinstance(document, dict) else None
    noted = summary.get(IDS) if isinstance(summary, dict) else None
    if not isinstance(noted, dict) or not isinstance(document.get("shards"), list):
        return document
    unknown = set(noted.get("unknown", ()))
    for receipt in document["shards"]:
        if isinstance(receipt, dict) and receipt.get("shard") not in unknown:
            receipt.setdefault("ids", noted.get("type"))
    return document


def _what(error: Exception) -> str:
    if isinstance(error, ValidationError):
        if unknown := format_version.unknown_key(error):
            return unknown
        first = error.errors()[0]
        what = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
        return f"key '{'.'.join(str(part) for part in first['loc'])}': {what}"
    return str(error).splitlines()[0]


def _no_store(place: str) -> str:
    if exists(join(place, "model.json")):
        return "a model, not a store"
    return "a folder without versions" if exists(place) else "no such store"


def verify_sizes(store: str, snapshot: Snapshot) -> None:
    """Checks by one listing that every file of a snapshot is there in full.

    Raises:
        DamagedError: naming every file that is not.
    """
    stored.refuse(_named(store, snapshot), damaged(store, snapshot), stored.remedy(snapshot.kind))


def verify_content(store: str, snapshot: Snapshot) -> None:
    """Reads every file of a snapshot and checks its sha256 and its number of rows.

    Raises:
        DamagedError: naming every file that is not as it was written.
    """
    found = damaged(store, snapshot, content=True)
    stored.refuse(_named(store, snapshot), found, stored.remedy(snapshot.kind))


def _named(store: str, snapshot: Snapshot) -> str:
    return f"{store} version {snapshot.version}"


def damaged(store: str, snapshot: Snapshot, *, content: bool = False) -> list[InputError]:
    """The files of a snapshot that are missing or of another size; with ``content`` also those of
    another sha256 or number of rows."""
    files = list_files(join(store, "data"))
    found: list[InputError] = []
    for receipt in snapshot.shards:
        listed = files.get(receipt.path.removeprefix("data/"))
        try:
            _check_size(join(store, receipt.path), receipt, listed)
            if content:
                _check_content(join(store, receipt.path), receipt, snapshot.version)
        except InputError as error:
            found.append(error)
    return found


def _check_size(uri: str, receipt: Receipt, listed: Listed | None) -> None:
    if listed is None:
        raise DamagedError(uri, expected="a file of the version", found="no such file")
    if listed.size != receipt.bytes:
        raise DamagedError(uri, expected=f"{receipt.bytes} bytes", found=f"{listed.size} bytes")


def _check_content(uri: str, receipt: Receipt, version: int) -> None:
    found = digest(uri)
    if found != receipt.sha256:
        raise DamagedError(uri, expected=f"sha256 {receipt.sha256}", found=found)
    with open_parquet(uri, size=receipt.bytes) as file:
        rows = file.metadata.num_rows
    if rows != receipt.rows:
        raise DamagedError(
            uri, expected=f"{receipt.rows} rows, as {place(version)} says", found=f"{rows} rows"
        )


def _one_each(store: str, answered: Sequence[str], expected: Sequence[str]) -> None:
    """Refuses a version that would lack a shard, or hold one twice."""
    found, wanted = Counter(answered), Counter(expected)
    if found == wanted:
        return
    faults = {
        "without a receipt": sorted((wanted - found).keys()),
        "with more receipts than one, or that nobody asked for": sorted((found - wanted).keys()),
    }
    named = "; ".join(
        f"{len(shards)} {what}, such as {shards[0]!r}" for what, shards in faults.items() if shards
    )
    raise IncompleteError(f"{store}: nothing was committed: of {len(expected)} shards {named}")


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
        IncompleteError: not exactly one receipt, or one reason to leave it out, for each shard.
        ConflictError: other writers took every number that was tried, or the one that it had to
            be.
    """
    answered = [receipt.shard for receipt in receipts] + [item.shard for item in quarantined]
    _one_each(store, answered, expected)
    held = tuple(sorted(receipts, key=lambda receipt: receipt.shard))
    told = {key: value for key, value in (summary or {}).items() if key != IDS}
    nonce = uuid.uuid4().hex
    sync_folder(join(store, "data"))  # the files must outlive a power cut before anyone is told
    for attempt in range(_TRIES):
        known = versions(store)
        version = known[-1] + 1 if known else 1
        if version > _LAST:
            raise ConflictError(f"{_uri(store, known[-1])}: no run made this version; remove it")
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
            shards=held,
            quarantined=tuple(quarantined),
            summary={**told, **_ids_of(held)},
        )
        if create_once(_uri(store, version), _written(snapshot)):
            return snapshot
        time.sleep(random.uniform(0, _PAUSE * min(2**attempt, 32)))  # noqa: S311 - no secret
    raise ConflictError(f"{store}: {_TRIES} version numbers in a row were taken by other writers")
