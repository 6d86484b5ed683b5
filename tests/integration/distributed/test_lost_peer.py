"""A worker that trains in step with one that dies: its error counts as one that may pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_RANK = """
import os
import sys
from datetime import timedelta

import torch
from torch import distributed

from raypq.execution.retries import is_transient

rank = int(sys.argv[1])
distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2,
    timeout=timedelta(seconds=60),
)
total = torch.ones(4)
distributed.all_reduce(total)
if rank == 1:
    os.kill(os.getpid(), 9)
try:
    for _ in range(3):
        distributed.all_reduce(total)
except Exception as error:
    print("transient" if is_transient(error) else f"permanent: {type(error)}: {error}", flush=True)
os._exit(0)
"""


def test_the_error_of_a_collective_that_lost_a_worker_is_transient(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said, _ = (rank.communicate(timeout=120)[0] for rank in ranks)
    assert said.strip() == "transient"
