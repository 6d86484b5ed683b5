"""Files that a version names beside those of its shards: manifests and sidecars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from raypq.data.storage import digest, join, list_files
from raypq.errors import DamagedError, InputError


class NamedFile(Protocol):
    """A file as a version names it."""

    @property
    def path(self) -> str:
        """Below the store."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Of its content."""


def damaged(
    store: str, folder: str, files: Sequence[NamedFile], *, noun: str, sha256: bool = False
) -> Iterator[InputError]:
    """An error for each file that is missing or of another size, by one listing.

    Args:
        folder: of the store, in which the files are. sha256: check the content, too.
    """
    found = list_files(join(store, folder)) if files else {}
    for file in files:
        uri = join(store, file.path)
        listed = found.get(file.path.removeprefix(f"{folder}/"))
        if listed is None:
            yield DamagedError(uri, expected=f"a {noun} of the version", found="no such file")
        elif listed.size != file.bytes:
            yield DamagedError(uri, expected=f"{file.bytes} bytes", found=f"{listed.size} bytes")
        elif sha256 and (content := digest(uri)) != file.sha256:
            yield DamagedError(uri, expected=f"sha256 {file.sha256}", found=content)
