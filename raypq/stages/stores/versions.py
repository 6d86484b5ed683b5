"""Versions of a store: list, compare, verify, restore, and garbage collection."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raypq import console
from raypq.config.places import path_of
from raypq.data import stored
from raypq.data.model_files import FOLDER as MODELS
from raypq.data.model_files import ModelFiles
from raypq.data.storage import (
    Listed,
    delete,
    is_local,
    join,
    list_files,
    list_folders,
    local_path,
    now,
)
from raypq.data.store import journal, lease, runs, sidecars, snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, ConflictError, InputError, ModelError
from raypq.stages.stores import quarantine

_DAY = 86_400.0
_APART = 300.0  # seconds between clocks that are worth a warning
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part|\.clock-[0-9a-f]{32}")
_SIDECAR_REMEDY = "delete a sidecar: the next version makes it anew"
_MODEL_REMEDY = "copy the model that raypq encode was given to the folder of a model"
_SWEPT = (snapshot.FOLDER, lease.FOLDER, journal.FOLDER, MODELS)  # of temporary files


def listing(store: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One line a version, oldest first.

    Raises:
        InputError: no such store.
    """
    store = path_of(store)
    known = snapshot.versions(store)
    if not known:
        snapshot.read(store)  # says what is there instead
    return [_line(snapshot.read(store, version)) for version in known]


def show(store: str | os.PathLike[str], version: int | None = None) -> dict[str, Any]:
    """Everything that a version says of itself.

    Raises:
        InputError: no such store or version.
    """
    store = path_of(store)
    return snapshot.read(store, version).model_dump(mode="json")


def restore(store: str | os.PathLike[str], version: int) -> Snapshot:
    """Makes a new version that holds what an old one does; nothing is copied, nothing is lost.

    Raises:
        InputError: no such version, or one whose files are not all there (``gc`` took them).
        ConflictError: a nightly run is at work on the store, or another writer committed.
    """
    store = path_of(store)
    snapshot.read(store, version)
    with lease.held(store) as mine, runs.at_work(store, "restore"):
        removed = runs.removed_by_gc(store)
        wanted = snapshot.read(store, version)
        latest = snapshot.versions(store)[-1]
        if version == latest:
            console.say(f"nothing to do: {store} is at version {version}")
            return wanted
        if going := sorted(removed & {snapshot.place(version), *wanted.files(store)}):
            raise ConflictError(
                f"{store}: gc is about to remove version {version} ({going[0]}); nothing was "
                "restored. Try again once gc has ended; one that was cut off counts as gone "
                f"after {runs.GONE / 60:.0f} minutes"
            )
        _refuse_incomplete(store, wanted)
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


def _refuse_incomplete(store: str, wanted: Snapshot) -> None:
    bad = snapshot.damaged(store, wanted)
    stored.refuse(
        f"{store} version {wanted.version}",
        bad,
        "take the file back from a backup, or restore another version, which "
        f"raypq snapshots verify {store} --version N finds whole; nothing was restored",
    )


def verify(
    store: str | os.PathLike[str], version: int | None = None, *, content: bool = False
) -> dict[str, Any]:
    """Checks the files of a version: their sizes, or on request every byte.

    Raises:
        DamagedError: naming every file that is not as it was written, and what to do.
    """
    store = path_of(store)
    found = snapshot.read(store, version)
    models = _needed_models(store, found)
    faults = {
        stored.remedy(found.kind): snapshot.damaged(store, found, content=content),
        _SIDECAR_REMEDY: list(sidecars.damaged(store, found.sidecars(store), content=content)),
        _MODEL_REMEDY: [fault for where in models if (fault := _model_fault(where))],
    }
    bad = [error for errors in faults.values() for error in errors]
    stored.refuse(
        f"{store} version {found.version}",
        bad,
        "; ".join(advice for advice, errors in faults.items() if errors),
    )
    return {
        "version": found.version,
        "files": len(found.shards),
        "models": len(models),
        "verified": "sha256" if content else "size",
    }


def _needed_models(store: str, version: Snapshot) -> list[str]:
    """Where the models are that the codes of a version need."""
    kept = set(list_folders(join(store, MODELS)))
    # What commits without a model (an early raypq, a tool) has neither of the two.
    if version.kind != "codes" or not (kept or "fingerprint" in version.summary):
        return []
    return [join(store, MODELS, name) for name in sorted({item.model for item in version.shards})]


def _model_fault(where: str) -> InputError | None:
    """What is wrong with a model, byte by byte: it may not be the one that its place names."""
    fingerprint = where.rpartition("/")[2]
    try:
        found = ModelFiles.load(where).fingerprint
    except InputError as error:
        return error
    if found == fingerprint:
        return None
    return ModelError(
        where, expected=f"the model {fingerprint[:12]}", found=f"the model {found[:12]}"
    )


def diff(store: str | os.PathLike[str], old: int, new: int | None = None) -> dict[str, Any]:
    """The shards that two versions do not share, by stem.

    Raises:
        InputError: no such store or version.
    """
    store = path_of(store)
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
        "quarantined": _left_out(before, after),
    }


