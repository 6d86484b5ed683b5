"""A first night over 20,000 real images, killed at ten moments, and a second one with changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raypq
from raypq.config import ClusterSettings, Columns, ExtractJob, TrainJob
from raypq.data.codes import CodeFile
from raypq.data.store import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
N, SIDE, KILLS = 20_000, 32, 10
ALONE = ClusterSettings(cluster="none", workers=1)


@pytest.fixture(scope="module")
def tree(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as files, in a folder for each class."""
    images = data_root / "cifar10" / "images"
    if not images.is_dir():
        pytest.skip(f"no CIFAR-10 at {images}")
    root = tmp_path_factory.mktemp("cifar") / "images"
    files = [*sorted((images / "test").glob("*.parquet")), *sorted((images / "train").glob("*"))]
    written = 0
    for path in files:
        table = pq.read_table(path).slice(0, N - written)
        for row in table.to_pylist():
            target = root / row["label"] / f"{row['id'].replace('/', '_')}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(row["image"])
        written += len(table)
        if written == N:
            break
    assert sum(1 for _ in root.rglob("*.png")) == N
    return root


@pytest.fixture(scope="module")
def model(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A network, and a model of its features of one class."""
    root = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 5, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 5, stride=2),
        torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which people have
        traced = torch.jit.trace(network.eval(), torch.zeros(1, 3, SIDE, SIDE))
        traced.save(str(root / "network.pt"))
    backbone = str(root / "network.pt")
    raypq.extract(
        ExtractJob(
            images=str(min(tree.iterdir())), backbone=backbone, output=str(root / "features"),
            columns=Columns(feature="image", image_size=SIDE), where=ALONE,
        )
    )  # fmt: skip
    job = TrainJob(method="opq", features=str(root / "features"), output=str(root / "model"),
                   settings={"M": 8, "K": 64, "iterations": 4}, where=ALONE)  # fmt: skip
    raypq.train(job)
    return job.output, backbone


def night(tree: Path, model: tuple[str, str], codes: Path) -> subprocess.Popen[bytes]:
    words = ["reindex", "--model", model[0], "--images", tree, "--backbone", model[1], "--codes",
             codes, "--image-size", SIDE, "--cluster", "none", "--workers", 1,
             "--lease-seconds", 1]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "raypq", *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()[-2000:]


def stored(store: Path) -> dict[str, tuple[bytes, Any]]:
    found = {}
    for receipt in snapshot.read(str(store)).shards:
        for batch in CodeFile.open(str(store / receipt.path)).batches(1000):
            labels = batch.labels or pa.nulls(len(batch.ids))
            for key, code, label in zip(batch.ids, batch.B, labels, strict=True):
                assert key.as_py() not in found, "doubled"
                found[key.as_py()] = (code.tobytes(), label.as_py())
    return found


def test_nights_over_images(tree: Path, model: tuple[str, str], tmp_path: Path) -> None:
    start = time.monotonic()
    finish(night(tree, model, tmp_path / "calm"))
    calm = time.monotonic() - start
    expected = stored(tmp_path / "calm")
    assert len(expected) == N
    for number in range(KILLS):
        codes = tmp_path / f"codes-{number}"
        process = night(tree, model, codes)
        with suppress(subprocess.TimeoutExpired):
            process.wait((number + 0.5) / KILLS * calm)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        finish(night(tree, model, codes))
        assert snapshot.versions(str(codes)) == [1]
        assert stored(codes) == expected

    names = sorted(expected)
    gone, changed = names[5::100], names[7::100]
    for name in gone:
        (tree / name).unlink()
    for at, name in enumerate(changed):
        (tree / name).write_bytes((tree / names[(at * 37 + 11) % N // 100 * 100]).read_bytes())
        (tree / f"new-{at}.png").write_bytes((tree / name).read_bytes())
    finish(night(tree, model, tmp_path / "fresh"))
    kept = {*names} - {*gone} - {*changed}
    for name in kept:  # other content of the same size and time: whoever decodes it fails
        status = (tree / name).stat()
        (tree / name).write_bytes(b"x" * status.st_size)
        os.utime(tree / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    finish(night(tree, model, codes))
    assert stored(codes) == stored(tmp_path / "fresh")
    assert snapshot.read(str(codes)).summary["images_unchanged"] == len(kept)
    print(f"\n{KILLS} kills of a night of {calm:.0f} s; then {len(changed)} images changed")
