"""The probe of rights: every right that is missing is named, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raypq.data.storage import Storage, use_storage
from raypq.data.storage.operations import Listed
from raypq.data.storage.rights import missing_rights, unreadable
from raypq.errors import InputError


def test_a_folder_with_every_right_stays_as_it_is(tmp_path: Path) -> None:
    assert missing_rights(str(tmp_path)) == []
    assert missing_rights(str(tmp_path / "a" / "b")) == []
    assert [*tmp_path.iterdir()] == []


class Refusing(Storage):
    """A storage that refuses one operation on the probe."""

    def __init__(self, operation: str) -> None:
        self._operation = operation

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name != self._operation:
            return found
        return _refuse


def _refuse(*_: Any) -> Any:
    raise PermissionError(13, "denied", "probe")


@pytest.mark.parametrize(
    ("operation", "rights"),
    [("create", ["create"]), ("read_bytes", ["read"]), ("list_files", ["list"])],
)
def test_a_right_that_is_missing(tmp_path: Path, operation: str, rights: list[str]) -> None:
    with use_storage(Refusing(operation)):
        refused = missing_rights(str(tmp_path))
    assert [refusal.right for refusal in refused] == rights
    assert all("denied" in refusal.reason for refusal in refused)
    assert [*tmp_path.iterdir()] == []


def test_a_probe_that_cannot_be_deleted_is_named(tmp_path: Path) -> None:
    with use_storage(Refusing("delete")):
        (refused,) = missing_rights(str(tmp_path))
    (left,) = tmp_path.iterdir()
    assert refused.right == "delete"
    assert f"left there: {left}" in refused.reason


class Overwriting(Storage):
    """A storage whose create replaces a file that is there."""

    def create(self, uri: str, content: bytes) -> None:
        Path(uri).write_bytes(content)


def test_a_storage_that_creates_a_name_twice(tmp_path: Path) -> None:
    with use_storage(Overwriting()):
        (refused,) = missing_rights(str(tmp_path))
    assert refused.right == "create once"
    assert [*tmp_path.iterdir()] == []


def test_a_storage_whose_package_is_missing_is_named() -> None:
    (refused,) = missing_rights("nosuchstorage://bucket/codes")
    assert refused.right == "open"
    assert "nosuchstorage" in refused.reason
    assert "nosuchstorage" in (unreadable("nosuchstorage://bucket/features.parquet") or "")


class NotListing(Storage):
    """A storage whose listing finds what raypq cannot read."""

    def list_files(self, uri: str) -> dict[str, Listed]:
        raise InputError(uri, expected="a folder", found="something else")


def test_an_input_error_of_a_listing_is_a_finding(tmp_path: Path) -> None:
    with use_storage(NotListing()):
        (refused,) = missing_rights(str(tmp_path))
    assert refused.right == "list"
    assert "something else" in refused.reason
    assert [*tmp_path.iterdir()] == []


def test_the_first_byte_of_a_file(tmp_path: Path, write: Callable[..., str]) -> None:
    assert unreadable(write("a.parquet", id=[1])) is None
    reason = unreadable(str(tmp_path / "none"))
    assert reason is not None
    assert "none" in reason
