"""Format versions: errors for files that a newer raypq wrote."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from raypq.errors import InputError

ADVICE = "written by a newer raypq: upgrade raypq"


def unknown_key(error: Exception) -> str | None:
    """What was found where a file has a key that is not known here; None for any other error."""
    if not isinstance(error, ValidationError):
        return None
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            return f"key '{'.'.join(str(part) for part in item['loc'])}', {ADVICE}"
    return None


def refuse_file(metadata: Mapping[bytes, bytes] | None, uri: str, *, what: str, known: str) -> None:
    """Refuses a Parquet file of a later format than the one that is known here.

    Raises:
        InputError: it is of a later one.
    """
    found = (metadata or {}).get(b"raypq.format", b"").decode(errors="replace")
    if is_newer(found, int(known)):
        raise InputError(uri, expected=f"a {what} of format {known}", found=f"{found}, {ADVICE}")


def is_newer(found: object, known: int) -> bool:
    """Whether a format's number is above the one that is known here; text counts as it reads."""
    try:
        return int(str(found)) > known
    except ValueError:
        return False
