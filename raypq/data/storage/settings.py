"""How storage is reached; the one place that reads it.

Endpoint, region, profile and credentials come from where they usually do: ``AWS_ENDPOINT_URL``,
``AWS_PROFILE``, ``AWS_ACCESS_KEY_ID`` and the rest of botocore's environment and files, or
fsspec's configuration (``FSSPEC_S3_...``, ``~/.config/fsspec``). What raypq adds is here, each
from ``RAYPQ_STORAGE_<NAME>``. Credentials are none of it: they are never held by raypq.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Self

import fsspec.config
from pydantic import Field

from raypq.config import UserSettings
from raypq.errors import ConfigError

_PREFIX = "RAYPQ_STORAGE_"
# What Kubernetes sets in every container for a service that is called raypq-storage.
_OF_A_SERVICE = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?")
_MIB = 1 << 20


class StorageSettings(UserSettings):
    """Bounds on what storage is asked for, and on what a file may ask of memory."""

    endpoint_url: str | None = Field(None, description="S3 endpoint; over AWS_ENDPOINT_URL")
    attempts: Annotated[int, Field(ge=1, le=20)] = Field(
        6, description="tries of one request that is throttled or fails for a moment"
    )
    part_mib: Annotated[int, Field(ge=5, le=1024)] = Field(
        16, description="MiB of one part of a multipart upload, which a writer holds in memory"
    )
    row_group_mib: Annotated[int, Field(ge=1)] = Field(
        1024, description="MiB that one column of a row group may decompress to"
    )
    expansion: Annotated[int, Field(ge=2)] = Field(
        200, description="times its stored size that a column of a row group may decode to"
    )
    image_megapixels: Annotated[float, Field(gt=0, le=178)] = Field(
        50.0,
        description="million pixels that an encoded image may have; its memory is 4 to 9 bytes a "
        "pixel while it is decoded",
    )

    single_writer: bool = Field(
        False,
        description="you make sure that never more than one raypq writes to a store: lets through "
        "storages that cannot refuse a name that is taken",
    )

    @classmethod
    def current(cls) -> Self:
        """The settings of this process.

        Raises:
            ConfigError: a variable that cannot be used, or that no setting has, by name.
        """
        names = {name: _PREFIX + name.upper() for name in cls.model_fields}
        unknown = [
            name
            for name in sorted(os.environ)
            if name.startswith(_PREFIX)
            and name not in names.values()
            and not _OF_A_SERVICE.fullmatch(name.removeprefix(_PREFIX))
        ]
        if unknown:
            raise ConfigError(
                f"environment: unknown variable {', '.join(unknown)}; "
                f"allowed: {', '.join(sorted(names.values()))}"
            )
        # As in a shell, an empty variable is one that is not set.
        given = {name: os.environ[key] for name, key in names.items() if os.environ.get(key)}
        told = {name: f"{key} (setting '{name}')" for name, key in names.items()}
        return cls.parse(given, origin="environment", names=told)

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
        """What s3fs is made with.

        botocore itself tries again, with exponential back-off and full jitter ("standard" mode),
        unless ``AWS_RETRY_MODE`` or fsspec's configuration say otherwise. Listings are never
        answered from memory: another process may have written.
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
