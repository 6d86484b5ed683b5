"""The `raypq encode` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq.cli.job_command import job_command
from raypq.cli.options import show_result

if TYPE_CHECKING:
    from raypq.config import EncodeJob


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

    show_result(job, api.encode(job))