def _left_out(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """The shards that two versions lack: those of one alone, and of both."""
    was, now = ({item.shard for item in version.quarantined} for version in (before, after))
    return {
        "added": sorted(now - was),
        "removed": sorted(was - now),
        "kept": sorted(now & was),
        "since": quarantine.since(after),
    }


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What ``collect`` found: versions and files, and the bytes that they take.

    Attributes:
        beside: runs that were at work on the store, for which more was left.
    """

    versions: Sequence[int]
    files: Sequence[str]
    bytes: int
    beside: Sequence[str] = ()


def collect(
    store: str | os.PathLike[str],
    *,
    keep: int | None = None,
    older_than_days: float = 7.0,
    remove: bool = False,
) -> Garbage:
    """Finds, and on request removes, what no retained version needs and that is old enough: data,
    sidecars, journals, models, and what crashes left behind.

    Young files may belong to a run that is still going on, so age protects them. Beside runs that
    are known to be at work nothing goes that one of them may need (``raypq.data.store.runs``).
    Versions go before their files: a reader never sees a version whose files are gone.

    Args:
        keep: how many of the latest versions to retain; None retains all.

    Raises:
        ConfigError: keep is less than one.
        InputError: no such store, or a version that cannot be read: what it needs is not known.
    """
    store = path_of(store)
    if keep is not None and keep < 1:
        raise ConfigError(f"keep: at least the latest version must stay, found {keep}")
    snapshot.read(store)  # there must be a store, or a wrong path would be swept
    if not remove:
        return _garbage(store, keep, older_than_days, now=time.time()).told()
    with runs.at_work(store, "gc") as mine:
        there = _now(store)
        first = _garbage(store, keep, older_than_days, now=there)
        mine.announce([*first.snapshots, *first.files])
        # A run that left its mark before it could read the announcement is seen here.
        found = _garbage(store, keep, older_than_days, now=there).both(first)
        for path in [*found.snapshots, *found.in_order]:
            mine.check()
            delete(join(store, path))
    return found.told()


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Versions and files (with their bytes) that may go."""

    versions: Sequence[int]
    files: Mapping[str, int]
    beside: Sequence[str]

    @property
    def snapshots(self) -> list[str]:
        return [snapshot.place(version) for version in self.versions]

    @property
    def in_order(self) -> list[str]:
        """The files; of a model first what makes its folder one."""
        return sorted(self.files, key=lambda path: not path.endswith("/model.json"))

    def both(self, other: _Found) -> _Found:
        return replace(
            self,
            versions=[version for version in self.versions if version in other.versions],
            files={path: size for path, size in self.files.items() if path in other.files},
        )

    def told(self) -> Garbage:
        return Garbage(
            versions=self.versions,
            files=sorted(self.files),
            bytes=sum(self.files.values()),
            beside=self.beside,
        )


def _garbage(store: str, keep: int | None, older_than_days: float, *, now: float) -> _Found:
    beside = runs.live(store, now)
    cutoff = min([now - older_than_days * _DAY, *(run.began for run in beside)])
    known = snapshot.versions(store)
    retained = known if keep is None or beside else known[-keep:]
    journals = {
        work: list_files(join(store, journal.FOLDER, work))
        for work in list_folders(join(store, journal.FOLDER))
    }
    alive = {
        work
        for work, files in journals.items()
        if beside or any(listed.written >= cutoff for listed in files.values())
    }
    held = [snapshot.read(store, version) for version in retained]
    named = {path for version in held for path in version.files(store)}
    named |= journal.files_named(store, sorted(alive))
    models = {receipt.model for version in held for receipt in version.shards}
    places = {
        "data": list_files(join(store, "data")),
        sidecars.FOLDER: list_files(join(store, sidecars.FOLDER)),
        **{f"{journal.FOLDER}/{work}": journals[work] for work in journals if work not in alive},
        **_models(store, models, cutoff, spared=bool(beside or alive)),
        **{folder: _temporary(store, folder) for folder in _SWEPT},
        runs.FOLDER: {**_temporary(store, runs.FOLDER), **runs.left_behind(store, now)},
    }
    _inside(store, places)
    files = {
        f"{folder}/{name}": listed.size
        for folder, there in places.items()
        for name, listed in there.items()
        if f"{folder}/{name}" not in named and listed.written < cutoff
    }
    return _Found(
        versions=[version for version in known if version not in retained],
        files=files,
        beside=[run.what for run in beside],
    )


def _inside(store: str, folders: Iterable[str]) -> None:
    """Refuses to sweep a folder that a link leads to: what is there may not be the store's.

    Raises:
        InputError: naming the link.
    """
    if not is_local(store):
        return
    root = local_path(store).resolve()
    for folder in folders:
        there = (root / folder).resolve()
        if not there.is_relative_to(root):
            raise InputError(
                join(store, folder), expected="a folder inside the store", found=f"one in {there}"
            )


def _models(
    store: str, needed: Collection[str], cutoff: float, *, spared: bool
) -> dict[str, Mapping[str, Listed]]:
    """The models that no retained version needs, each as old as a file must be; beside a run, or
    receipts that a run may take over, all are spared."""
    if spared:
        return {}
    found = {
        name: list_files(join(store, MODELS, name))
        for name in list_folders(join(store, MODELS))
        if name not in needed
    }
    return {
        f"{MODELS}/{name}": files
        for name, files in found.items()
        if all(listed.written < cutoff for listed in files.values())
    }


def _temporary(store: str, folder: str) -> dict[str, Listed]:
    """The temporary files that crashes left in a folder."""
    return {
        name: listed
        for name, listed in list_files(join(store, folder)).items()
        if _TEMPORARY.fullmatch(name)
    }


def _now(store: str) -> float:
    """The time that files are dated by; asked of the storage before anything is removed."""
    here = time.time()
    there = now(join(store, journal.FOLDER))
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
        **({"left_out": quarantine.told_of(version)} if version.quarantined else {}),
        "bytes": sum(receipt.bytes for receipt in version.shards),
        "models": sorted({receipt.model[:12] for receipt in version.shards}),
    }
