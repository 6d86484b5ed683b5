"""The commit protocol: a reader sees a complete version or the one before it.

A store is a folder with ``data/`` (files that are written once and never changed) and
``snapshots/<20 digits>.json`` (the list of the files of a version). A version exists from the
moment its JSON file does, which is created in one step that fails if the number is taken.

A version of up to ``MOST_INLINE`` shards lists their receipts itself (format 1, which early raypq
versions read). A larger one names manifests, which hold them (format 2).
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

import pyarrow.compute as pc
from pydantic import Field, ValidationError

from raypq import console
from raypq.config import Settings
from raypq.config.explain import first_problem, shown
from raypq.data import format_version, stored
from raypq.data.storage import (
    Listed,
    create_once,
    digest,
    exists,
    is_local,
    join,
    json_text,
    list_files,
    list_names,
    local_path,
    open_parquet,
    read_bytes,
    sync_folder,
)
from raypq.data.store import manifest, manifest_tree, runs, shard_writer, sidecars
from raypq.data.store.manifest import Manifest, Totals
from raypq.data.store.manifest_checks import repeated
from raypq.data.store.names import Id, Stem
from raypq.data.store.receipts import Receipts, values_of
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.sidecars import Sidecars
from raypq.errors import ConflictError, DamagedError, IncompleteError, InputError

FORMAT = 2  # the newest
MOST_INLINE = 256  # shards whose receipts a version holds itself
FOLDER = "snapshots"
IDS = "ids"  # key of a summary
_NAME = re.compile(r"([0-9]{20})\.json")
_SECTIONS = ("drift", "night", "result", "rollout", "run", "worked")  # keys of a summary
_MAX_VERSION = 10**20 - 1  # that a name can hold
_TRIES = 64  # version numbers that other writers may take before us; each is their progress
_PAUSE = 0.005  # seconds; random back-off of racing writers, up to 32 times as long

Kind = stored.Kind


class Quarantined(Settings):
    """A shard that was left out on request, and why.

    Attributes:
        source, work: the version of the shard that was tried, and the work id.
    """

    shard: Stem
    uri: str
    reason: str
    source: Source | None = None
    work: Id | None = None


class _Version(Settings):
    """What both formats of a version have."""

    kind: Kind
    version: int
    parent: int | None
    nonce: str
    run_id: str
    created: str
    quarantined: tuple[Quarantined, ...] = ()
    summary: dict[str, Any] = Field(default_factory=dict)


class _Inline(_Version):
    """A document of format 1."""

    format: Literal[1] = 1
    shards: tuple[Receipt, ...]


class _Named(_Version):
    """A document of format 2."""

    format: Literal[2]
    manifests: tuple[Manifest, ...]
    totals: Totals


class Snapshot(_Version):
    """One version of a store."""

    format: Literal[1, 2] = 1
    shards: Receipts

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return self.shards.rows

    def files(self, store: str) -> set[str]:
        """Paths below the store of all files of the version: shards, manifests and sidecars."""
        return {*self.shards.column("path").to_pylist(), *self.other_files(store)}

    def other_files(self, store: str) -> set[str]:
        """Paths below the store of the version's manifests and sidecars."""
        sidecar_paths = (item.path for items in self.sidecars(store).values() for item in items)
        return {*(item.path for item in self.shards.manifests), *sidecar_paths}

    def sidecars(self, store: str) -> Sidecars:
        """The sidecars that the version names, by kind.

        Raises:
            InputError: their entry in the summary cannot be read, or is not safe.
        """
        return sidecars.from_summary(self.summary, _uri(store, self.version))


def path_of(version: int) -> str:
    """The path of a version's file below its store."""
    return f"{FOLDER}/{version:020d}.json"


def _uri(store: str, version: int) -> str:
    return join(store, path_of(version))


def versions(store: str) -> list[int]:
    """The versions of a store, oldest first."""
    matches = (_NAME.fullmatch(name) for name in list_names(join(store, FOLDER)))
    return [int(match[1]) for match in matches if match]


