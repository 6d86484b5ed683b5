"""Garbage collection of a store: files that no retained version needs."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raypq import console
from raypq.config.places import path_of
from raypq.data.model_files import FOLDER as MODELS
from raypq.data.storage import (
    Listed,
    delete,
    is_local,
    join,
    list_files,
    list_folders,
    local_path,
    storage_time,
)
from raypq.data.store import (
    journal,
    lease,
    manifest,
    manifest_tree,
    runs,
    sidecars,
    snapshot,
)
from raypq.errors import ConfigError, InputError, WriteError

_DAY = 86_400.0
_MAX_CLOCK_SKEW = 300.0  # seconds between the clocks of this machine and the storage
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part|\.clock-[0-9a-f]{32}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WITH_TEMPORARY_FILES = (snapshot.FOLDER, lease.FOLDER, journal.FOLDER, MODELS)


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Versions and files that may be removed, and the bytes that they take.

    Attributes:
        live_runs: runs at work on the store, for whose sake more is retained.
    """

    versions: Sequence[int]
    files: Sequence[str]
    bytes: int
    live_runs: Sequence[str] = ()


def collect(
    store: str | os.PathLike[str],
    *,
    keep: int | None = None,
    older_than_days: float = 7.0,
    remove: bool = False,
) -> Garbage:
    """Finds, and with ``remove`` deletes, old files that no retained version needs: data,
    manifests, sidecars, journals, models, and temporary files of crashed runs.

    Young files are retained, since they may belong to a run at work. While runs are known to be at
    work, nothing is removed that one of them may need (``raypq.data.store.runs``). Versions are
    removed before their files, so no reader sees a version whose files are gone.

    Args:
        keep: number of latest versions to retain; None retains all.

    Raises:
        ConfigError: ``keep`` is less than one.
        InputError: no such store; a version that cannot be read, so that its files are unknown; or
            a disk that is too full for the mark of a gc.
    """
    store = path_of(store)
    if keep is not None and keep < 1:
        raise ConfigError(f"keep: at least the latest version must stay, found {keep}")
    snapshot.read(store)  # raises unless this is a store: nothing else may be swept
    if not remove:
        return _unneeded(store, keep, older_than_days, now=time.time()).report()
    try:
        return _remove(store, keep, older_than_days)
    except WriteError as error:
        if error.errno not in _FULL:
            raise
        return _remove_on_full_disk(store, keep, older_than_days, error)


def _remove(store: str, keep: int | None, older_than_days: float) -> Garbage:
    with runs.active(store, "gc") as mark:
        clock = _storage_clock(store)
        first = _unneeded(store, keep, older_than_days, now=clock)
        mark.announce([*first.snapshots, *first.files])
        # Again: a run may have left its mark before it could read the announcement.
        unneeded = _unneeded(store, keep, older_than_days, now=clock).intersection(first)
        for path in [*unneeded.snapshots, *unneeded.in_order]:
            mark.check()
            delete(join(store, path))
    return unneeded.report()


def _remove_on_full_disk(
    store: str, keep: int | None, older_than_days: float, error: WriteError
) -> Garbage:
    """Makes room for the mark of a gc, then runs it.

    Raises:
        InputError: nothing may be removed without a mark, or that made too little room.
    """
    freed = _Unneeded(versions=(), files={}, live_runs=())
    try:
        freed = _orphans(store, older_than_days)
        for path in freed.files:
            delete(join(store, path))
        report = _remove(store, keep, older_than_days)
    except WriteError as full:
        if full.errno not in _FULL:
            raise
        raise _no_room(freed, full) from error
    return replace(
        report,
        files=sorted({*report.files, *freed.files}),
        bytes=report.bytes + sum(freed.files.values()),
    )


def _orphans(store: str, older_than_days: float) -> _Unneeded:
    """Old files that no version and no journal names, so that no run and no restore can come to
    need them: they may be removed without a mark. None while a run is at work.

    Journals are read before versions, since a commit moves the names of files from the one to the
    other.
    """
    works = list_folders(join(store, journal.FOLDER))
    named = journal.files_named(store, works)
    unneeded = _unneeded(store, None, older_than_days, now=_storage_clock(store))
    kept = (f"{journal.FOLDER}/", f"{MODELS}/")
    files = {
        path: size
        for path, size in unneeded.files.items()
        if path not in named and (_is_temporary(path) or not path.startswith(kept))
    }
    return replace(unneeded, files={} if unneeded.live_runs else files)


def _is_temporary(path: str) -> bool:
    return _TEMPORARY.fullmatch(path.rpartition("/")[2]) is not None


