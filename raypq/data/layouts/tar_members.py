"""The members of a tar file, which must be whole.

``tarfile`` stops without an error at a header that it cannot read, at the end of a file that is cut
off between two members, and at the end of the first of several joined archives.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from raypq.errors import DamagedError, InputError

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Member:
    """A member's name, and the place of its content in the file."""

    name: str
    start: int
    size: int


@dataclass
class Row:
    """The members of one key, by suffix; an image under its own name."""

    key: str
    image: Member | None = None
    others: dict[str, Member] = field(default_factory=dict)

    def own(self, suffix: str) -> list[Member]:
        """The member ``7.suffix``; else all of that name in any case (``7.CLS``, ``7.Cls``), or
        those beside ``7.v2.jpg``: ``7.v2.suffix``."""
        if member := self.others.get(suffix):
            return [member]
        stems = [self.key] + ([self.image.name.rpartition(".")[0]] if self.image else [])
        names = (f"{stem}.{suffix}".lower() for stem in stems)
        found = ([item for item in self.others.values() if item.name.lower() == name]
                 for name in names)  # fmt: skip
        return next(filter(None, found), [])

    def find(self, suffix: str) -> list[Member]:
        """The members of a suffix; if there are none, all that end with it after more dots."""
        ending = f".{suffix}".lower()
        return self.own(suffix) or [
            item for item in self.others.values() if item.name.lower().endswith(ending)
        ]


def members(file: IO[bytes], size: int, uri: str) -> Iterator[Member]:
    """The regular files in a tar file.

    Raises:
        DamagedError: it is no tar, or is cut off.
        InputError: another archive follows, or a link leads nowhere.
    """
    expected = "a whole tar file"
    found: dict[str, Member] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                name = info.name.removeprefix("./")
                _check_name(name, uri)
                if info.issparse():
                    raise InputError(
                        f"{uri}, member {name}",
                        expected="a file as it is",
                        found="a sparse one; write the tar file without holes",
                    )
                if info.isreg():
                    member = Member(name, info.offset_data, info.size)
                elif info.islnk() and info.linkname.removeprefix("./") in found:
                    target = found[info.linkname.removeprefix("./")]
                    member = Member(name, target.start, target.size)
                elif info.isdir():
                    continue
                else:
                    raise InputError(
                        f"{uri}, member {name}",
                        expected="a regular file",
                        found="a link" if info.issym() or info.islnk() else "a device or pipe",
                    )
                if member.start + member.size > size:
                    raise DamagedError(
                        f"{uri}, member {name}",
                        expected=f"{member.size} bytes",
                        found=f"{max(size - member.start, 0)}, then the end of the file",
                    )
                found[name] = member
                yield member
            end = archive.offset  # of the block at which it stopped
    except tarfile.TarError as error:
        raise DamagedError(uri, expected=expected, found=str(error)) from None
    except (EOFError, ValueError) as error:
        raise DamagedError(uri, expected=expected, found=str(error) or "its end") from None
    _check_end(file, end, uri)


def _check_name(name: str, uri: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{uri}, member {name.encode(errors='surrogateescape')!r}",
            expected="a name in UTF-8",
            found="other bytes",
        ) from None


def _check_end(file: IO[bytes], end: int, uri: str) -> None:
    """Checks that a block of zeros is at the end of a tar file, and that nothing follows.

    Raises:
        DamagedError: there is none: the file is cut off between two members, or a header is damaged
            (at which ``tarfile`` stops without an error).
        InputError: another archive follows, which would be ignored.
    """
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise DamagedError(
            uri,
            expected=f"a member, or a block of zeros as the end of the file, at byte {end}",
            found="neither"
            if len(block) == tarfile.BLOCKSIZE
            else f"{len(block)} bytes, then the end of the file: it is cut off",
        )
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise InputError(
                uri,
                expected="one tar file",
                found="more bytes after its end; if several were joined, keep them apart",
            )
