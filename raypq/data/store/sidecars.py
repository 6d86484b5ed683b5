"""Sidecars: small files of a version that save the next run from reading every shard.

A version names its sidecars in its summary, by path, size and sha256. A sidecar holds nothing that
the shards do not hold too: whoever finds one missing or damaged makes it anew from the shards.
Every sidecar has a name of its own, is written before the version that names it, and never changes.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, field_validator

from raypq.config import Settings
from raypq.data.storage import digest, join, list_files, read_bytes, replacing, sync_folder
from raypq.data.store.shard_writer import HashingFile
from raypq.errors import InputError

FOLDER = "sidecars"
KEY = "sidecars"  # of a version's summary
_PATH = re.compile(rf"{FOLDER}/[a-z]+-[0-9a-f]{{32}}\.[a-z]+")


class Sidecar(Settings):
    """One sidecar as a version names it; ``about`` is what a reader wants to know beforehand."""

    model_config = ConfigDict(extra="ignore")  # of a newer raypq

    path: str
    bytes: int = Field(ge=0)
    sha256: str
    about: dict[str, Any] = Field(default_factory=dict)

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        if not _PATH.fullmatch(value):
            raise ValueError(f"a name of the form {FOLDER}/<kind>-<32 hex digits>.<type>")
        return value


Sidecars = Mapping[str, Sequence[Sidecar]]  # by kind


def named(summary: Mapping[str, Any], where: str) -> Sidecars:
    """The sidecars that a version's summary names, by kind.

    Args:
        where: the version's file, for errors.

    Raises:
        InputError: they cannot be read, or a path leads out of the folder of sidecars.
    """
    try:
        noted = dict(summary.get(KEY) or {})
        return {str(kind): [Sidecar(**item) for item in items] for kind, items in noted.items()}
    except (ValidationError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}, key 'summary.{KEY}'",
            expected="sidecar files with path, bytes and sha256",
            found=str(error).splitlines()[-1].strip(),
        ) from None


def told(sidecars: Sidecars) -> dict[str, Any]:
    """What a summary says of them; nothing where there are none."""
    plain = {
        kind: [item.model_dump(mode="json") for item in items]
        for kind, items in sidecars.items()
        if items
    }
    return {KEY: plain} if plain else {}


@dataclass(kw_only=True)
class Draft:
    """A sidecar that is being written; ``about`` may be filled until it is done."""

    file: HashingFile
    path: str
    about: dict[str, Any] = field(default_factory=dict)

    def sidecar(self) -> Sidecar:
        """What a version names, once the writing is over."""
        digest = self.file.digest.hexdigest()
        return Sidecar(path=self.path, bytes=self.file.bytes, sha256=digest, about=self.about)


@contextmanager
def writing(store: str, kind: str, suffix: str) -> Iterator[Draft]:
    """A new sidecar to write; nothing is left of it where the context fails."""
    path = f"{FOLDER}/{kind}-{uuid.uuid4().hex}.{suffix}"
    uri = join(store, path)
    try:
        with replacing(uri) as file:
            yield Draft(file=HashingFile(file), path=path)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, uri) from error  # a full disk names no file
    sync_folder(join(store, FOLDER))  # before a version names it


def read(store: str, sidecar: Sidecar) -> bytes:
    """The content of a small sidecar, its sha256 checked.

    Raises:
        InputError: it is not there, or not as it was written.
    """
    uri = join(store, sidecar.path)
    try:
        content = read_bytes(uri)
    except FileNotFoundError:
        raise InputError(uri, expected="a sidecar of the version", found="no such file") from None
    if len(content) != sidecar.bytes:
        raise InputError(uri, expected=f"{sidecar.bytes} bytes", found=f"{len(content)} bytes")
    found = hashlib.sha256(content).hexdigest()
    if found != sidecar.sha256:
        raise InputError(uri, expected=f"sha256 {sidecar.sha256}", found=found)
    return content


def verify(store: str, sidecars: Sidecars, *, content: bool = False) -> None:
    """Checks that every sidecar is there in full, on request with its sha256.

    Raises:
        InputError: naming the first file that is not.
    """
    for error in damaged(store, sidecars, content=content):
        raise error


def damaged(store: str, sidecars: Sidecars, *, content: bool = False) -> Iterator[InputError]:
    """The sidecars that are missing, or not as they were written."""
    files = list_files(join(store, FOLDER)) if any(sidecars.values()) else {}
    for sidecar in (item for items in sidecars.values() for item in items):
        uri = join(store, sidecar.path)
        listed = files.get(sidecar.path.removeprefix(f"{FOLDER}/"))
        if listed is None:
            yield InputError(uri, expected="a sidecar of the version", found="no such file")
        elif listed.size != sidecar.bytes:
            yield InputError(uri, expected=f"{sidecar.bytes} bytes", found=f"{listed.size} bytes")
        elif content and (found := digest(uri)) != sidecar.sha256:
            yield InputError(uri, expected=f"sha256 {sidecar.sha256}", found=found)


def still_there(store: str, sidecars: Sidecars) -> Sidecars:
    """The sidecars, if all of them are in the store in full; else none."""
    try:
        verify(store, sidecars)
    except InputError:
        return {}
    return sidecars