def read(store: str, version: int | None = None) -> Snapshot:
    """Reads a version, the latest by default, and checks that its paths stay inside the store.

    Raises:
        InputError: no such store or version, a snapshot that cannot be read, or a path that leads
            out of the store.
    """
    for _ in range(_TRIES):
        known = versions(store)
        if not known:
            raise InputError(store, expected="a store with a snapshot", found=_no_store(store))
        if version is not None and version not in known:
            raise InputError(store, expected=f"version {version}", found=f"versions {known[-5:]}")
        number = version if version is not None else known[-1]
        uri = _uri(store, number)
        try:
            content = read_bytes(uri)
            break
        except FileNotFoundError:  # gc removed it after it was listed
            continue
    else:
        raise InputError(uri, expected="a version that is listed", found="no such file")
    try:
        document = json_text.parse(content)
        _check_format(uri, document)
        snapshot = _parsed(store, document)
    except (ValidationError, TypeError, ValueError) as error:
        raise InputError(
            uri, expected=f"a snapshot of format 1 or {FORMAT}", found=_reason(error)
        ) from None
    if snapshot.version != number:
        raise InputError(uri, expected=f"version {number}", found=f"version {snapshot.version}")
    _check_summary(uri, snapshot)
    _check_shards(store, uri, snapshot)
    return snapshot


def _parsed(store: str, document: Any) -> Snapshot:
    if isinstance(document, dict) and document.get("format") == FORMAT:
        named = _Named.model_validate(document)
        shards = Receipts.stored(store, named.manifests, named.totals)
        return Snapshot(**_fields(named, without={"manifests", "totals"}), shards=shards)
    inline = _Inline.model_validate(_with_ids(document))
    return Snapshot(**_fields(inline, without={"shards"}), shards=Receipts.of(inline.shards))


def _fields(document: _Version, *, without: set[str]) -> dict[str, Any]:
    return {name: value for name, value in document if name not in without}


def _check_format(uri: str, document: Any) -> None:
    number = document.get("format") if isinstance(document, dict) else None
    if format_version.is_newer(number, FORMAT):
        raise InputError(
            uri,
            expected=f"a snapshot of format {FORMAT}",
            found=f"key 'format': {number}, {format_version.ADVICE}",
        )


def _check_summary(uri: str, snapshot: Snapshot) -> None:
    """Checks the keys that raypq reads: each is a section. The rest of a summary is free."""
    summary = snapshot.summary
    sections = {key: summary[key] for key in _SECTIONS if summary.get(key) is not None}
    if snapshot.kind == "predictions" and isinstance(models := summary.get("models"), dict):
        sections |= {f"models.{key}": value for key, value in models.items()}
    elif snapshot.kind == "predictions" and models is not None:
        sections["models"] = models
    for key, value in sections.items():
        if not isinstance(value, dict):
            raise InputError(
                f"{uri}, key 'summary.{key}'",
                expected="a section of keys and values",
                found=type(value).__name__,
            )


def _check_shards(store: str, uri: str, snapshot: Snapshot) -> None:
    """Checks that shards and files are distinct, and paths inside the store, links resolved.

    The shards of manifests are checked when these are read.
    """
    paths = snapshot.other_files(store)
    if snapshot.shards.manifests:
        listed = {"file": [item.path for item in snapshot.shards.manifests]}
        paths.add(f"{shard_writer.FOLDER}/")
    else:
        listed = {
            "shard": [receipt.shard for receipt in snapshot.shards],
            "file": [receipt.path for receipt in snapshot.shards],
        }
        paths.update(listed["file"])
    for noun, items in listed.items():
        repeated = [item for item, count in Counter(items).items() if count > 1]
        if repeated:
            raise InputError(
                uri, expected=f"each {noun} once", found=f"'{repeated[0]}' more than once"
            )
    folders: dict[str, str] = {}
    for path in paths:
        folders.setdefault(path.rpartition("/")[0], path)
    if is_local(store):
        root = local_path(store).resolve()
        for folder, path in folders.items():
            target = (root / folder).resolve()
            if not target.is_relative_to(root):
                raise InputError(
                    uri, expected="paths inside the store", found=f"{path}, which is in {target}"
                )


# An earlier raypq refuses a version with a key that it does not know, which would prevent a
# downgrade. So the type of ids, a later addition to receipts, is written to the summary, whose keys
# are free: the one type of the store, and the shards where it is not known. Counts of a run, a
# later addition too, stay in its journal.


def _ids_section(receipts: Receipts) -> dict[str, Any]:
    kinds = {kind for kind in pc.unique(receipts.column("ids")).to_pylist() if kind is not None}
    if len(kinds) != 1:
        return {}
    section: dict[str, Any] = {"type": kinds.pop()}
    if not receipts.manifests and (unknown := [item.shard for item in receipts if not item.ids]):
        section["unknown"] = unknown
    return {IDS: section}


