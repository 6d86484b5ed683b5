"""The `raypq encode` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq.cli.job_command import job_command
from raypq.cli.options import show, version_summary

if TYPE_CHECKING:
    from raypq.config import EncodeJob

# Entries of a version's summary that its result has.
_SHOWN = (
    "backbone",
    "codes_changed_by_precision",
    "dropped",
    "duplicate_ids",
    "images_left_out",
    "images_unchanged",
)


@job_command("raypq.config:EncodeJob")
def encode(job: EncodeJob) -> None:
    """Turn features, or images, into codes.

    Each shard becomes one code file, and each run one new version of the store.

    \b
    Example:
      raypq encode --model model --features 'features/*.parquet' --output codes
      raypq encode --model model --features features/day=2 --output codes --append
      raypq encode --model model --images images/ --backbone timm:resnet50 --output codes
    """
    from raypq import api

    version = api.encode(job)
    changed = {key: version.summary[key] for key in _SHOWN if key in version.summary}
    show(version_summary(version, job.output) | changed)
