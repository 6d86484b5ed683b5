"""Validation of names in store files that become parts of paths.

A writer of a store can put anything into its JSON files. A name from there must not lead out of
the store, nor to a file of another kind.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_ID = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.,-]*)?")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")  # controls, surrogates, backslash
_OUTSIDE = re.compile(r"[./]*|/.*|(?:.*/)?\.\.(?:/.*)?|.*://.*", re.DOTALL)


def _check_characters(value: str) -> None:
    if _FORBIDDEN.search(value):
        raise ValueError(f"expected a name without control characters and '\\', found {value!r}")


def check_stem(value: str) -> str:
    """A shard's name; any that a file may have, since early stores named shards after their files.

    Raises:
        ValueError: empty, a leading dot, a separator, or a control character.
    """
    _check_characters(value)
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
    _check_characters(value)
    return value


Stem = Annotated[str, AfterValidator(check_stem)]
Id = Annotated[str, AfterValidator(check_id)]
InsidePath = Annotated[str, AfterValidator(check_path)]
