"""Files of a store as they are read: what is damaged says how it is made anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from raypq.data.storage import CheckedFile, open_parquet
from raypq.errors import DamagedError, InputError

Kind = Literal["codes", "predictions", "search", "pairs"]

_VERBS: dict[Kind, str] = {
    "codes": "raypq encode or raypq reindex",
    "predictions": "raypq classify or raypq reindex",
    "search": "raypq search",
    "pairs": "raypq duplicates",
}


def remedy(kind: Kind) -> str:
    """What to do about a damaged file of a store: what is not there is made anew."""
    return (
        f"delete the file, or move it away, then run {_VERBS[kind]} again: its shard is done anew"
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
        if remedy(kind) in error.found:  # of a reader within a reader
            raise
        found = f"{error.found}; {remedy(kind)}"
        raise DamagedError(error.where, expected=error.expected, found=found) from error


def refuse(where: str, damaged: Sequence[InputError], advice: str) -> None:
    """Raises all that a check found, each on a line of its own.

    Raises:
        DamagedError: there is something.
    """
    if damaged:
        lines = "".join(f"\n  {error}" for error in damaged)
        raise DamagedError(
            where,
            expected="every file as it was written",
            found=f"{len(damaged)} that are not (for each, {advice}):{lines}",
        )
