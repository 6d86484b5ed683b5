"""Writing a store: a gang's output files, one a shard, become one snapshot."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raypq import console
from raypq.data import output, snapshot
from raypq.data.snapshot import Quarantined, Snapshot
from raypq.data.storage import Shard
from raypq.errors import ShardFailure
from raypq.stages.crew import Gang, settle


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One input shard."""

    shard: Shard

    @property
    def name(self) -> str:
        return self.shard.uri


def run_id(shards: Sequence[Shard], fingerprint: str, settings: str) -> str:
    """Names a run by what goes into it: inputs with size and time, model, settings, format."""
    digest = hashlib.sha256(f"{snapshot.FORMAT}:{fingerprint}:{settings}".encode())
    for shard in shards:
        digest.update(f"\n{shard.uri}:{shard.size}:{shard.modified}".encode())
    return digest.hexdigest()[:32]


def write_store(
    gang: Gang,
    tasks: Sequence[ShardTask],
    *,
    kind: snapshot.Kind,
    store: str,
    run_id: str,
    on_bad_shard: str,
    summarise: Callable[[], dict[str, Any]],
    reduce: Callable[[Any], output.Receipt],
) -> Snapshot:
    """Runs a gang, one output file a task, and commits one snapshot of them all.

    Args:
        reduce: takes each result as it arrives and gives its receipt; what it gathers beside
            must not depend on the order.
        summarise: what the snapshot says of the run, asked for once all results are in.

    Raises:
        JobError: shards failed; nothing is committed.
    """
    start = time.monotonic()
    receipts: list[output.Receipt] = []
    failures: list[ShardFailure] = []
    label = {"codes": "encode", "predictions": "classify"}[kind]
    with console.progress(len(tasks), label) as progress:
        for outcome in gang.map(tasks):
            if outcome.failure:
                failures.append(outcome.failure)
            else:
                receipts.append(reduce(outcome.result))
            progress.done(0 if outcome.failure else receipts[-1].rows)
    settle(failures, len(receipts), on_bad_shard)
    by_name = {task.name: task.shard for task in tasks}
    quarantined = [
        Quarantined(shard=by_name[item.shard].stem, uri=item.shard, reason=item.reason)
        for item in sorted(failures, key=lambda item: item.shard)
    ]
    seconds = time.monotonic() - start
    version = snapshot.commit(
        store,
        kind=kind,
        run_id=run_id,
        expected=[task.shard.stem for task in tasks],
        receipts=receipts,
        quarantined=quarantined,
        summary={**summarise(), "seconds": seconds},
    )
    verb = {"codes": "encoded", "predictions": "classified"}[kind]
    console.say(
        f"{verb} {version.rows:,} images in {seconds:.1f} s: {store} version {version.version}"
    )
    return version
