"""Version tags: a property of a file that changes whenever its content does, such as an ETag."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

# In order of preference. The order must not change: receipts hold the first that a storage gives.
_KEYS = (
    "ETag",  # S3, OSS, HTTP
    "mtime",  # local files, GCS, HDFS (arrow), SFTP, SMB, tar
    "LastModified",  # S3, OSS
    "etag",  # Azure, WebDAV, OCI, GCS by hand
    "generation",  # GCS
    "md5Hash",  # GCS
    "checksum",  # lakeFS
    "md5Checksum",  # Google Drive
    "content_hash",  # Dropbox
    "sha",  # GitHub
    "hex",  # git
    "blob_id",  # Hugging Face
    "CRC",  # zip
    "modificationTime",  # WebHDFS, in milliseconds
    "modification_time",  # Databricks
    "last_modified",  # Azure, Jupyter
    "Last-Modified",  # HTTP
    "Content-MD5",  # HTTP
    "Digest",  # HTTP
    "timeModified",  # OCI
    "modifiedTime",  # Google Drive
    "modified_at",  # Box
    "modified",  # WebDAV
    "updated",  # GCS
    "modify",  # FTP
    "date_time",  # zip
    "created",  # memory: each write makes a new file
)


def version_tag(info: Mapping[str, Any]) -> str | None:
    """The version tag in fsspec's info of a file.

    Returns:
        The first tag that the storage gives, as text; None if it gives none.
    """
    for key in _KEYS:
        value = info.get(key)
        if value is None or isinstance(value, (list, dict)) or str(value).strip() == "":
            continue
        # One text for one time: some storages give a number in some calls and a datetime in others.
        as_number = key == "created" and isinstance(value, datetime)
        return str(value.timestamp() if as_number else value)
    return None