def _serialized(snapshot: Snapshot) -> bytes:
    document = snapshot.model_dump(mode="json", exclude={"format", "shards"})
    receipts: dict[str, Any] = {}
    if snapshot.shards.manifests:
        receipts["manifests"] = [item.model_dump(mode="json") for item in snapshot.shards.manifests]
        receipts["totals"] = snapshot.shards.totals.model_dump(mode="json")
    else:
        receipts["shards"] = [
            _entry(receipt, with_ids=IDS not in snapshot.summary) for receipt in snapshot.shards
        ]
    document = {"format": snapshot.format, **document, **receipts}
    document["summary"] = document.pop("summary")  # last, since it may be long
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def _entry(receipt: Receipt, *, with_ids: bool) -> dict[str, Any]:
    without = {"counts"} if with_ids and receipt.ids else {"counts", "ids"}
    return receipt.model_dump(mode="json", exclude=without)


def _with_ids(document: Any) -> Any:
    summary = document.get("summary") if isinstance(document, dict) else None
    section = summary.get(IDS) if isinstance(summary, dict) else None
    if not isinstance(section, dict) or not isinstance(document.get("shards"), list):
        return document
    unknown = section.get("unknown", [])
    if not isinstance(unknown, list) or not all(isinstance(name, str) for name in unknown):
        raise ValueError(
            f"key 'summary.{IDS}.unknown': expected a list of shards, found {shown(unknown)}"
        )
    for receipt in document["shards"]:
        if isinstance(receipt, dict) and receipt.get("shard") not in unknown:
            receipt.setdefault("ids", section.get("type"))
    return document


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        if unknown := format_version.unknown_key(error):
            return unknown
        return first_problem(_Inline if error.title == _Inline.__name__ else _Named, error)
    return str(error).splitlines()[0]


def _no_store(uri: str) -> str:
    if exists(join(uri, "model.json")):
        return "a model, not a store"
    return "a folder without versions" if exists(uri) else "no such store"


def verify_sizes(store: str, snapshot: Snapshot) -> None:
    """Checks by one listing that every file of a snapshot exists with its size.

    Raises:
        DamagedError: naming every file that does not.
    """
    stored.refuse(_title(store, snapshot), damaged(store, snapshot), stored.remedy(snapshot.kind))


def verify_content(store: str, snapshot: Snapshot) -> None:
    """Reads every file of a snapshot and checks its sha256 and its number of rows.

    Raises:
        DamagedError: naming every file that is not as it was written.
    """
    errors = damaged(store, snapshot, sha256=True)
    stored.refuse(_title(store, snapshot), errors, stored.remedy(snapshot.kind))


def _title(store: str, snapshot: Snapshot) -> str:
    return f"{store} version {snapshot.version}"


def damaged(store: str, snapshot: Snapshot, *, sha256: bool = False) -> list[InputError]:
    """An error for each file of a snapshot that is missing or of another size.

    Args:
        sha256: check the sha256 and the number of rows, too.
    """
    receipts = snapshot.shards
    errors = list(manifest.damaged(store, receipts.manifests, sha256=sha256))
    if errors:
        return errors
    try:
        columns = receipts.read(["path", "bytes"])
    except InputError as error:
        return [error]
    if path := repeated(columns["path"]):
        uri = _uri(store, snapshot.version)
        return [InputError(uri, expected="each file once", found=f"'{path}' more than once")]
    named = zip(*map(values_of, columns.values()), strict=True)
    files = list_files(join(store, "data"))
    for number, (path, size) in enumerate(named):
        listed = files.get(path.removeprefix("data/"))
        if sha256 or listed is None or listed.size != size:
            receipt = receipts[number]
            try:
                _check_size(join(store, path), receipt, listed)
                _check_content(join(store, path), receipt, snapshot.version)
            except InputError as error:
                errors.append(error)
    return errors


def _check_size(uri: str, receipt: Receipt, listed: Listed | None) -> None:
    if listed is None:
        raise DamagedError(uri, expected="a file of the version", found="no such file")
    if listed.size != receipt.bytes:
        raise DamagedError(uri, expected=f"{receipt.bytes} bytes", found=f"{listed.size} bytes")


def _check_content(uri: str, receipt: Receipt, version: int) -> None:
    sha256 = digest(uri)
    if sha256 != receipt.sha256:
        raise DamagedError(uri, expected=f"sha256 {receipt.sha256}", found=sha256)
    with open_parquet(uri, size=receipt.bytes) as file:
        rows = file.metadata.num_rows
    if rows != receipt.rows:
        raise DamagedError(
            uri, expected=f"{receipt.rows} rows, as {path_of(version)} says", found=f"{rows} rows"
        )


