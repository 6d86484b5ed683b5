"""A writer process for tests of racing commits: ``committer.py STORE NAME COMMITS``."""

from __future__ import annotations

import sys

from raypq.data.store import snapshot
from raypq.data.store.shard_writer import Receipt, Source


def main(store: str, name: str, commits: int) -> None:
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
        version = snapshot.commit(
            store, kind="codes", run_id=run, expected=[run], receipts=[receipt]
        ).version
        print(version, run, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