def _no_room(freed: _Unneeded, error: WriteError) -> InputError:
    """The error of a gc that cannot write its mark."""
    removed = f"; {len(freed.files)} files that nothing can need are removed" if freed.files else ""
    return InputError(
        error.filename,
        expected="room for a few KiB: gc lists what it removes, for runs and restores beside it",
        found=f"{error.strerror}{removed}. Move any file that is not of the store off this disk, "
        "run gc again, and move it back",
    )


@dataclass(frozen=True, kw_only=True)
class _Unneeded:
    """Versions and files (path to bytes) that may be removed."""

    versions: Sequence[int]
    files: Mapping[str, int]
    live_runs: Sequence[str]

    @property
    def snapshots(self) -> list[str]:
        return [snapshot.path_of(version) for version in self.versions]

    @property
    def in_order(self) -> list[str]:
        """The files in the order of removal: ``model.json`` before other files of a model."""
        return sorted(self.files, key=lambda path: not path.endswith("/model.json"))

    def intersection(self, other: _Unneeded) -> _Unneeded:
        return replace(
            self,
            versions=[version for version in self.versions if version in other.versions],
            files={path: size for path, size in self.files.items() if path in other.files},
        )

    def report(self) -> Garbage:
        return Garbage(
            versions=self.versions,
            files=sorted(self.files),
            bytes=sum(self.files.values()),
            live_runs=self.live_runs,
        )


def _unneeded(store: str, keep: int | None, older_than_days: float, *, now: float) -> _Unneeded:
    live = runs.active_runs(store, now)
    cutoff = min([now - older_than_days * _DAY, *(run.began for run in live)])
    known = snapshot.versions(store)
    retained = known if keep is None or live else known[-keep:]
    journals = {
        work: list_files(join(store, journal.FOLDER, work))
        for work in list_folders(join(store, journal.FOLDER))
    }
    in_use = {  # works whose journals a run may still take over
        work
        for work, files in journals.items()
        if live or any(listed.written >= cutoff for listed in files.values())
    }
    snapshots = [snapshot.read(store, version) for version in retained]
    needed = manifest_tree.paths(store, (version.shards for version in snapshots))
    needed.update(path for version in snapshots for path in version.other_files(store))
    needed |= journal.files_named(store, sorted(in_use))
    models = {model for version in snapshots for model in version.shards.totals.models}
    folders = {
        "data": list_files(join(store, "data")),
        manifest.FOLDER: list_files(join(store, manifest.FOLDER)),
        sidecars.FOLDER: list_files(join(store, sidecars.FOLDER)),
        **{f"{journal.FOLDER}/{work}": journals[work] for work in journals if work not in in_use},
        **({} if live or in_use else _unneeded_models(store, models, cutoff)),
        **{folder: _temporary(store, folder) for folder in _WITH_TEMPORARY_FILES},
        runs.FOLDER: {**_temporary(store, runs.FOLDER), **runs.stale_files(store, now)},
    }
    _refuse_outside(store, folders)
    files = {
        f"{folder}/{name}": listed.size
        for folder, listing in folders.items()
        for name, listed in listing.items()
        if f"{folder}/{name}" not in needed and listed.written < cutoff
    }
    return _Unneeded(
        versions=[version for version in known if version not in retained],
        files=files,
        live_runs=[run.what for run in live],
    )


def _refuse_outside(store: str, folders: Iterable[str]) -> None:
    """Refuses folders that are links out of the store: their files may belong to others.

    Raises:
        InputError: naming the link.
    """
    if not is_local(store):
        return
    root = local_path(store).resolve()
    for folder in folders:
        target = (root / folder).resolve()
        if not target.is_relative_to(root):
            raise InputError(
                join(store, folder), expected="a folder inside the store", found=f"one in {target}"
            )


def _unneeded_models(
    store: str, needed: Collection[str], cutoff: float
) -> dict[str, Mapping[str, Listed]]:
    """The files, by folder, of old models that no retained version needs."""
    models = {
        name: list_files(join(store, MODELS, name))
        for name in list_folders(join(store, MODELS))
        if name not in needed
    }
    return {
        f"{MODELS}/{name}": files
        for name, files in models.items()
        if all(listed.written < cutoff for listed in files.values())
    }


def _temporary(store: str, folder: str) -> dict[str, Listed]:
    """The temporary files of crashed runs in a folder."""
    return {
        name: listed
        for name, listed in list_files(join(store, folder)).items()
        if _TEMPORARY.fullmatch(name)
    }


def _storage_clock(store: str) -> float:
    """The time of the storage, by which files are dated."""
    local = time.time()
    storage = storage_time(join(store, journal.FOLDER))
    if abs(local - storage) > _MAX_CLOCK_SKEW:
        console.warn(
            f"{store}: the clock here is {abs(local - storage) / 3600:.1f} hours "
            f"{'ahead of' if local > storage else 'behind'} that of the storage; "
            "ages are taken by the storage's"
        )
    return storage
