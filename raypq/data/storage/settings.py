"""Settings of storage, each from an environment variable ``RAYPQ_STORAGE_<NAME>``.

Endpoint, region, profile and credentials come from the usual places: ``AWS_ENDPOINT_URL``,
``AWS_PROFILE``, ``AWS_ACCESS_KEY_ID`` and the rest of botocore's environment and files, or
fsspec's configuration (``FSSPEC_S3_...``, ``~/.config/fsspec``). raypq never holds credentials.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Self

import fsspec.config
from pydantic import Field

from raypq.config import UserSettings
from raypq.errors import ConfigError

SINGLE_WRITER_REMEDY = (
    "if you make sure that never more than one raypq writes to this store, set "
    "RAYPQ_STORAGE_SINGLE_WRITER=true"
)

_PREFIX = "RAYPQ_STORAGE_"
# Kubernetes sets these in every container for a service named raypq-storage.
_KUBERNETES = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?")
_MIB = 1 << 20


class StorageSettings(UserSettings):
    """How storage is reached, and how much memory a file may take."""

    endpoint_url: str | None = Field(
        None, description="S3 endpoint; takes precedence over AWS_ENDPOINT_URL"
    )
    attempts: Annotated[int, Field(ge=1, le=20)] = Field(
        6, description="attempts of a request that is throttled or fails for a moment"
    )
    part_mib: Annotated[int, Field(ge=5, le=1024)] = Field(
        16, description="MiB of a part of a multipart upload, which a writer holds in memory"
    )
    row_group_mib: Annotated[int, Field(ge=1)] = Field(
        1024, description="MiB that one column of a row group may decompress to"
    )
    expansion: Annotated[int, Field(ge=2)] = Field(
        200, description="how many times its stored size a column of a row group may decode to"
    )
    image_megapixels: Annotated[float, Field(gt=0, le=178)] = Field(
        50.0,
        description="million pixels that an encoded image may have; its memory is 4 to 9 bytes a "
        "pixel while it is decoded",
    )

    single_writer: bool = Field(
        False,
        description="you make sure that never more than one raypq writes to a store: permits "
        "storages that cannot refuse a name that is taken",
    )

    @classmethod
    def current(cls) -> Self:
        """The settings of this process.

        Raises:
            ConfigError: a value that cannot be used, or an unknown variable, by name.
        """
        names = {name: _PREFIX + name.upper() for name in cls.model_fields}
        unknown = [
            name
            for name in sorted(os.environ)
            if name.startswith(_PREFIX)
            and name not in names.values()
            and not _KUBERNETES.fullmatch(name.removeprefix(_PREFIX))
        ]
        if unknown:
            raise ConfigError(
                f"environment: unknown variable {', '.join(unknown)}; "
                f"allowed: {', '.join(sorted(names.values()))}"
            )
        # As usual in shells, an empty variable counts as unset.
        values = {name: os.environ[key] for name, key in names.items() if os.environ.get(key)}
        shown_names = {name: f"{key} (setting '{name}')" for name, key in names.items()}
        return cls.parse(values, origin="environment", names=shown_names)

    @property
    def part_bytes(self) -> int:
        """Bytes of a part of an upload."""
        return self.part_mib * _MIB

    @property
    def row_group_bytes(self) -> int:
        """Bytes that a row group may have."""
        return self.row_group_mib * _MIB

    @property
    def image_pixels(self) -> int:
        """Pixels that an encoded image may have."""
        return int(self.image_megapixels * 1e6)

    def s3_options(self) -> dict[str, Any]:
        """Arguments of ``s3fs.S3FileSystem``.

        botocore retries with exponential back-off and full jitter ("standard" mode), unless
        ``AWS_RETRY_MODE`` or fsspec's configuration say otherwise. Listings are not cached:
        another process may have written.
        """
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        retries: dict[str, Any] = {"mode": os.environ.get("AWS_RETRY_MODE", "standard")}
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            retries["total_max_attempts"] = self.attempts
        options: dict[str, Any] = {
            "use_listings_cache": False,
            "default_block_size": self.part_bytes,
            "config_kwargs": {"retries": retries, **configured},
        }
        if self.endpoint_url:
            options["endpoint_url"] = self.endpoint_url
        return options
