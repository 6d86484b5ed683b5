"""Checks of where a job writes: rights, what is there already, and room on disks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from raypq.checks.finding import Finding, errors, fail, ok, warn
from raypq.checks.inputs import Inputs
from raypq.config import Job
from raypq.config.places import Place
from raypq.data.model_files import check_vacant
from raypq.data.storage import is_local, local_path
from raypq.data.storage.rights import Right, missing_rights, nearest_existing
from raypq.data.store import snapshot

_FILES = ("file", "index")  # kinds of outputs that are no folders
_ID_BYTES = 24  # of an image's id and receipt in a code store, about
_LITTLE = 1 << 30  # bytes of a disk that may be too few
_OTHER = "or name another place"
REMEDIES: dict[Right, str] = {
    "open": f"install what the message names where the job runs, {_OTHER}",
    "create": f"give this user the right to write there (on S3: s3:PutObject), {_OTHER}",
    "read": f"give this user the right to read there (on S3: s3:GetObject), {_OTHER}",
    "list": f"give this user the right to list the folder (on S3: s3:ListBucket), {_OTHER}",
    "create once": "use a storage with conditional writes (docs/reliability.md, storages)",
    "delete": f"give this user the right to delete there (on S3: s3:DeleteObject), {_OTHER}",
}
_NO_ROOM = "free space (raypq snapshots gc STORE --delete frees some), or name another place"


def check_outputs(job: Job, places: Sequence[Place], inputs: Inputs) -> list[Finding]:
    """Checks every place that a job writes, and the disk of temporary files.

    Args:
        inputs: what the checks of inputs learned.
    """
    findings = []
    for place in places:
        findings += _check(job, place, inputs)
    return [*findings, _temporary_files()]


def folder_of(place: Place) -> str:
    """The folder that an output is written to."""
    if place.use.kind not in _FILES:
        return place.uri
    if is_local(place.uri):
        return str(local_path(place.uri).absolute().parent)
    return place.uri.rpartition("/")[0]


def _check(job: Job, place: Place, inputs: Inputs) -> list[Finding]:
    subject = f"{place.field}: {place.uri}"
    findings: list[Finding] = []
    refused = missing_rights(folder_of(place))
    findings += [
        fail(subject, f"cannot {refusal.right}: {refusal.reason}", REMEDIES[refusal.right])
        for refusal in refused
    ]
    if refused:
        return findings
    with errors(subject, "name another place", findings):
        state = _state(job, place)
        findings.append(ok(subject, f"create, read, list, create once, delete; {state}"))
        if room := _room(place, inputs):
            findings.append(room)
    return findings


def _state(job: Job, place: Place) -> str:
    """What is there already.

    Raises:
        ConfigError: a model that the job may not replace.
        InputError: a version that cannot be read.
    """
    if place.use.kind == "model":
        check_vacant(place.uri, overwrite=getattr(job, "overwrite", False))
    if place.use.kind != "store":
        return "nothing in the way"
    numbers = snapshot.versions(place.uri)
    if not numbers:
        return "no version yet"
    latest = snapshot.read(place.uri, numbers[-1])
    return f"version {latest.version}, {latest.rows:,} rows"


def _room(place: Place, inputs: Inputs) -> Finding | None:
    """Whether a local disk has room for the output; None for other storages."""
    if not is_local(place.uri):
        return None
    free = shutil.disk_usage(nearest_existing(folder_of(place))).free
    needed, first = _needed(place, inputs)
    subject, found = f"disk of {place.field}", f"{free / 1e9:.3g} GB free"
    found += f", a whole version takes about {needed / 1e9:.2g} GB" if needed else ""
    if free >= max(needed, _LITTLE):
        return ok(subject, found)
    if first and free < needed:
        return fail(subject, found, _NO_ROOM)
    return warn(subject, found, _NO_ROOM)


def _needed(place: Place, inputs: Inputs) -> tuple[int, bool]:
    """Bytes of a whole version (0 where they are not known), and whether it would be the first.

    Raises:
        InputError: a version that cannot be read.
    """
    if place.use.kind == "store":
        if numbers := snapshot.versions(place.uri):
            latest = snapshot.read(place.uri, numbers[-1])
            return latest.shards.totals.bytes, False
        if place.field in ("codes", "output") and (model := inputs.models.get("model")):
            return inputs.images * (model.M + _ID_BYTES), True
    return 0, True


def _temporary_files() -> Finding:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    subject, found = f"temporary files: {folder}", f"{free / 1e9:.3g} GB free"
    if free >= _LITTLE:
        return ok(subject, found)
    return warn(subject, found, "free space there, or name another folder by TMPDIR")
