"""The `raypq reindex` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq.cli.job_command import job_command
from raypq.cli.options import show

if TYPE_CHECKING:
    from raypq.config import ReindexJob


@job_command("raypq.config:ReindexJob")
def reindex(job: ReindexJob) -> None:
    """Bring codes, predictions and groups up to date with a feature store.

    Only new and changed shards are encoded, classified, and compared with all others. The stores of
    predictions and of groups of near-duplicates are in the file of --config, under the keys
    classify and deduplicate.

    \b
    Example:
      raypq reindex --config nightly.yaml --dry-run
    """
    from raypq import api

    show(api.reindex(job))
