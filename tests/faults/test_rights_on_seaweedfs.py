"""The probe of rights on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import fsspec
from weed import seaweedfs

from raypq.data.storage.rights import missing_rights


def test_every_right_is_there_and_nothing_stays_behind(tmp_path: Path) -> None:
    with seaweedfs(tmp_path / "weed") as bucket:
        before = fsspec.filesystem("s3").find(bucket)
        assert missing_rights(f"{bucket}/codes") == []
        fsspec.filesystem("s3").invalidate_cache()
        assert fsspec.filesystem("s3").find(bucket) == before
