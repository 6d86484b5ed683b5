"""Format versions: errors for files that a newer raypq wrote."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from raypq.errors import InputError

ADVICE = "written by a newer raypq: upgrade raypq"


def unknown_key(error: Exception) -> str | None:
    """A description of the unknown key that a validation error is about; None for other errors."""
    if not isinstance(error, ValidationError):
        return None
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            return f"key '{'.'.join(str(part) for part in item['loc'])}', {ADVICE}"
    return None


def refuse_file(metadata: Mapping[bytes, bytes] | None, uri: str, *, what: str, known: str) -> None:
    """Refuses a Parquet file of a newer format than this raypq knows.

    Args:
        what: the kind of file, for the error. known: the format that this raypq knows.

    Raises:
        InputError: its format is newer.
    """
    number = (metadata or {}).get(b"raypq.format", b"").decode(errors="replace")
    if is_newer(number, int(known)):
        raise InputError(uri, expected=f"a {what} of format {known}", found=f"{number}, {ADVICE}")


def is_newer(number: object, known: int) -> bool:
    """Whether a format's number (a number or its text) is above the known one."""
    try:
        return int(str(number)) > known
    except ValueError:
        return False