def _check_complete(store: str, finished: Sequence[str], expected: Sequence[str]) -> None:
    """Refuses a version that would lack a shard, or hold one twice."""
    finished_counts, expected_counts = Counter(finished), Counter(expected)
    if finished_counts == expected_counts:
        return
    faults = {
        "without a receipt": sorted((expected_counts - finished_counts).keys()),
        "with more receipts than one, or not expected at all": sorted(
            (finished_counts - expected_counts).keys()
        ),
    }
    examples = "; ".join(
        f"{len(shards)} {fault}, such as {shards[0]!r}"
        for fault, shards in faults.items()
        if shards
    )
    raise IncompleteError(f"{store}: nothing was committed: of {len(expected)} shards {examples}")


def commit(
    store: str,
    *,
    kind: Kind,
    run_id: str,
    expected: Sequence[str],
    receipts: Sequence[Receipt],
    quarantined: Sequence[Quarantined] = (),
    summary: dict[str, Any] | None = None,
    expected_parent: int | None = None,
    pre_commit_check: Callable[[], None] | None = None,
) -> Snapshot:
    """Creates the next version, of exactly these shards.

    Args:
        expected: the stem of every shard that the version must hold or name as quarantined.
        expected_parent: the version that must be the latest (0: there must be none; None: not
            checked), as in optimistic concurrency control.
        pre_commit_check: called just before each attempt; raises if the writer may no longer
            commit.

    Raises:
        IncompleteError: a shard does not have exactly one receipt, or one reason to leave it out.
        ConflictError: other writers took every number that was tried, or the latest version is not
            ``expected_parent``.
    """
    if not isinstance(receipts, Receipts):
        without_counts = (item.model_copy(update={"counts": None}) for item in receipts)
        receipts = Receipts.of(sorted(without_counts, key=lambda receipt: receipt.shard))
    stems = receipts.column("shard").to_pylist()
    _check_complete(store, [*stems, *(item.shard for item in quarantined)], expected)
    summary = {key: value for key, value in (summary or {}).items() if key != IDS}
    nonce = uuid.uuid4().hex
    sync_folder(join(store, "data"))  # the files must survive a power cut before the version exists
    shards = _with_manifests(store, receipts)
    for attempt in range(_TRIES):
        parent, version = _next_version(store, expected_parent)
        for error in manifest.damaged(store, shards.manifests):
            raise ConflictError(f"{error}; nothing was committed, run it again")
        if pre_commit_check is not None:
            pre_commit_check()
        snapshot = Snapshot(
            format=2 if shards.manifests else 1,
            kind=kind,
            version=version,
            parent=parent,
            nonce=nonce,
            run_id=run_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            shards=shards,
            quarantined=tuple(quarantined),
            summary={**summary, **_ids_section(shards)},
        )
        if create_once(_uri(store, version), _serialized(snapshot)):
            return snapshot
        time.sleep(random.uniform(0, _PAUSE * min(2**attempt, 32)))  # noqa: S311 - no secret
    raise ConflictError(f"{store}: {_TRIES} version numbers in a row were taken by other writers")


def _next_version(store: str, expected_parent: int | None) -> tuple[int | None, int]:
    """The latest version, if there is one, and the number of the next.

    Raises:
        ConflictError: the latest version is not ``expected_parent``, or no number follows it.
    """
    known = versions(store)
    version = known[-1] + 1 if known else 1
    if version > _MAX_VERSION:
        raise ConflictError(f"{_uri(store, known[-1])}: no run made this version; remove it")
    if expected_parent is not None and version != expected_parent + 1:
        raise ConflictError(
            f"{store}: version {version - 1} was committed by another run while this one "
            f"started from version {expected_parent}; run it again (finished shards are kept)"
        )
    return known[-1] if known else None, version


def _with_manifests(store: str, receipts: Receipts) -> Receipts:
    """The receipts with the manifests that a version of them names, which are written.

    Manifests of the last version, or of one that is restored, stay as they are. Those that a gc
    lists count as removed.
    """
    if len(receipts) <= MOST_INLINE:
        return receipts.in_manifests(())
    before = receipts.manifests or _last_manifests(store)
    removed = runs.removed_by_gc(store) if before else frozenset[str]()
    usable = not any(item.path in removed for item in before) and not any(
        manifest.damaged(store, before)
    )
    if usable and before:
        try:
            return receipts.in_manifests(manifest_tree.write(store, receipts, before))
        except InputError as error:
            console.warn(f"all manifests of {store} are written anew: {error}")
    return receipts.in_manifests(manifest_tree.write(store, receipts, ()))


def _last_manifests(store: str) -> tuple[Manifest, ...]:
    if not versions(store):
        return ()
    try:
        return read(store).shards.manifests
    except InputError:  # the next version does not need it
        return ()
