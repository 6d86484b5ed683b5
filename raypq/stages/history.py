"""The versions of a store: what they hold, how two differ, and what no version needs any more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raypq import console
from raypq.data import lease, sidecars, snapshot
from raypq.data.snapshot import Snapshot
from raypq.data.storage import delete, join, list_files, list_folders, now
from raypq.errors import ConfigError, InputError

_DAY = 86_400.0
_APART = 300.0  # seconds between clocks that are worth a warning


def listing(store: str) -> list[dict[str, Any]]:
    """One line a version, oldest first."""
    return [_line(snapshot.read(store, version)) for version in snapshot.versions(store)]


def show(store: str, version: int | None = None) -> dict[str, Any]:
    """Everything that a version says of itself.

    Raises:
        InputError: no such store or version.
    """
    return snapshot.read(store, version).model_dump(mode="json")


def restore(store: str, version: int) -> Snapshot:
    """Makes a new version that holds what an old one does; nothing is copied, nothing is lost.

    Raises:
        InputError: no such version, or one whose files are not all there (``gc`` took them).
        ConflictError: a nightly run is at work on the store, or another writer committed.
    """
    wanted = snapshot.read(store, version)
    with lease.held(store) as mine:
        latest = snapshot.versions(store)[-1]
        if version == latest:
            console.say(f"nothing to do: {store} is at version {version}")
            return wanted
        snapshot.verify_sizes(store, wanted)
        summary = {**wanted.summary, "restored": version}
        try:
            sidecars.verify(store, wanted.sidecars(store))
        except InputError as error:  # they save time and hold nothing of their own
            console.warn(f"{error}; version {latest + 1} names no sidecars")
            del summary[sidecars.KEY]
        made = snapshot.commit(
            store,
            kind=wanted.kind,
            run_id=wanted.run_id,
            expected=[
                *(receipt.shard for receipt in wanted.shards),
                *(item.shard for item in wanted.quarantined),
            ],
            receipts=wanted.shards,
            quarantined=wanted.quarantined,
            summary=summary,
            follows=latest,
            guard=mine.check,
        )
    console.say(f"restored version {version} of {store} as version {made.version}")
    return made


def verify(store: str, version: int | None = None, *, content: bool = False) -> dict[str, Any]:
    """Checks the files of a version: their sizes, or on request every byte.

    Raises:
        InputError: naming the first file that is not as it was written.
    """
    found = snapshot.read(store, version)
    if content:
        snapshot.verify_content(store, found)
    else:
        snapshot.verify_sizes(store, found)
    sidecars.verify(store, found.sidecars(store), content=content)
    checked = "sha256" if content else "size"
    return {"version": found.version, "files": len(found.shards), "verified": checked}


def diff(store: str, old: int, new: int | None = None) -> dict[str, Any]:
    """The shards that two versions do not share, by stem.

    Raises:
        InputError: no such store or version.
    """
    before, after = snapshot.read(store, old), snapshot.read(store, new)
    was = {receipt.shard: receipt for receipt in before.shards}
    now = {receipt.shard: receipt for receipt in after.shards}
    return {
        "old": before.version,
        "new": after.version,
        "added": sorted(now.keys() - was.keys()),
        "removed": sorted(was.keys() - now.keys()),
        "changed": sorted(
            name for name in now.keys() & was.keys() if now[name].path != was[name].path
        ),
        "kept": sum(now[name].path == was[name].path for name in now.keys() & was.keys()),
        "images": {"old": before.rows, "new": after.rows},
    }


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What ``collect`` found: versions and files, and the bytes that they take."""

    versions: Sequence[int]
    files: Sequence[str]
    bytes: int


def collect(
    store: str, *, keep: int | None = None, older_than_days: float = 7.0, remove: bool = False
) -> Garbage:
    """Finds, and on request removes, what no retained version names and that is old enough.

    Young files may belong to a run that is still going on, so age protects them. Versions go
    before their files: a reader never sees a version whose files are gone.

    Args:
        keep: how many of the latest versions to retain; None retains all.

    Raises:
        ConfigError: keep is less than one.
        InputError: no such store.
    """
    if keep is not None and keep < 1:
        raise ConfigError(f"keep: at least the latest version must stay, found {keep}")
    snapshot.read(store)  # there must be a store, or a wrong path would be swept
    known = snapshot.versions(store)
    retained = known if keep is None else known[-keep:]
    dropped = known[: len(known) - len(retained)]
    named = {path for version in retained for path in snapshot.read(store, version).files(store)}
    cutoff = _now(store, ask=remove) - older_than_days * _DAY
    folders = [
        "data",
        sidecars.FOLDER,
        *(f"journal/{name}" for name in list_folders(join(store, "journal"))),
    ]
    doomed = {
        f"{folder}/{name}": listed.size
        for folder in folders
        for name, listed in list_files(join(store, folder)).items()
        if f"{folder}/{name}" not in named and listed.written < cutoff
    }
    if remove:
        for version in dropped:
            delete(join(store, "snapshots", f"{version:020d}.json"))
        for path in doomed:
            delete(join(store, path))
    return Garbage(versions=dropped, files=sorted(doomed), bytes=sum(doomed.values()))


def _now(store: str, *, ask: bool) -> float:
    """The time that files are dated by; asked of the storage before anything is removed."""
    here = time.time()
    if not ask:
        return here
    there = now(join(store, "journal"))
    if abs(here - there) > _APART:
        console.warn(
            f"{store}: the clock here is {abs(here - there) / 3600:.1f} hours "
            f"{'ahead of' if here > there else 'behind'} that of the storage; "
            "ages are taken by the storage's"
        )
    return there


def _line(version: Snapshot) -> dict[str, Any]:
    return {
        "version": version.version,
        "created": version.created,
        "kind": version.kind,
        "images": version.rows,
        "shards": len(version.shards),
        "quarantined": len(version.quarantined),
        "bytes": sum(receipt.bytes for receipt in version.shards),
        "models": sorted({receipt.model[:12] for receipt in version.shards}),
    }
