"""A writer process for tests of racing commits: ``committer.py STORE NAME COMMITS [grow]``.

Each version has one shard; with ``grow``, a shard more than the one that was the last, and its
receipts are in manifests.
"""

from __future__ import annotations

import sys

from raypq.data.store import manifest_tree, runs, snapshot
from raypq.data.store.shard_writer import Receipt, Source


def main(store: str, name: str, commits: int, *, grow: bool) -> None:
    if grow:
        snapshot.MOST_INLINE, manifest_tree._SMALL = 0, 0
    for number in range(commits):
        run = f"{name}-{number}"
        receipt = Receipt(
            shard=run,
            path=f"data/{run}.parquet",
            bytes=1,
            rows=1,
            sha256="0" * 64,
            model="m",
            work="w",
            source=Source(uri=f"/in/{run}", size=1, modified="now"),
        )
        receipts = [receipt]
        with runs.active(store, "encode"):
            if grow and snapshot.versions(store):
                receipts += snapshot.read(store).shards
            shards = [item.shard for item in receipts]
            version = snapshot.commit(
                store, kind="codes", run_id=run, expected=shards, receipts=receipts
            ).version
        print(version, run, ",".join(sorted(shards)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), grow=sys.argv[4:] == ["grow"])
