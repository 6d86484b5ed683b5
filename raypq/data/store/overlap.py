"""Overlap checks: refuses a job whose outputs lie among its inputs.

Only harmful overlaps are refused. A store of predictions next to ``data/`` in a code store, and an
output below features whose name starts with ``_`` or ``.``, are not read as input.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from pydantic import BaseModel

from raypq.config import places
from raypq.config.places import Place, Reads, Writes
from raypq.data.storage import exists, join
from raypq.data.storage.shards import SUFFIXES
from raypq.data.storage.walk import IMAGE_SUFFIXES, hidden
from raypq.data.store import location, snapshot
from raypq.data.store.job_files import (
    MODEL_FILES,
    STORE_FOLDERS,
    Output,
    ReadFiles,
    WrittenFiles,
    read_files,
)
from raypq.data.store.location import Location
from raypq.errors import ConfigError

_OF_IMAGES = (*SUFFIXES, ".tar", *IMAGE_SUFFIXES)  # of files that hold images


def refuse(job: BaseModel, **more: Place | None) -> None:
    """Refuses a job whose outputs lie among its inputs, or two of whose outputs share files.

    Args:
        more: places that are no settings of the job, such as the file of ``--json``.

    Raises:
        ConfigError: naming both paths and the remedy.
    """
    refuse_places([*places.places(job), *(place for place in more.values() if place)])


def written_file(field: str, uri: str | None) -> Place | None:
    """The place of a file that a command writes; None for no file, and for stdout."""
    if uri is None or uri == "-":
        return None
    return Place(field=field, uri=places.path_of(uri), use=Writes("file"))


def read_file(field: str, uri: str | None) -> Place | None:
    """The place of a file that a command reads, such as its config; None for no file."""
    if uri is None:
        return None
    return Place(field=field, uri=places.path_of(uri), use=Reads("file"))


def refuse_places(places: Iterable[Place]) -> None:
    """As ``refuse``, for places.

    Raises:
        ConfigError: naming both paths and the remedy.
    """
    location.clear_caches()
    places = list(places)
    outputs = [Output(place) for place in places if isinstance(place.use, Writes)]
    if not outputs:
        return
    for output in outputs:
        _check_kind(output)
    _refuse_shared_files(outputs)
    writes_single_files = any(files.shape == "file" for output in outputs for files in output.files)
    checked_folders: set[Location] = set()
    for place in places:
        if not isinstance(place.use, Reads):
            continue
        for files in read_files(place):
            if files.kind == "listed" and not writes_single_files:
                # Where only folders are written, one file of a folder stands for all of them.
                if files.at.parent in checked_folders:
                    continue
                checked_folders.add(files.at.parent)
            for output in outputs:
                if place.use.in_place and output.at.is_same(Location.of(place.uri)):
                    continue
                if relation := _relation(output, files):
                    raise ConfigError(_message(output, place, relation))


def _refuse_shared_files(outputs: Sequence[Output]) -> None:
    for index, output in enumerate(outputs):
        for other in outputs[:index]:
            if (output.root and other.root and output.root.is_same(other.root)) or any(
                a.touches(b) or b.touches(a) for a in output.files for b in other.files
            ):
                raise ConfigError(
                    f"{output.title} and {other.title} share files: each output needs a place of "
                    "its own"
                )


def _message(output: Output, place: Place, relation: str) -> str:
    remedy = "name another place"
    if relation == "below":
        remedy = (
            "name a folder outside of it (or one whose name starts with _ or ., which no listing "
            "enters)"
        )
    verbs = {
        "below": "lies inside of, or is matched by,",
        "same": "is the same place as",
        "over": "would write over, or among the files of,",
    }
    return (
        f"{output.title} {verbs[relation]} the input {place.field}: {place.uri}; what is written "
        f"would be read as input, or the input be lost: {remedy}"
    )


def _check_kind(output: Output) -> None:
    """Refuses a folder for a file or the reverse, and files of a store or model.

    Raises:
        ConfigError: the output cannot be written, or would write into a store's own folders or
            over a file of a model.
    """
    _check_owner(output)
    if output.at.scheme != "file":
        return
    if output.is_folder and os.path.isfile(output.at.path):
        raise ConfigError(f"{output.title} is a file; name a folder")
    if not output.is_folder and os.path.isdir(output.at.path):
        raise ConfigError(f"{output.title} is a folder; name a file")


def _check_owner(output: Output) -> None:
    path = output.at.path if output.at.scheme == "file" else output.place.uri
    parts = path.rstrip("/").split("/")
    first = 1 if output.at.scheme == "file" else 3  # after the root, or the bucket
    last = len(parts) if output.is_folder else len(parts) - 1
    for index in range(first, last):
        store = "/".join(parts[:index])
        if parts[index] in STORE_FOLDERS and snapshot.versions(store):
            raise ConfigError(
                f"{output.title} is in {parts[index]}/ of the store {store}, which is for the "
                "store's own files; name another place"
            )
    model = "/".join(parts[:-1])
    if not output.is_folder and parts[-1] in MODEL_FILES and _is_model(model):
        raise ConfigError(
            f"{output.title} would write over a file of the model {model}; name another place"
        )


def _is_model(folder: str) -> bool:
    return all(exists(join(folder, name)) for name in ("model.json", "model.safetensors"))


def _relation(output: Output, read: ReadFiles) -> str | None:
    """How an output harms an input: ``same``, ``below`` or ``over``; None if it does not."""
    if read.kind == "root":
        return "same" if output.root and output.root.is_same(read.at) else None
    for written in output.files:
        if relation := _file_relation(written, read):
            return "same" if relation == "below" and output.at.is_same(read.at) else relation
    return None


def _file_relation(written: WrittenFiles, read: ReadFiles) -> str | None:
    at = written.at
    if read.kind in ("file", "listed"):
        if written.shape == "file":
            return "same" if at.is_same(read.at) else None
        if written.shape == "tree":
            return "over" if read.at.steps_below(at) is not None else None
        if not read.at.parent.is_same(at):
            return None
        may_replace = read.kind == "listed" and not written.names
        return "over" if may_replace or read.at.name in written.names else None
    if read.kind == "all":
        return "below" if at.steps_below(read.at) is not None else None
    if _would_list(read, written):
        return "same" if at.is_same(read.at) else "below"
    if written.shape == "tree" and read.at.steps_below(at) is not None:
        return "over"
    return None


def _would_list(read: ReadFiles, written: WrittenFiles) -> bool:
    """Whether a listing would contain a written file."""
    steps = written.at.steps_below(read.at)
    if steps is None:
        return False
    if written.shape == "file":
        suffixes = {"results": (".json",), "images": _OF_IMAGES}.get(read.kind, SUFFIXES)
        if not written.at.name.lower().endswith(suffixes):
            return False
    # A folder of outputs below features is refused whatever its files are called.
    if read.kind == "glob":
        return _may_match(read.pattern, steps, written)
    return not any(map(hidden, steps))


def _may_match(pattern: Sequence[str], steps: Sequence[str], written: WrittenFiles) -> bool:
    """Whether a pattern matches a folder above the written files, or may match one of them."""
    if not pattern:  # a folder that matches is read with all that is below it
        return not any(map(hidden, steps))
    first, *rest = pattern
    if first == "**":
        deeper = bool(steps) and not hidden(steps[0]) and _may_match(pattern, steps[1:], written)
        return deeper or _may_match(rest or ["*"], steps, written)
    if steps:
        visible = not hidden(steps[0]) or first[0] == steps[0][0]
        return visible and fnmatchcase(steps[0], first) and _may_match(rest, steps[1:], written)
    if written.shape != "folder":
        return written.shape == "tree"
    if rest:
        return False
    return not written.names or any(fnmatchcase(name, first) for name in written.names)
