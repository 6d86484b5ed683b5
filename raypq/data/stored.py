"""Reading files of a store; errors about damaged files include the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from raypq.data.storage import CheckedFile, open_parquet
from raypq.errors import DamagedError, InputError

Kind = Literal["codes", "predictions", "search", "pairs", "groups", "clusters", "features"]

_COMMANDS: dict[Kind, str] = {
    "codes": "raypq encode or raypq reindex",
    "predictions": "raypq classify or raypq reindex",
    "search": "raypq search",
    "pairs": "raypq duplicates",
    "groups": "raypq deduplicate",
    "clusters": "raypq cluster",
    "features": "raypq extract",
}


def remedy(kind: Kind) -> str:
    """The remedy for a damaged file of a store: a missing file is made anew."""
    return (
        f"delete the file, or move it away, then run {_COMMANDS[kind]} again: its shard is done "
        "anew"
    )


@contextmanager
def open_stored(uri: str, kind: Kind, *, size: int | None = None) -> Iterator[CheckedFile]:
    """As ``open_parquet``, for a file of a store.

    Raises:
        DamagedError: the file is not as it was written; with the remedy.
    """
    try:
        with open_parquet(uri, size=size) as file:
            yield file
    except DamagedError as error:
        if remedy(kind) in error.found:  # raised by a nested reader
            raise
        found = f"{error.found}; {remedy(kind)}"
        raise DamagedError(error.location, expected=error.expected, found=found) from error


def refuse(title: str, damaged: Sequence[InputError], advice: str) -> None:
    """Raises one error for all damaged files of a check, if there are any.

    Args:
        title: names what was checked, such as a version.

    Raises:
        DamagedError: with a line for each file.
    """
    if damaged:
        lines = "".join(f"\n  {error}" for error in damaged)
        raise DamagedError(
            title,
            expected="every file as it was written",
            found=f"{len(damaged)} that are not (for each, {advice}):{lines}",
        )
