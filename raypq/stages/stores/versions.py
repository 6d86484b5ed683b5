"""Versions of a store: list, compare, verify and restore."""

from __future__ import annotations

import os
from typing import Any

from raypq import console
from raypq.config.places import path_of
from raypq.data import stored
from raypq.data.model_files import FOLDER as MODELS
from raypq.data.model_files import ModelFiles
from raypq.data.storage import join, list_folders
from raypq.data.store import lease, manifest, manifest_tree, runs, sidecars, snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConflictError, InputError, ModelError
from raypq.stages.stores import quarantine

_SIDECAR_REMEDY = "delete a sidecar: the next version makes it anew"
_MANIFEST_REMEDY = (
    "copy a manifest back from a backup, or restore a version that does not name it, as its "
    "snapshot in snapshots/ says"
)
_MODEL_REMEDY = "copy the model that raypq encode was given to the folder of a model"


def listing(store: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """A summary of every version, oldest first.

    Raises:
        InputError: no such store.
    """
    store = path_of(store)
    known = snapshot.versions(store)
    if not known:
        snapshot.read(store)  # raises, and names what is there instead
    return [_summary(snapshot.read(store, version)) for version in known]


def show(store: str | os.PathLike[str], version: int | None = None) -> dict[str, Any]:
    """The content of a version's snapshot.

    Raises:
        InputError: no such store or version.
    """
    store = path_of(store)
    return snapshot.read(store, version).model_dump(mode="json")


def restore(store: str | os.PathLike[str], version: int) -> Snapshot:
    """Commits a new version with the files of an old one; no file is copied.

    Raises:
        InputError: no such version, or files of it are missing (``gc`` removed them).
        ConflictError: a ``reindex`` or another ``restore`` holds the lease of the store, or another
            writer committed.
    """
    store = path_of(store)
    snapshot.read(store, version)
    with lease.held(store) as mine, runs.active(store, "restore"):
        removed = runs.removed_by_gc(store)
        old = snapshot.read(store, version)
        latest = snapshot.versions(store)[-1]
        if version == latest:
            console.say(f"nothing to do: {store} is at version {version}")
            return old
        if removing := sorted(removed & {snapshot.path_of(version), *old.files(store)}):
            raise ConflictError(
                f"{store}: gc is about to remove version {version} ({removing[0]}); nothing was "
                "restored. Try again when gc has ended; an interrupted gc counts as ended after "
                f"{runs.GONE / 60:.0f} minutes"
            )
        _refuse_incomplete(store, old)
        summary = {**old.summary, "restored": version}
        try:
            sidecars.verify(store, old.sidecars(store))
        except InputError as error:  # sidecars can be computed again
            console.warn(f"{error}; version {latest + 1} names no sidecars")
            del summary[sidecars.KEY]
        made = snapshot.commit(
            store,
            kind=old.kind,
            run_id=old.run_id,
            expected=[
                *old.shards.column("shard").to_pylist(),
                *(item.shard for item in old.quarantined),
            ],
            receipts=old.shards,
            quarantined=old.quarantined,
            summary=summary,
            expected_parent=latest,
            pre_commit_check=mine.check,
        )
    console.say(f"restored version {version} of {store} as version {made.version}")
    return made


def _refuse_incomplete(store: str, version: Snapshot) -> None:
    stored.refuse(
        f"{store} version {version.version}",
        snapshot.damaged(store, version),
        "copy the file back from a backup, or restore another version, which "
        f"raypq snapshots verify {store} --version N finds whole; nothing was restored",
    )


def verify(
    store: str | os.PathLike[str], version: int | None = None, *, sha256: bool = False
) -> dict[str, Any]:
    """Checks the files of a version: their sizes, or with ``sha256`` every byte.

    Raises:
        DamagedError: naming every file that is not as it was written, and the remedy.
    """
    store = path_of(store)
    checked = snapshot.read(store, version)
    models = _needed_models(store, checked)
    errors = snapshot.damaged(store, checked, sha256=sha256)
    of_manifests = [error for error in errors if f"/{manifest.FOLDER}/" in error.location]
    faults = {
        stored.remedy(checked.kind): [error for error in errors if error not in of_manifests],
        _MANIFEST_REMEDY: of_manifests,
        _SIDECAR_REMEDY: list(sidecars.damaged(store, checked.sidecars(store), sha256=sha256)),
        _MODEL_REMEDY: [fault for folder in models if (fault := _model_fault(folder))],
    }
    stored.refuse(
        f"{store} version {checked.version}",
        [error for errors in faults.values() for error in errors],
        "; ".join(remedy for remedy, errors in faults.items() if errors),
    )
    return {
        "version": checked.version,
        "files": len(checked.shards),
        "models": len(models),
        "verified": "sha256" if sha256 else "size",
    }


def _needed_models(store: str, version: Snapshot) -> list[str]:
    """The folders of the models that made the codes of a version."""
    stored_models = list_folders(join(store, MODELS))
    # Stores that an early raypq, or another tool, wrote without models have neither of the two.
    if version.kind != "codes" or not (stored_models or "fingerprint" in version.summary):
        return []
    return [join(store, MODELS, name) for name in version.shards.totals.models]


def _model_fault(folder: str) -> InputError | None:
    """What is wrong with a stored model: it is damaged, or not the one that its folder names."""
    expected = folder.rpartition("/")[2]
    try:
        fingerprint = ModelFiles.load(folder).fingerprint
    except InputError as error:
        return error
    if fingerprint == expected:
        return None
    return ModelError(
        folder, expected=f"the model {expected[:12]}", found=f"the model {fingerprint[:12]}"
    )


def diff(store: str | os.PathLike[str], old: int, new: int | None = None) -> dict[str, Any]:
    """The shards in which two versions differ, by stem.

    Raises:
        InputError: no such store or version.
    """
    store = path_of(store)
    before, after = snapshot.read(store, old), snapshot.read(store, new)
    shards = manifest_tree.changed_shards(store, before.shards, after.shards)
    return {
        "old": before.version,
        "new": after.version,
        "added": shards.added,
        "removed": shards.removed,
        "changed": shards.changed,
        "kept": len(after.shards) - len(shards.added) - len(shards.changed),
        "images": {"old": before.rows, "new": after.rows},
        "quarantined": _quarantined_diff(before, after),
    }


def _quarantined_diff(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    old, new = ({item.shard for item in version.quarantined} for version in (before, after))
    return {
        "added": sorted(new - old),
        "removed": sorted(old - new),
        "kept": sorted(new & old),
        "since": quarantine.since(after),
    }


def _summary(version: Snapshot) -> dict[str, Any]:
    return {
        "version": version.version,
        "created": version.created,
        "kind": version.kind,
        "images": version.rows,
        "shards": len(version.shards),
        "quarantined": len(version.quarantined),
        **({"left_out": quarantine.summary(version)} if version.quarantined else {}),
        "bytes": version.shards.totals.bytes,
        "models": sorted({model[:12] for model in version.shards.totals.models}),
    }
