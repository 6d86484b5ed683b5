"""Errors of a real S3 server, which checks keys and signatures, say what happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from weed import seaweedfs

from raypq.data.storage import file_size, list_names, read_bytes, write_bytes
from raypq.errors import InputError, message_of


def test_a_real_server_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with seaweedfs(tmp_path / "weed") as root:
        monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", "1")

        def says(operation: Callable[[str], Any], uri: str) -> str:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            with pytest.raises((OSError, InputError)) as caught:
                operation(uri)
            return message_of(caught.value)

        assert "no such bucket" in says(read_bytes, "s3://gone-tomorrow/x").lower()
        assert "no such bucket" in says(list_names, "s3://gone-tomorrow/x")
        with monkeypatch.context() as changed:
            changed.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            assert "secret key does not belong" in says(list_names, root)
            assert "secret key does not belong" in says(
                lambda uri: write_bytes(uri, b"x"), f"{root}/x"
            )
            assert "wrong or expired key" in says(file_size, f"{root}/x")
        with monkeypatch.context() as changed:
            changed.setenv("AWS_ACCESS_KEY_ID", "unknown")
            assert "does not know the access key" in says(list_names, root)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
