"""Validation of names from store files that become parts of paths.

Whoever can write to a store can write anything into its JSON files. A name from there must not
lead out of the store, nor to a file of another kind.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_ID = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.,-]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")  # and what UTF-8 cannot write
_OUTSIDE = re.compile(r"[./]*|/.*|(?:.*/)?\.\.(?:/.*)?|.*://.*", re.DOTALL)


def _plain(value: str) -> None:
    if _CONTROL.search(value):
        raise ValueError(f"expected a name without control characters and '\\', found {value!r}")


def check_stem(value: str) -> str:
    """A shard's name. Any characters may be in it that a file's name may have: early stores named
    shards after their files.

    Raises:
        ValueError: empty, a leading dot, a separator, or a control character.
    """
    _plain(value)
    if not value or value.startswith(".") or "/" in value:
        raise ValueError(f"expected a name without '/' and leading dots, found {value!r}")
    return value


def check_id(value: str) -> str:
    """A fingerprint, several joined by commas, or a work id.

    Raises:
        ValueError: anything but letters, digits and ``_.,-``.
    """
    if not _ID.fullmatch(value):
        raise ValueError(f"expected letters, digits and _ . , - only, found {value!r}")
    return value


def check_path(value: str) -> str:
    """A path below the store.

    Raises:
        ValueError: absolute, with ``..`` or a scheme in it, or with control characters.
    """
    if _OUTSIDE.fullmatch(value):
        raise ValueError(f"expected paths inside the store, found {value!r}")
    _plain(value)
    return value


Stem = Annotated[str, AfterValidator(check_stem)]
Id = Annotated[str, AfterValidator(check_id)]
InsidePath = Annotated[str, AfterValidator(check_path)]
