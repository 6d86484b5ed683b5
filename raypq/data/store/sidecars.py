"""Sidecars: small files of a version that save the next run from reading every shard.

A version names its sidecars in its summary, by path, size and sha256. They are derived data: a
sidecar that is missing or damaged is made anew from the shards. A sidecar has a unique name, is
written before the version that names it, and never changes.
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
from raypq.config.explain import first_problem
from raypq.data.storage import atomic_write, join, read_bytes, sync_folder
from raypq.data.store import named_files
from raypq.data.store.shard_writer import HashingFile
from raypq.errors import InputError

FOLDER = "sidecars"
KEY = "sidecars"  # of a version's summary
_PATH = re.compile(rf"{FOLDER}/[a-z]+-[0-9a-f]{{32}}\.[a-z]+")


class Sidecar(Settings):
    """One sidecar as a version names it.

    Attributes:
        about: facts that a reader needs before it opens the file.
    """

    model_config = ConfigDict(extra="ignore")  # a newer raypq may write more

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


class _Section(Settings):
    """The key ``KEY`` of a summary."""

    sidecars: dict[str, list[Sidecar]]


Sidecars = Mapping[str, Sequence[Sidecar]]  # by kind


def from_summary(summary: Mapping[str, Any], uri: str) -> Sidecars:
    """The sidecars that a version's summary names, by kind.

    Args:
        uri: the version's file, for errors.

    Raises:
        InputError: they cannot be read, or a path leads out of the folder of sidecars.
    """
    section = summary.get(KEY)
    if section is None:
        return {}
    try:
        return _Section.model_validate({KEY: section}).sidecars
    except ValidationError as error:
        raise InputError(
            f"{uri}, key 'summary.{KEY}'",
            expected="sidecar files with path, bytes and sha256",
            found=first_problem(_Section, error),
        ) from None


def as_summary(sidecars: Sidecars) -> dict[str, Any]:
    """The entry of a version's summary; empty without sidecars."""
    section = {
        kind: [item.model_dump(mode="json") for item in items]
        for kind, items in sidecars.items()
        if items
    }
    return {KEY: section} if section else {}


@dataclass(kw_only=True)
class Draft:
    """A sidecar that is being written; ``about`` may be filled until the end."""

    file: HashingFile
    path: str
    about: dict[str, Any] = field(default_factory=dict)

    def sidecar(self) -> Sidecar:
        """The entry for a version, once the file is complete."""
        digest = self.file.digest.hexdigest()
        return Sidecar(path=self.path, bytes=self.file.bytes, sha256=digest, about=self.about)


@contextmanager
def create(store: str, kind: str, suffix: str) -> Iterator[Draft]:
    """A new sidecar to write; an error in the context leaves nothing behind."""
    path = f"{FOLDER}/{kind}-{uuid.uuid4().hex}.{suffix}"
    uri = join(store, path)
    with atomic_write(uri) as file:
        yield Draft(file=HashingFile(file), path=path)
    sync_folder(join(store, FOLDER))  # before a version names it


def read(store: str, sidecar: Sidecar) -> bytes:
    """The content of a small sidecar, its sha256 checked.

    Raises:
        InputError: it is missing, or not as it was written.
    """
    uri = join(store, sidecar.path)
    try:
        content = read_bytes(uri)
    except FileNotFoundError:
        raise InputError(uri, expected="a sidecar of the version", found="no such file") from None
    if len(content) != sidecar.bytes:
        raise InputError(uri, expected=f"{sidecar.bytes} bytes", found=f"{len(content)} bytes")
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != sidecar.sha256:
        raise InputError(uri, expected=f"sha256 {sidecar.sha256}", found=sha256)
    return content


def verify(store: str, sidecars: Sidecars, *, sha256: bool = False) -> None:
    """Checks that every sidecar exists with its size, with ``sha256`` also its sha256.

    Raises:
        InputError: naming the first file that does not.
    """
    for error in damaged(store, sidecars, sha256=sha256):
        raise error


def damaged(store: str, sidecars: Sidecars, *, sha256: bool = False) -> Iterator[InputError]:
    """The sidecars that are missing, or not as they were written."""
    files = [item for items in sidecars.values() for item in items]
    return named_files.damaged(store, FOLDER, files, noun="sidecar", sha256=sha256)


def still_there(store: str, sidecars: Sidecars) -> Sidecars:
    """The sidecars if all of them exist with their sizes, else none."""
    try:
        verify(store, sidecars)
    except InputError:
        return {}
    return sidecars
